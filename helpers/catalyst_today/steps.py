"""What stands between a batch's loss and the optimizer's step, as Catalyst callbacks. Knows nothing of the losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import torch
from catalyst import dl
from catalyst.core.callback import Callback, CallbackOrder
from torch.nn.parallel import DistributedDataParallel

from helpers.catalyst_today.fast_cpu import fast_training
from helpers.data import IGNORED
from helpers.models import MaskedPositionLM


def prepared_model(runner) -> torch.nn.Module:
    """The model that a run trains, as the engine has prepared it: the runner's, or ``"student"`` of its several."""
    return runner.model["student"] if isinstance(runner.model, dict) else runner.model


def trained_models(model: torch.nn.Module | dict[str, torch.nn.Module]) -> list[torch.nn.Module]:
    """What a run trains of the models that its runner takes: all but the teacher, the student first."""
    if not isinstance(model, dict):
        return [model]
    return [model["student"], *(each for name, each in model.items() if name not in ("teacher", "student"))]


def weights_to_train(model: torch.nn.Module | dict[str, torch.nn.Module]) -> list[torch.nn.Parameter]:
    """The weights of `trained_models`, which an optimizer gets."""
    return [weight for each in trained_models(model) for weight in each.parameters()]


def trained_model(runner) -> torch.nn.Module:
    """The same, without what the engine has put around it."""
    return runner.engine.unwrap_model(prepared_model(runner))


class FastTrainingCallback(Callback):
    """`fast_cpu.fast_training` for the model that a run trains, from its start to its end."""

    def __init__(self):
        super().__init__(order=CallbackOrder.Internal)
        self.replaced = ExitStack()

    def on_experiment_start(self, runner) -> None:
        model = trained_model(runner)
        self.replaced.enter_context(fast_training(model.model if isinstance(model, MaskedPositionLM) else model))

    def on_experiment_end(self, runner) -> None:
        self.replaced.close()

    def on_exception(self, runner) -> None:
        self.replaced.close()


class FiniteLossCallback(Callback):
    """Stop the run where the loss of a training step is NaN or infinite, before the backward pass.

    Raises:
        FloatingPointError: with the number of the step, counted from 1, and the parts of the loss that are not finite.
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
        if not math.isfinite(value := parts.pop(self.metric_key).item()):  # a GPU is waited for here
            numbers = {key: part.item() for key, part in parts.items()}
            detail = "".join(f", {key} {number}" for key, number in numbers.items() if not math.isfinite(number))
            raise FloatingPointError(
                f"step {self.steps + 1}: the loss is {value}{detail}. Lower LEARNING_RATE, or look for what is wrong "
                "in the models' weights. What was saved before is kept."
            )
        self.steps += runner.engine.sync_gradients


def micro_batches(loader: Iterable[dict[str, torch.Tensor]], parts: int) -> Iterator[dict[str, torch.Tensor | bool]]:
    """Cut each batch of a loader into `parts` along its rows (fewer, where it has fewer rows).

    A micro-batch holds its part of what the batch holds, and four more keys: ``step_ends``, True in the last one, and
    of the whole batch the numbers of tokens, or texts, that a loss is a mean over: ``step_labels`` (those with a
    label), ``step_logits`` (those with logits: each masked token, or each text) and ``step_attended`` (tokens).
    """
    for batch in loader:
        labels = (batch["labels"] != IGNORED).sum()
        counts = {"step_labels": labels, "step_logits": labels if batch["labels"].dim() > 1 else len(batch["labels"])}
        counts["step_attended"] = batch["attention_mask"].sum()
        pieces = min(parts, len(batch["input_ids"]))
        cut = {key: tensor.tensor_split(pieces) for key, tensor in batch.items()}
        for piece in range(pieces):
            part = {key: tensors[piece] for key, tensors in cut.items()}
            yield part | counts | {"step_ends": piece == pieces - 1}


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
        for model in trained_models(runner.model):
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
    """Scale the gradient down to norm `max_norm` between the backward pass and the step.

    Upstream's ``BackwardCallback(grad_clip_fn=...)`` reads a ``self.model`` that it does not have.
    """

    def __init__(self, max_norm: float):
        super().__init__(order=CallbackOrder.Backward + 1)
        self.max_norm = max_norm

    def on_batch_end(self, runner) -> None:
        if runner.is_train_loader and runner.engine.sync_gradients:
            norm = runner.engine.clip_grad_norm_(weights_to_train(runner.model), self.max_norm)
            runner.batch_metrics["gradient_norm"] = norm
