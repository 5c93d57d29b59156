"""What a run shows and keeps of its metrics, as Catalyst callbacks. Knows nothing of what the metrics mean."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from catalyst.core.callback import Callback, CallbackOrder
from catalyst.loggers.console import ConsoleLogger
from catalyst.loggers.csv import CSVLogger
from catalyst.loggers.tensorboard import TensorboardLogger
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter
from tqdm import tqdm
from tqdm.notebook import tqdm as widget_tqdm

from helpers.catalyst_today.saving import write_json, written_beside

OPTIMIZER_METRICS = ("lr", "momentum", "gradient_norm")
"""Metrics of a step as a whole. All others are sums over tokens, and those of its micro-batches add up."""


@dataclass
class History:
    """What a run has measured.

    Attributes:
        steps: one dict of floats a training step, ``step`` counted from 1.
        validations: one dict of floats a validation, ``step`` being the number of training steps before it.
        kept: the validation whose weights the model has at the end.
    """

    steps: list[dict[str, float]]
    validations: list[dict[str, float]]
    kept: dict[str, float]


class HistoryCallback(Callback):
    """Keep the metrics of each training step and of each validation.

    Under torchrun a step's losses are this process's share times the number of processes; validations are of all.

    Attributes:
        steps, validations: see `History`.
    """

    def __init__(self):
        super().__init__(order=CallbackOrder.External)
        self.on_experiment_start(None)

    def on_experiment_start(self, runner) -> None:
        self.steps, self.validations, self._unread, self._step = [], [], [], {}

    def state_dict(self) -> dict:
        """What a resumed run needs: see `checkpoints.ResumeCallback`."""
        return {"steps": self.steps, "validations": self.validations}

    def load_state_dict(self, state: dict) -> None:
        """Go on after what an earlier run has kept."""
        self.steps, self.validations = list(state["steps"]), list(state["validations"])

    def on_batch_end(self, runner) -> None:
        if not runner.is_train_loader:
            return
        for key, value in runner.batch_metrics.items():
            if value is not None:
                value = value.detach() if torch.is_tensor(value) else value
                before = 0.0 if key in OPTIMIZER_METRICS else self._step.get(key, 0.0)
                self._step[key] = before + value
        if runner.engine.sync_gradients:
            self._unread.append(self._step)
            self._step = {}

    def on_epoch_end(self, runner) -> None:
        self.read()
        if "valid" in runner.epoch_metrics:
            self.validations.append({"step": len(self.steps), **runner.epoch_metrics["valid"]})

    def read(self) -> None:
        """Turn the tensors kept since the last call into floats."""
        for metrics in self._unread:
            self.steps.append({"step": len(self.steps) + 1, **{key: float(value) for key, value in metrics.items()}})
        self._unread = []


def _is_shown() -> bool:
    """True in a kernel that a Jupyter server, or Colab, has started for a notebook that someone has open.

    The server names the notebook to the kernel. A kernel that is started from there, as papermill starts one, inherits
    the name; then its parent has it, too.
    """
    name = os.environ.get("JPY_SESSION_NAME")
    if name is None:
        return "google.colab" in sys.modules
    try:
        return psutil.Process(os.getppid()).environ().get("JPY_SESSION_NAME") != name
    except psutil.Error:  # the parent has gone, or is another user's
        return True


def progress_bar(total: int, description: str, **options) -> tqdm:
    """A bar that is gone when it is closed: a widget where a Jupyter server shows it to someone, else a line of text.

    Papermill and nbclient would keep the widget in the notebook, where nothing draws it any more.
    """
    if _is_shown():
        return widget_tqdm(total=total, desc=description, leave=False, **options)
    return tqdm(total=total, desc=description, leave=False, file=sys.stdout, ncols=88, **options)


class ProgressCallback(Callback):
    """One bar for the whole run, gone when it ends, with the running loss beside it."""

    def __init__(self, description: str):
        super().__init__(order=CallbackOrder.External)
        self.description = description

    def on_experiment_start(self, runner) -> None:
        self.loss = 0.0  # of the step under way, its micro-batches added up
        steps = runner.num_epochs * len(runner.loaders["train"])
        hidden = {} if runner.engine.is_main_process else {"disable": True}  # not given: TQDM_DISABLE decides
        self.bar = progress_bar(steps, self.description, **hidden)

    def state_dict(self) -> dict:
        """What a resumed run needs: see `checkpoints.ResumeCallback`."""
        return {"done": self.bar.n}

    def load_state_dict(self, state: dict) -> None:
        """Let the bar begin where the earlier run's ended; its rate is that of this run."""
        self.bar.initial = self.bar.n = state["done"]
        self.bar.refresh()

    def on_batch_end(self, runner) -> None:
        if not runner.is_train_loader:
            return
        self.loss = self.loss + runner.batch_metrics["loss"].detach()
        if runner.engine.sync_gradients:
            self.bar.update()
            if self.bar.n % 10 == 0:
                self.bar.set_postfix(loss=f"{self.loss.item():.3f}", refresh=False)
            self.loss = 0.0

    def on_experiment_end(self, runner) -> None:
        self.bar.close()

    def on_exception(self, runner) -> None:
        # The run may have failed before there was a bar.
        if hasattr(self, "bar"):
            self.bar.close()


class ValidationLogger(ConsoleLogger):
    """Print one short line a validation, where Catalyst's console logger prints three long ones an epoch."""

    def log_metrics(self, metrics, scope, runner) -> None:
        if scope == "loader" and runner.is_valid_loader:
            shown = {key: value for key, value in metrics.items() if key not in OPTIMIZER_METRICS}
            steps = runner.epoch_step * len(runner.loaders["train"])
            line = "  ".join(f"{key} {float(value):.4g}" for key, value in shown.items())
            tqdm.write(f"step {steps:>4}, validation: {line}")


class SilentLogger(ConsoleLogger):
    """A console logger that says nothing: without one, Catalyst adds its own."""

    def log_hparams(self, *args, **options) -> None:
        """Nothing."""

    log_metrics = log_hparams


class EpochCSVLogger(CSVLogger):
    """Catalyst's CSV files, one a loader and a row an epoch, each row once however often a run is stopped and resumed.

    The rows are kept here, and a file is written whole each time. Upstream's are appended to: a run that goes on from a
    state older than its last row would write that row again.
    """

    def __init__(self, logdir: str | Path):
        super().__init__(str(logdir), use_logdir_postfix=True)
        self.rows: dict[str, list[dict[str, float]]] = {}
        self.hparams: dict[str, Any] = {}

    def state_dict(self) -> dict:
        """What a resumed run needs: see `checkpoints.ResumeCallback`."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        """Take up the rows of an earlier run, and leave no others in the files."""
        self.rows = state["rows"]
        for loader_key in self.rows:
            self._write(loader_key)

    def log_hparams(self, hparams, runner=None) -> None:
        self.hparams = dict(hparams)  # written with the first row: a run that is then refused overwrites nothing

    def log_metrics(self, metrics, scope, runner) -> None:
        # Not at the epoch's end: that is logged after the callbacks, so the state would be without the row.
        if scope == "loader":
            row = {key: float(metrics[key]) for key in sorted(metrics)}
            if not self.rows:
                write_json(Path(self.logdir) / "hparams.json", self.hparams)
            self.rows.setdefault(runner.loader_key, []).append({"step": runner.epoch_step, **row})
            self._write(runner.loader_key)

    def _write(self, loader_key: str) -> None:
        with written_beside(Path(self.logdir) / f"{loader_key}.csv") as beside:
            pd.DataFrame(self.rows[loader_key]).to_csv(beside, index=False)


class EpochTensorboardLogger(TensorboardLogger):
    """Catalyst's TensorBoard files, each epoch shown once however often a run is stopped and resumed.

    A file that a resumed run begins says from which epoch on what stands in the files before it no longer counts.
    """

    def __init__(self, logdir: str | Path):
        # Not those of batches, which count in samples: one number says what is left out of a file.
        super().__init__(str(logdir), use_logdir_postfix=True, log_batch_metrics=False)
        self.epochs = 0

    def state_dict(self) -> dict:
        """What a resumed run needs: see `checkpoints.ResumeCallback`."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict) -> None:
        """Go on after these epochs."""
        self.epochs = state["epochs"]

    def log_metrics(self, metrics, scope, runner) -> None:
        super().log_metrics(metrics, scope, runner)
        if scope == "loader" and runner.is_valid_loader:
            self.epochs = runner.epoch_step

    def _check_loader_key(self, loader_key: str) -> None:
        if loader_key not in self.loggers:
            folder, suffix = str(Path(self.logdir) / loader_key), f".{time.time_ns()}"
            # The suffix: else two runs that begin within a second would write to one file.
            self.loggers[loader_key] = SummaryWriter(folder, purge_step=self.epochs + 1, filename_suffix=suffix)


class LiveCurvesCallback(Callback):
    """Draw the history into the notebook while training goes on: one picture that is replaced, not a row of them.

    Args:
        draw: from (steps, validations), as `HistoryCallback` keeps them, to a matplotlib figure, whose title serves as
            its text alternative.
        seconds: the least time between two pictures.
    """

    def __init__(self, draw: Callable[[list, list], Figure], seconds: float = 10.0):
        super().__init__(order=CallbackOrder.External + 1)
        self.draw, self.seconds = draw, seconds

    def on_experiment_start(self, runner) -> None:
        self.handle, self.drawn_at = None, time.monotonic()
        (self.history,) = (part for part in runner.callbacks.values() if isinstance(part, HistoryCallback))

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader and time.monotonic() - self.drawn_at > self.seconds:
            self.show()

    def on_experiment_end(self, runner) -> None:
        self.show()

    def show(self) -> None:
        """Draw what there is so far."""
        self.history.read()
        figure = self.draw(self.history.steps, self.history.validations)
        metadata = {"image/png": {"alt": figure.get_suptitle()}}
        if self.handle is None:
            self.handle = display(figure, display_id=True, metadata=metadata)
        else:
            self.handle.update(figure, metadata=metadata)
        plt.close(figure)
        self.drawn_at = time.monotonic()
