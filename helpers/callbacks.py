"""The losses, the metrics and what else a run needs, as Catalyst callbacks. Knows nothing of how logits were made.

The keys read from the runner's batch: ``s_logits`` and ``t_logits`` (masked, vocabulary), ``s_hidden_states`` and
``t_hidden_states`` (tuples of (batch, length, hidden)), ``attention_mask`` and ``labels`` (batch, length).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from catalyst.core.callback import Callback, CallbackOrder
from catalyst.loggers.console import ConsoleLogger
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from helpers import losses
from helpers.batches import IGNORED


def masked_targets(batch: dict) -> Tensor:
    """The hidden tokens of a batch in row-major order: (masked,) int64."""
    return batch["labels"][batch["labels"] != IGNORED]


class LoaderMeanCallback(Callback):
    """Put a batch's value into ``runner.batch_metrics`` and the whole loader's mean into ``runner.loader_metrics``.

    The mean weights each batch by its count and sums over all processes: it is that of all tokens, not a mean of means.
    A subclass gives `measure`.

    Args:
        metric_key: the name under which the value stands.
    """

    def __init__(self, metric_key: str):
        super().__init__(order=CallbackOrder.Metric)
        self.metric_key = metric_key

    def measure(self, batch: dict) -> tuple[Tensor, Tensor | int]:
        """Return the batch's mean, a scalar tensor, and the count that it is a mean over."""
        raise NotImplementedError

    def finish(self, mean: float) -> float:
        """Turn the loader's mean into the metric."""
        return mean

    def on_loader_start(self, runner) -> None:
        self.total = self.count = 0.0

    def on_batch_end(self, runner) -> None:
        value, count = self.measure(runner.batch)
        runner.batch_metrics[self.metric_key] = value
        # Tensors are added up, not numbers: reading one out would make a GPU wait at every batch.
        self.total = self.total + value.detach().to(runner.engine.sum_dtype) * count
        self.count = self.count + count

    def on_loader_end(self, runner) -> None:
        engine = runner.engine
        sums = [torch.as_tensor(x, dtype=engine.sum_dtype, device=engine.device) for x in (self.total, self.count)]
        total, count = engine.reduce(torch.stack(sums), reduction="sum").tolist()
        runner.loader_metrics[self.metric_key] = self.finish(total / max(count, 1))


class MaskedLanguageModelCallback(LoaderMeanCallback):
    """`losses.masked_lm_loss` of the student."""

    def __init__(self, metric_key: str = "mlm"):
        super().__init__(metric_key)

    def measure(self, batch):
        targets = masked_targets(batch)
        return losses.masked_lm_loss(batch["s_logits"], targets), len(targets)


class KLDivLossCallback(LoaderMeanCallback):
    """`losses.kl_div_loss` from student to teacher at `temperature`."""

    def __init__(self, metric_key: str = "kl", temperature: float = 1.0):
        super().__init__(metric_key)
        self.temperature = temperature

    def measure(self, batch):
        student, teacher = batch["s_logits"], batch["t_logits"]
        return losses.kl_div_loss(student, teacher, self.temperature), len(student)


class CosineLossCallback(LoaderMeanCallback):
    """`losses.cosine_loss` between the last hidden states, over attended tokens."""

    def __init__(self, metric_key: str = "cosine"):
        super().__init__(metric_key)

    def measure(self, batch):
        student, teacher = batch["s_hidden_states"][-1], batch["t_hidden_states"][-1]
        mask = batch["attention_mask"]
        return losses.cosine_loss(student, teacher, mask), mask.sum()


class MSELossCallback(LoaderMeanCallback):
    """`losses.mse_loss` between the logits."""

    def __init__(self, metric_key: str = "mse"):
        super().__init__(metric_key)

    def measure(self, batch):
        return losses.mse_loss(batch["s_logits"], batch["t_logits"]), len(batch["s_logits"])


class PerplexityCallback(MaskedLanguageModelCallback):
    """`losses.perplexity` of the student; a loader's is the exponential of its mean loss, no mean of perplexities."""

    def __init__(self, metric_key: str = "perplexity"):
        super().__init__(metric_key)

    @torch.no_grad()
    def on_batch_end(self, runner) -> None:
        super().on_batch_end(runner)
        runner.batch_metrics[self.metric_key] = runner.batch_metrics[self.metric_key].exp()

    def finish(self, mean):
        return float(torch.tensor(mean, dtype=torch.float64).exp())


LOSSES = {
    "mlm": MaskedLanguageModelCallback,
    "kl": KLDivLossCallback,
    "cosine": CosineLossCallback,
    "mse": MSELossCallback,
}
"""The names that LOSS_WEIGHTS may hold."""


class GradientClippingCallback(Callback):
    """Scale the student's gradient down to norm `max_norm` between the backward pass and the step.

    Upstream's ``BackwardCallback(grad_clip_fn=...)`` reads a ``self.model`` that it does not have.
    """

    def __init__(self, max_norm: float, model_key: str | None = None):
        super().__init__(order=CallbackOrder.Backward + 1)
        self.max_norm = max_norm
        self.model_key = model_key

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader:
            model = runner.model if self.model_key is None else runner.model[self.model_key]
            norm = runner.engine.clip_grad_norm_(model.parameters(), self.max_norm)
            runner.batch_metrics["gradient_norm"] = norm


class HistoryCallback(Callback):
    """Keep the metrics of each training step and of each validation.

    Attributes:
        steps: one dict of floats a training step, ``step`` counted from 1.
        validations: one dict of floats a validation, ``step`` being the number of training steps before it.
    """

    def __init__(self):
        super().__init__(order=CallbackOrder.External)

    def on_experiment_start(self, runner) -> None:
        self.steps, self.validations, self._unread = [], [], []

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader:
            self._unread.append(
                {k: v.detach() if torch.is_tensor(v) else v for k, v in runner.batch_metrics.items() if v is not None}
            )

    def on_epoch_end(self, runner) -> None:
        self.read()
        if "valid" in runner.epoch_metrics:
            self.validations.append({"step": len(self.steps), **runner.epoch_metrics["valid"]})

    def read(self) -> None:
        """Turn the tensors kept since the last call into floats; a GPU is waited for here, not at every step."""
        for metrics in self._unread:
            self.steps.append({"step": len(self.steps) + 1, **{key: float(value) for key, value in metrics.items()}})
        self._unread = []


class ProgressCallback(Callback):
    """One bar for the whole run, gone when it ends, with the running loss beside it."""

    def __init__(self, description: str):
        super().__init__(order=CallbackOrder.External)
        self.description = description

    def on_experiment_start(self, runner) -> None:
        steps = runner.num_epochs * len(runner.loaders["train"])
        shown = runner.engine.is_main_process
        self.bar = tqdm(total=steps, desc=self.description, leave=False, file=sys.stdout, disable=not shown, ncols=88)

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader:
            self.bar.update()
            if self.bar.n % 10 == 0:
                self.bar.set_postfix(loss=f"{runner.batch_metrics['loss'].item():.3f}", refresh=False)

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
            shown = {key: value for key, value in metrics.items() if key not in ("lr", "momentum")}
            steps = runner.epoch_step * len(runner.loaders["train"])
            line = "  ".join(f"{key} {float(value):.4g}" for key, value in shown.items())
            tqdm.write(f"step {steps:>4}, validation: {line}")


class LiveCurvesCallback(Callback):
    """Draw the history into the notebook while training goes on: one picture that is replaced, not a row of them.

    Args:
        history: the callback whose records are drawn.
        draw: from (steps, validations), as `HistoryCallback` keeps them, to a matplotlib figure, whose title serves as
            its text alternative.
        seconds: the least time between two pictures.
    """

    def __init__(self, history: HistoryCallback, draw: Callable[[list, list], Figure], seconds: float = 10.0):
        super().__init__(order=CallbackOrder.External + 1)
        self.history, self.draw, self.seconds = history, draw, seconds

    def on_experiment_start(self, runner) -> None:
        self.handle, self.drawn_at = None, time.monotonic()

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
