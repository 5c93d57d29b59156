"""Metrics to Trackio, Weights & Biases or MLflow, as Catalyst loggers. Knows nothing of what the metrics mean.

Catalyst's own start their run when they are made: under torchrun, one in each process. These start with the training,
in the main process alone: `log_hparams` is what Catalyst calls first, and there alone. A step of a run is an epoch.
"""

from __future__ import annotations

from importlib.util import find_spec

from catalyst.core.logger import ILogger
from catalyst.loggers import mlflow, wandb


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install -e '.[loggers]'")


class TrackioLogger(ILogger):
    """Trackio: ``train/loss``, ``valid/loss`` and so on, into a database on this machine.

    Args:
        project: what `trackio show --project` takes.
        name: the run's; None lets Trackio invent one.
        options: of `trackio.init`; ``space_id`` sends the metrics to a Space on the Hugging Face hub.

    Raises:
        ImportError: Trackio is not installed.
    """

    def __init__(self, project: str, name: str | None = None, **options):
        super().__init__(log_batch_metrics=False, log_epoch_metrics=True)
        _check_installed("trackio")
        self.options = {"project": project, "name": name, "embed": False, **options}

    def log_hparams(self, hparams, runner=None) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(config=dict(hparams), **self.options)

    def log_metrics(self, metrics, scope, runner) -> None:
        if scope == "epoch":
            loaders = {name: own for name, own in metrics.items() if name in runner.loaders}
            values = {f"{name}/{key}": float(value) for name, own in loaders.items() for key, value in own.items()}
            self.trackio.log(values, step=runner.epoch_step)

    def close_log(self) -> None:
        self.trackio.finish()


class _StartsWithTheTraining(ILogger):
    """Makes the logger of Catalyst that stands behind it in a class' bases when the training starts."""

    def __init__(self, package: str, **options):
        ILogger.__init__(self, log_batch_metrics=False, log_epoch_metrics=True)
        _check_installed(package)
        self.options = options

    def log_hparams(self, hparams, runner=None) -> None:
        super().__init__(**self.options)
        super().log_hparams(hparams, runner)


class WandbLogger(_StartsWithTheTraining, wandb.WandbLogger):
    """Catalyst's logger for Weights & Biases: ``loss_epoch/train`` and so on. ``WANDB_MODE=offline`` sends nothing.

    Args:
        project, options: of Catalyst's, which hands on to `wandb.init` what it does not know.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, project: str, **options):
        super().__init__("wandb", project=project, **options)


class MLflowLogger(_StartsWithTheTraining, mlflow.MLflowLogger):
    """Catalyst's logger for MLflow: ``loss/train/epoch`` and so on.

    Args:
        experiment, options: of Catalyst's; without ``tracking_uri``, MLflow decides where the run is kept.

    Raises:
        ImportError: MLflow is not installed.
    """

    def __init__(self, experiment: str, **options):
        super().__init__("mlflow", experiment=experiment, **options)
