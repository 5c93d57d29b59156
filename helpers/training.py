"""The two training runs: masked-LM training for the teacher, and the distillation. Knows nothing of records."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from catalyst import dl
from catalyst.core.logger import ILogger
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from helpers.callbacks import LOSS_WEIGHTS_FORM, LOSSES, KLDivLossCallback, PerplexityCallback, are_loss_weights
from helpers.checkpoints import ResumeCallback, StudentCheckpointCallback
from helpers.engine import Engine
from helpers.history import EpochCSVLogger, HistoryCallback, LiveCurvesCallback, ProgressCallback, ValidationLogger
from helpers.models import MaskedPositionLM, head_is_untrained, weights_sha256
from helpers.provenance import ProvenanceCallback
from helpers.runner import DistilMLMRunner, MaskedLMRunner
from helpers.steps import FiniteLossCallback, GradientClippingCallback, StepSchedulerCallback

SEED_STRIDE = 10_000
"""Catalyst seeds each epoch with the run's seed plus the epoch's number: without a stride, neighbours share masks."""


def warmup_steps(steps: int) -> int:
    """6 % of a run's steps."""
    return round(0.06 * steps)


def optimization(model: torch.nn.Module, learning_rate: float, steps: int):
    """AdamW with weight decay 0.01, and a linear schedule: up through `warmup_steps`, then down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps(steps), steps)


def train_masked_lm(
    model: PreTrainedModel,
    loaders: dict[str, DataLoader],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    engine: Engine,
    logdir: str | Path | None = None,
) -> HistoryCallback:
    """Train all of a masked-LM model, in place, by `MaskedLMRunner`; go on where an earlier run in `logdir` stopped.

    Args:
        model: a BERT or DistilBERT with its masked-LM head.
        loaders: dict batches under ``"train"`` and ``"valid"``.
        epochs: how often the training loader is gone through.
        learning_rate: at the end of the warm-up.
        seed: of masks and dropout; the order is the loader's.
        engine: where and in which precision to compute.
        logdir: gets the state to go on from, and where the run came from (see `ProvenanceCallback`); None for neither.

    Returns:
        The history of the run.

    Raises:
        FloatingPointError: the loss became NaN or infinite; the message has the step.
        ValueError: `logdir` holds another run.
    """
    wrapped, history = MaskedPositionLM(model), HistoryCallback()
    optimizer, scheduler = optimization(wrapped, learning_rate, epochs * len(loaders["train"]))
    settings = run_settings(loaders, epochs=epochs, learning_rate=learning_rate, seed=seed)
    keeping = []
    if logdir is not None:
        keeping = [ProvenanceCallback(logdir, settings), ResumeCallback(logdir, settings)]
    try:
        with warnings.catch_warnings():
            # Catalyst asks whether we forgot a callback: the runner does backward pass and step by itself.
            warnings.filterwarnings("ignore", message="No ``I", module="catalyst")
            MaskedLMRunner().train(
                engine=engine,
                model=wrapped,
                optimizer=optimizer,
                scheduler=scheduler,
                loaders=loaders,
                callbacks=[ProgressCallback("masked-LM training"), history, *keeping],
                loggers={"console": ValidationLogger()},
                num_epochs=epochs,
                seed=SEED_STRIDE * seed,
            )
    finally:
        engine.free_memory()
        model.cpu().eval()
    return history


def run_settings(loaders: dict[str, DataLoader], **settings) -> dict:
    """What tells one run from another, whatever makes it: these settings, the rows, and how the steps are cut."""
    train = loaders["train"]
    cut = {"batch_size": train.batch_size, "steps_per_epoch": len(train)}
    return settings | cut | {"rows": _rows_sha256(train.dataset)}


def _rows_sha256(rows: Sequence[Mapping]) -> str:
    """Of how many rows of ``input_ids`` there are, and of a thousand of them: a moment, whatever their number."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for number in np.linspace(0, len(rows) - 1, 1000).astype(int):
        digest.update(np.asarray(rows[int(number)]["input_ids"], dtype=np.int64).tobytes())
    return digest.hexdigest()


def loss_callbacks(weights: dict[str, float], temperature: float) -> list[dl.Callback]:
    """A callback for each loss that has a weight above zero, and the one that adds them up as ``loss``.

    Raises:
        ValueError: an unknown name, or a weight that is negative or no number, or all of them zero.
    """
    if not are_loss_weights(weights):
        raise ValueError(f"loss weights {weights!r}: they have to be {LOSS_WEIGHTS_FORM}.")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    callbacks = [KLDivLossCallback(temperature=temperature) if name == "kl" else LOSSES[name]() for name in used]
    return [*callbacks, dl.MetricAggregationCallback("loss", metrics=used, mode="weighted_sum")]


def check_pair(teacher: PreTrainedModel, student: PreTrainedModel, loss_weights: dict[str, float]) -> None:
    """Raise a ValueError where these losses cannot be taken between this teacher and this student."""
    used = {name for name, weight in loss_weights.items() if weight > 0}
    ours, theirs = student.config, teacher.config
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"the student's vocabulary has {ours.vocab_size:,} tokens, the teacher's {theirs.vocab_size:,}: "
            "they have to share one. Extract the student from this teacher (models.extract_student)."
        )
    if "cosine" in used and ours.hidden_size != theirs.hidden_size:
        raise ValueError(
            f"the student's hidden states have {ours.hidden_size} numbers, the teacher's {theirs.hidden_size}: "
            "the cosine loss compares vectors of one size. Leave it out of LOSS_WEIGHTS."
        )
    if used & {"kl", "mse"} and head_is_untrained(teacher):
        raise ValueError(
            "the teacher has no trained masked-LM head, so its logits teach nothing. Take it from "
            "experiment.ensure_teacher, which trains one, or leave kl and mse out of LOSS_WEIGHTS."
        )


def distill(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    loaders: dict[str, DataLoader],
    *,
    epochs: int,
    learning_rate: float,
    loss_weights: dict[str, float],
    temperature: float,
    seed: int,
    engine: Engine,
    logdir: str | Path,
    callbacks: Sequence[dl.Callback] = (),
    loggers: Mapping[str, ILogger] | None = None,
    draw=None,
) -> HistoryCallback:
    """Distil the teacher into the student, in place; the student ends with the weights of its best validation.

    A run that was stopped goes on after its last epoch, if it is called again with the same `logdir` and settings.

    Args:
        teacher: a masked-LM model; it is left without `requires_grad`.
        student: a masked-LM model of the same vocabulary.
        loaders: dict batches under ``"train"`` and ``"valid"``.
        epochs: how often the training loader is gone through.
        learning_rate: at the end of the warm-up.
        loss_weights: from the names in `LOSSES` to the weights of the sum.
        temperature: of the KL loss.
        seed: of masks and dropout; the order is the loader's.
        engine: where and in which precision to compute.
        logdir: gets ``best/`` and ``last/`` (students that `transformers` loads), metrics as CSV and TensorBoard, the
            state to go on from, and where the run came from (see `ProvenanceCallback`).
        callbacks: further ones, after those that every distillation has. To go on exactly, one with a state of its own
            needs `state_dict` and `load_state_dict`.
        loggers: further ones by name, beside the CSV and TensorBoard files that Catalyst writes into `logdir`.
        draw: from (steps, validations) to a figure that is shown while training goes on.

    Returns:
        The history of the run.

    Raises:
        ValueError: the losses, or teacher and student, do not fit (see `loss_callbacks` and `check_pair`), or `logdir`
            holds another run.
        FloatingPointError: a loss became NaN or infinite; the message has the step.
    """
    measures = loss_callbacks(loss_weights, temperature)
    check_pair(teacher, student, loss_weights)
    models = {"teacher": MaskedPositionLM(teacher), "student": MaskedPositionLM(student)}
    optimizer, scheduler = optimization(models["student"], learning_rate, epochs * len(loaders["train"]))
    history = HistoryCallback()
    options = {"loss_weights": loss_weights, "temperature": temperature, "teacher": weights_sha256(teacher)}
    # Not the student's weights: who runs a cell again after an interrupt passes the student as it then was.
    options |= {"layers": getattr(student.config, "teacher_layers", None)}
    settings = run_settings(loaders, epochs=epochs, learning_rate=learning_rate, seed=seed, **options)
    callbacks = [
        ProvenanceCallback(logdir, settings),
        *measures,
        PerplexityCallback(),
        FiniteLossCallback(),
        dl.BackwardCallback(metric_key="loss"),
        GradientClippingCallback(max_norm=1.0, model_key="student"),
        dl.OptimizerCallback(metric_key="loss"),
        StepSchedulerCallback(),
        StudentCheckpointCallback(logdir),
        ProgressCallback("distillation"),
        history,
        *callbacks,
        ResumeCallback(logdir, settings, model_key="student"),
    ]
    if draw is not None:
        callbacks.append(LiveCurvesCallback(history, draw))
    try:
        DistilMLMRunner().train(
            engine=engine,
            model=models,
            optimizer=optimizer,
            scheduler=scheduler,
            loaders=loaders,
            callbacks=callbacks,
            loggers={"console": ValidationLogger(), "csv": EpochCSVLogger(logdir), **(loggers or {})},
            logdir=str(logdir),
            num_epochs=epochs,
            seed=SEED_STRIDE * seed,
            valid_loader="valid",
            valid_metric="loss",
            minimize_valid_metric=True,
        )
    finally:
        engine.free_memory()
        student.cpu().eval()
        teacher.cpu()
    return history
