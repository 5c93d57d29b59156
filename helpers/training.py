"""The one training run that all trainings go through, and the two of masked-LM models. Knows nothing of records."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalyst import dl
from catalyst.core.logger import ILogger
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from helpers.callbacks import LOSSES, KLDivLossCallback, LayerLossCallback, PerplexityCallback, weighted_sum
from helpers.catalyst_today.checkpoints import CheckpointCallback, ResumeCallback
from helpers.catalyst_today.engine import Engine
from helpers.catalyst_today.history import (
    EpochCSVLogger,
    EpochTensorboardLogger,
    History,
    HistoryCallback,
    ProgressCallback,
    ValidationLogger,
)
from helpers.catalyst_today.provenance import ProvenanceCallback
from helpers.catalyst_today.steps import (
    FastTrainingCallback,
    FiniteLossCallback,
    GradientClippingCallback,
    StepSchedulerCallback,
    weights_to_train,
)
from helpers.models import MaskedPositionLM, head_is_untrained, weights_sha256
from helpers.runner import DistilMLMRunner, MaskedLMRunner, distillation_models

Trainable = PreTrainedModel | MaskedPositionLM
"""What `fit` trains: it has a config, and `save_pretrained`."""
SEED_STRIDE = 10_000
"""Catalyst seeds each epoch with the run's seed plus the epoch's number: without a stride, neighbours share masks."""


def run_seed(seed: int) -> int:
    """The seed that Catalyst is given: `SEED_STRIDE` times `seed`, or a hash of a seed for which numpy has no room."""
    room = 2**32 - SEED_STRIDE  # numpy takes 32 bits; the epoch's number is added
    if SEED_STRIDE * seed <= room:
        return SEED_STRIDE * seed
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) % room


def warmup_steps(steps: int) -> int:
    """6 % of a run's steps."""
    return round(0.06 * steps)


def optimization(model: Trainable | dict[str, torch.nn.Module], learning_rate: float, steps: int):
    """AdamW with weight decay 0.01, and a linear schedule: up through `warmup_steps`, then down to zero."""
    optimizer = torch.optim.AdamW(weights_to_train(model), lr=learning_rate, weight_decay=0.01, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps(steps), steps)


def run_callbacks(
    measures: Mapping[str, dl.Callback],
    *,
    name: str,
    keep: str,
    logdir: str | Path | None,
    settings: Mapping[str, Any] | None,
) -> dict[str, dl.Callback]:
    """What a run does with a batch after its runner, and with an epoch: the one list of callbacks.

    Args:
        measures, name, keep, logdir: see `fit`.
        settings: what tells the run from others, as `run_settings` gives it; None will do without a logdir.
    """
    callbacks = {
        "fast": FastTrainingCallback(),
        **measures,
        "finite": FiniteLossCallback(),
        "backward": dl.BackwardCallback(metric_key="loss"),
        "clipping": GradientClippingCallback(max_norm=1.0),
        "optimizer": dl.OptimizerCallback(metric_key="loss"),
        "schedule": StepSchedulerCallback(),
        "checkpoints": CheckpointCallback(keep, logdir),
        "progress": ProgressCallback(name),
        "history": HistoryCallback(),
    }
    if logdir is not None:
        callbacks["resume"] = ResumeCallback(logdir, settings)
        callbacks["provenance"] = ProvenanceCallback(logdir, settings)
    return callbacks


def run_loggers(logdir: str | Path | None) -> dict[str, ILogger]:
    """A line for each validation and, where there is a logdir, metrics as CSV and for TensorBoard."""
    loggers = {"console": ValidationLogger()}
    if logdir is not None:
        loggers |= {"csv": EpochCSVLogger(logdir), "tensorboard": EpochTensorboardLogger(logdir)}
    return loggers


def run_settings(loaders: dict[str, DataLoader], **settings) -> dict[str, Any]:
    """What tells one run from another, whatever makes it: these settings, the rows, and how the steps are cut."""
    train = loaders["train"]
    cut = {"batch_size": train.batch_size, "steps_per_epoch": len(train)}
    return settings | cut | {"rows": _rows_sha256(train.dataset)}


def _rows_sha256(rows: Sequence[Mapping]) -> str:
    """A hash of the number of rows and of a thousand of them, so that it takes a moment whatever their number."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for number in np.linspace(0, len(rows) - 1, 1000).astype(int):
        row = rows[int(number)]
        for column in sorted(row):
            digest.update(np.asarray(row[column]).tobytes())
    return digest.hexdigest()


def fit(
    runner: dl.Runner,
    model: Trainable | dict[str, torch.nn.Module],
    measures: Mapping[str, dl.Callback],
    loaders: dict[str, DataLoader],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    engine: Engine,
    name: str,
    keep: str = "best",
    logdir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[dl.Callback] = (),
    loggers: Mapping[str, ILogger] | None = None,
) -> History:
    """Train a model in place; with a logdir, go on where an earlier run of the same settings stopped there.

    For each batch Catalyst calls the runner's `handle_batch`, then `on_batch_end` of every callback, sorted by its
    ``order``: the losses and their sum, the check for NaN, backward pass, clipping, optimizer step, schedule. After an
    epoch it calls `on_epoch_end` of each: checkpoints, history, the state to go on from.

    A run that does not come to its end, by an error or an interrupt, leaves the weights as they were before: called
    again, it goes on from the logdir's state, or from the beginning where there is none. A model that a run has
    trained to its end is another one; to call that run again with its logdir, make the model anew. All end on the CPU.

    Args:
        runner: its `handle_batch` runs the model on a batch.
        model: the model to train; or a dict of models: all but ``"teacher"`` are trained, ``"student"`` is saved.
        measures: callbacks by name, one of which leaves the sum of the losses as ``loss`` (see `weighted_sum`).
        loaders: dict batches under ``"train"`` and ``"valid"``. The dataset of ``"train"`` has a length, and its rows
            are dicts of numbers or of lists of numbers.
        epochs: how often the training loader is gone through, at least once; after each, the validation loader. The
            loaders here give other rows each time: an epoch is what lies between two validations.
        learning_rate: at the end of the warm-up; see `optimization`.
        seed: of masks and dropout; the order is the loader's.
        engine: where and in which precision to compute.
        name: what the progress bar calls the run.
        keep: ``"best"``, and the model ends with the weights of the validation whose ``loss`` was the least; or
            ``"last"``, and it ends with those after the last step.
        logdir: gets ``best/`` and ``last/`` (folders that `transformers` loads), metrics as CSV and for TensorBoard,
            the state to go on from, and where the run came from (see `ProvenanceCallback`). None for none of it.
        settings: what tells this run from others, as JSON has it, beside epochs, rate, seed, `keep`, the model's
            weights, the rows and the batches.
        callbacks: further ones. To go on exactly, one with a state of its own needs `state_dict` and
            `load_state_dict`; `dl.EarlyStoppingCallback` is known here.
        loggers: further ones by name, or others in place of `run_loggers`' own.

    Returns:
        What was measured.

    Raises:
        FloatingPointError: a loss became NaN or infinite; the message has the step.
        ValueError: `logdir` holds another run, or `epochs` is below 1.
        OSError: `logdir` cannot be written, or its disk has too little room.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: the training loader is gone through once at least.")
    models = model if isinstance(model, dict) else {"student": model}
    student = models["student"]
    optimizer, scheduler = optimization(models, learning_rate, epochs * len(loaders["train"]))
    settings = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed, "keep": keep, **(settings or {})}
    if logdir is not None:
        settings = run_settings(loaders, **settings, model=weights_sha256(student))
    listed = run_callbacks(measures, name=name, keep=keep, logdir=logdir, settings=settings)
    before = copy.deepcopy(student.state_dict())
    try:
        runner.train(
            engine=engine,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            loaders=loaders,
            callbacks={**listed, **{f"further {number}": further for number, further in enumerate(callbacks, 1)}},
            loggers=run_loggers(logdir) | dict(loggers or {}),
            logdir=None if logdir is None else str(logdir),
            hparams=settings,
            num_epochs=epochs,
            seed=run_seed(seed),
            valid_loader="valid",
            valid_metric="loss",
            minimize_valid_metric=True,
        )
    except BaseException:
        has_ended = runner.need_early_stop or len(listed["history"].validations) == epochs
        if not has_ended:  # what fails after the last step costs no training
            student.load_state_dict(before)
        raise
    finally:
        engine.free_memory()
        for each in models.values():
            for forward in ("forward", "_original_forward"):  # with autocast: accelerate has put it before the class's
                vars(each).pop(forward, None)
            each.cpu()
        student.zero_grad()  # of a step that was not made
        student.eval()
    return History(listed["history"].steps, listed["history"].validations, listed["checkpoints"].kept)


def masked_lm_measures(loss_weights: dict[str, float], temperature: float) -> dict[str, dl.Callback]:
    """The losses that have a weight, their sum as ``loss``, and the perplexity. ValueError: see `weighted_sum`."""
    losses = {name: make() for name, make in LOSSES.items()} | {"kl": KLDivLossCallback(temperature=temperature)}
    return {**weighted_sum(loss_weights, losses), "perplexity": PerplexityCallback()}


def train_masked_lm(
    model: PreTrainedModel, loaders: dict[str, DataLoader], *, name: str = "masked-LM training", **options
) -> History:
    """Train all of a masked-LM model in place, without a teacher.

    Args:
        model: a masked-LM model of `models.FAMILIES`.
        loaders, name, options: see `fit`.

    Returns:
        The history: ``loss``, ``mlm`` (the same) and ``perplexity``.
    """
    measures = masked_lm_measures({"mlm": 1.0}, temperature=1.0)
    return fit(MaskedLMRunner(), MaskedPositionLM(model), measures, loaders, name=name, **options)


def check_shapes(teacher: PreTrainedModel, student: PreTrainedModel, loss_weights: dict[str, float]) -> None:
    """Raise a ValueError where these losses cannot be taken between models of these shapes."""
    ours, theirs = student.config, teacher.config
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"the student's vocabulary has {ours.vocab_size:,} tokens, the teacher's {theirs.vocab_size:,}: "
            "they have to share one. Extract the student from this teacher (models.extract_student)."
        )
    for name, weight in loss_weights.items():
        if weight > 0 and isinstance(loss := LOSSES[name](), LayerLossCallback):
            loss.check(ours, theirs)


def distill(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    loaders: dict[str, DataLoader],
    *,
    loss_weights: dict[str, float],
    temperature: float,
    name: str = "distillation",
    **options,
) -> History:
    """Distil the teacher into the student, in place.

    Masked LM alone (``{"mlm": 1.0}``) does not need the teacher, so it is not run.

    Args:
        teacher: a masked-LM model; where it is run, it is left without `requires_grad`.
        student: a masked-LM model of the same vocabulary.
        loss_weights: from the names in `LOSSES` to the weights of the sum.
        temperature: of the KL loss.
        loaders, name, options: see `fit`.

    Returns:
        The history: ``loss``, each loss that has a weight, and ``perplexity``.

    Raises:
        ValueError: the losses, or teacher and student, do not fit (see `weighted_sum` and `check_shapes`), or the
            teacher's head is untrained and a loss needs its logits.
    """
    measures = masked_lm_measures(loss_weights, temperature)
    check_shapes(teacher, student, loss_weights)
    if loss_weights.get("kl", 0) + loss_weights.get("mse", 0) > 0 and head_is_untrained(teacher):
        raise ValueError(
            "the teacher has no trained masked-LM head, so its logits teach nothing. Take it from "
            "experiment.ensure_teacher, which trains one, or leave kl and mse out of LOSS_WEIGHTS."
        )
    settings = {"loss_weights": loss_weights, "temperature": temperature}
    settings |= {"layers": getattr(student.config, "teacher_layers", None)}
    if options.get("logdir") is not None:  # a hash of all its weights takes a second
        settings["teacher"] = weights_sha256(teacher)
    options |= {"name": name, "settings": settings | (options.get("settings") or {})}
    if {loss for loss, weight in loss_weights.items() if weight > 0} == {"mlm"}:
        return fit(MaskedLMRunner(), MaskedPositionLM(student), measures, loaders, **options)
    models = distillation_models(teacher, student, loss_weights, options["seed"])
    return fit(DistilMLMRunner(), models, measures, loaders, **options)
