"""What stands between a batch's loss and the optimizer's step, as Catalyst callbacks. Knows nothing of the losses."""

from __future__ import annotations

import math

import torch
from catalyst import dl
from catalyst.core.callback import Callback, CallbackOrder
from torch.nn.parallel import DistributedDataParallel

from helpers.batches import micro_batches


def check_finite(loss: torch.Tensor, where: str, parts: dict[str, torch.Tensor] | None = None) -> None:
    """Raise a FloatingPointError that says where, if the loss, a scalar, is NaN or infinite; a GPU is waited for."""
    if not math.isfinite(value := loss.item()):
        numbers = {key: part.item() for key, part in (parts or {}).items()}
        detail = "".join(f", {key} {number}" for key, number in numbers.items() if not math.isfinite(number))
        raise FloatingPointError(
            f"{where}: the loss is {value}{detail}. Lower LEARNING_RATE, or look for what is wrong in the models' "
            "weights. What was saved before is kept."
        )


class FiniteLossCallback(Callback):
    """Stop the run where the loss of a training step is NaN or infinite, before the backward pass.

    Raises:
        FloatingPointError: with the number of the step, counted from 1, and the parts of the loss that are no numbers.
    """

    def __init__(self, metric_key: str = "loss"):
        super().__init__(order=CallbackOrder.MetricAggregation + 1)
        self.metric_key = metric_key

    def on_experiment_start(self, runner) -> None:
        self.steps = 0

    def state_dict(self) -> dict:
        """What a resumed run needs: see `checkpoints.ResumeCallback`."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on counting from there."""
        self.steps = state["steps"]

    def on_batch_end(self, runner) -> None:
        if not runner.is_train_loader:
            return
        parts = {key: value for key, value in runner.batch_metrics.items() if torch.is_tensor(value)}
        loss = parts.pop(self.metric_key)
        check_finite(loss, f"step {self.steps + 1}", parts)
        self.steps += runner.engine.sync_gradients


class AccumulationCallback(Callback):
    """Compute each training batch in `parts` micro-batches: the gradient of the whole, with the memory of a part.

    Upstream's ``OptimizerCallback(accumulation_steps=n)`` adds up the means of n batches: a gradient n times as large,
    in which a masked token counts the more the fewer its batch has. Here the losses divide by the step's own counts.
    The optimizer that the engine has prepared stands still until the last micro-batch, and so do clipping and schedule.

    Args:
        parts: micro-batches in a batch, at least 1.
    """

    def __init__(self, parts: int):
        super().__init__(order=CallbackOrder.Internal)
        if parts < 1:
            raise ValueError(f"parts is {parts}: a batch is cut into 1 part at least.")
        self.parts = parts

    def on_loader_start(self, runner) -> None:
        if runner.is_train_loader:
            runner.loader = micro_batches(runner.loader, self.parts)

    def on_batch_start(self, runner) -> None:
        runner.engine.sync_gradients = runner.batch.get("step_ends", True)
        # Between processes, gradients travel once a step and not once a micro-batch.
        for model in runner.model.values() if isinstance(runner.model, dict) else [runner.model]:
            if isinstance(model, DistributedDataParallel):
                model.require_backward_grad_sync = runner.engine.sync_gradients

    def on_exception(self, runner) -> None:
        # accelerate keeps this in a class: the next run in this process would stand still.
        runner.engine.sync_gradients = True


class StepSchedulerCallback(dl.SchedulerCallback):
    """Catalyst's scheduler callback, once an optimizer step and not once a micro-batch.

    The ``lr`` that it leaves in the step's metrics is the one that the step was made with, not the next step's.
    """

    def __init__(self):
        super().__init__(mode="batch")

    def on_batch_end(self, runner) -> None:
        # With float16 the scaler leaves out a step whose gradient is infinite; the schedule then waits for it.
        if runner.engine.sync_gradients and not runner.engine.optimizer_step_was_skipped:
            used = runner.batch_metrics["lr"]
            super().on_batch_end(runner)
            runner.batch_metrics["lr"] = used


class GradientClippingCallback(Callback):
    """Scale the student's gradient down to norm `max_norm` between the backward pass and the step.

    Upstream's ``BackwardCallback(grad_clip_fn=...)`` reads a ``self.model`` that it does not have.
    """

    def __init__(self, max_norm: float, model_key: str | None = None):
        super().__init__(order=CallbackOrder.Backward + 1)
        self.max_norm = max_norm
        self.model_key = model_key

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader and runner.engine.sync_gradients:
            model = runner.model if self.model_key is None else runner.model[self.model_key]
            norm = runner.engine.clip_grad_norm_(model.parameters(), self.max_norm)
            runner.batch_metrics["gradient_norm"] = norm
