"""What a run leaves in its logdir. Knows nothing of losses."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from catalyst.callbacks.misc import EarlyStoppingCallback
from catalyst.core.callback import Callback, CallbackOrder, ICheckpointCallback
from catalyst.core.logger import ILogger
from huggingface_hub import ModelCard

from helpers.catalyst_today.history import OPTIMIZER_METRICS
from helpers.catalyst_today.saving import WRITING, save_folder, written_beside
from helpers.catalyst_today.steps import trained_model, trained_models
from helpers.models import LogitsAlone


class CheckpointCallback(ICheckpointCallback):
    """Watch the validations, end the run with the weights that it is to keep, and save them on the way.

    The one rule for what a run ends with: ``"best"`` are the weights of the validation whose `metric_key` was the
    least, the first of equal ones; ``"last"`` are those after the last step.

    With a logdir, the folders ``last/`` and ``best/`` in it, which `transformers` loads, are written after each epoch
    and after each validation that is the best so far, whichever of them the run is to keep.

    Upstream's ``CheckpointCallback`` would save the teacher along with the student each time, and writes the *current*
    weights into ``model.best.pth`` after an epoch that was not the best.

    Args:
        keep: ``"best"`` or ``"last"``.
        logdir: the folder of ``last/`` and ``best/``; None saves nothing.
        metric_key: the validation metric that is to become small.
        tokenizer: saved beside the weights, if there is one.
        card: from the steps that the weights have seen (those among them that float16's loss scaler left out count)
            and their validation metrics to their model card.

    Attributes:
        kept: the validation of the weights that the run would keep if it ended now, ``step`` among its numbers.
    """

    def __init__(
        self,
        keep: str,
        logdir: str | Path | None = None,
        metric_key: str = "loss",
        tokenizer=None,
        card: Callable[[int, dict[str, float]], ModelCard] | None = None,
    ):
        super().__init__()
        if keep not in ("best", "last"):
            raise ValueError(f"keep is {keep!r}: choose 'best' or 'last'.")
        self.keep, self.metric_key, self.card = keep, metric_key, card
        self.logdir = None if logdir is None else Path(logdir)
        self.beside = [] if tokenizer is None else [tokenizer]

    def on_experiment_start(self, runner) -> None:
        self.best_score, self.best_weights, self.kept = float("inf"), {}, {}

    def state_dict(self) -> dict:
        """What a resumed run needs: see `ResumeCallback`."""
        return {"best_score": self.best_score, "best_weights": self.best_weights, "kept": self.kept}

    def load_state_dict(self, state: dict) -> None:
        """Remember what was the best so far."""
        self.best_score, self.best_weights, self.kept = (state[key] for key in ("best_score", "best_weights", "kept"))

    def on_epoch_end(self, runner) -> None:
        metrics, steps = runner.epoch_metrics["valid"], runner.epoch_step * len(runner.loaders["train"])
        metrics = {name: value for name, value in metrics.items() if name not in OPTIMIZER_METRICS}
        score = metrics[self.metric_key]
        if not math.isfinite(score):
            has_saved = self.logdir is not None and self.best_score < math.inf
            kept = f" The best weights so far are in {self.logdir.name}/best." if has_saved else ""
            raise FloatingPointError(
                f"the validation {self.metric_key} of epoch {runner.epoch_step} is {score}: lower LEARNING_RATE.{kept}"
            )
        folders, is_best = ["last"], score < self.best_score
        if is_best:
            self.best_score = score
            folders.append("best")
        if is_best or self.keep == "last":
            self.kept = {"step": steps, **metrics}
        if is_best and self.keep == "best":
            weights = trained_model(runner).state_dict()
            self.best_weights = copy.deepcopy({name: weight.cpu() for name, weight in weights.items()})
        if self.logdir is not None and runner.engine.is_main_process:
            card = None if self.card is None else self.card(steps, metrics)
            for folder in folders:
                save_folder(self.logdir / folder, trained_model(runner), *self.beside, card=card)

    def on_experiment_end(self, runner) -> None:
        """Go back to the best weights, so that what is used afterwards is what was chosen."""
        if self.keep == "best":
            trained_model(runner).load_state_dict(self.best_weights)


STATE_OF_CATALYSTS = {EarlyStoppingCallback: ("best_score", "num_no_improvement_epochs")}
"""Callbacks of Catalyst that have a state and no way to give it: what it consists of."""


def has_state(part: Callback | ILogger) -> bool:
    """True for a callback or logger that a resumed run has to put back."""
    own = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
    return own or isinstance(part, tuple(STATE_OF_CATALYSTS))


def state_of(part: Callback | ILogger) -> dict[str, Any]:
    """The state of a callback or logger that has one."""
    if hasattr(part, "state_dict"):
        return part.state_dict()
    (names,) = (names for kind, names in STATE_OF_CATALYSTS.items() if isinstance(part, kind))
    return {name: getattr(part, name) for name in names}


def put_back(part: Callback | ILogger, state: dict[str, Any]) -> None:
    """Give a callback or logger the state that `state_of` has told."""
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    else:
        for name, value in state.items():
            setattr(part, name, value)


class ResumeCallback(Callback):
    """Keep, in one file, what a run needs to go on; and go on where there is such a file.

    It is written after an epoch: the last one, and any other if the file before it is older than `seconds`.

    The file holds the trained model, a projection that is trained beside it, their optimizer and schedule, float16's
    loss scaler, the number of the epoch, and the state of every callback and logger that has `state_dict` and
    `load_state_dict`, or is in `STATE_OF_CATALYSTS`.
    Random numbers and the place in the data are functions of the seed and the epoch's number (Catalyst seeds each
    epoch, `EndlessShuffle` orders it), so on one processor a run that was stopped ends with the very weights of one
    that was not. The number of processes may change.

    All processes of a run need to see the file: on several machines, a folder that they share.

    Args:
        logdir: the folder of ``state.pt``, which `torch` reads with ``weights_only``: no code in it is ever run.
        settings: what makes this run this run, as numbers and texts; the file of another run is refused.
        seconds: see above; a state is four times as large as the model.
    """

    def __init__(self, logdir: str | Path, settings: dict[str, Any], seconds: float = 60.0):
        super().__init__(order=CallbackOrder.External + 10)  # when all others have done their part of an epoch
        self.file, self.settings, self.seconds = Path(logdir) / "state.pt", settings, seconds

    def on_experiment_start(self, runner) -> None:
        """Make sure that there is room, and go on from the file, if it is there.

        Raises:
            ValueError: the file is damaged, or that of another run or model.
            OSError: the folder cannot be written, or its disk has too little room.
        """
        self.written_at = time.monotonic()
        if runner.engine.is_main_process:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for left in self.file.parent.glob(WRITING + "*"):  # where a run was killed amid a write
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._check_room(trained_model(runner))
        runner.engine.wait_for_everyone()
        state = self._read()
        epoch = torch.tensor(0 if state is None else state["epoch"], device=runner.engine.device)
        if len(set(runner.engine.gather(epoch[None]).tolist())) > 1:
            raise ValueError(
                f"{self.file}: only some of the processes see it. Put the logdir into a folder they share."
            )
        if state is not None:
            self._load(state, runner)

    def _check_room(self, model: torch.nn.Module) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        # Best and last weights and a third while it is written; of the state, four times as large, two.
        wanted, free = 11 * size, shutil.disk_usage(self.file.parent).free
        if free < wanted:
            raise OSError(
                f"{self.file.parent}: {free / 1e9:.2f} GB are free, and the run writes up to {wanted / 1e9:.2f} GB. "
                "Make room, or set OUTPUT_DIR to another disk."
            )
        with tempfile.TemporaryFile(dir=self.file.parent):
            pass

    def _read(self) -> dict[str, Any] | None:
        if not self.file.exists():
            return None
        try:
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            settings = state["settings"]
        except (RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.file}: damaged, or no state of a run ({type(error).__name__}). Nothing was overwritten: move "
                "it away, and the run begins anew."
            ) from error
        different = [name for name in self.settings if settings.get(name) != self.settings[name]]
        if different == ["model"]:
            raise ValueError(
                f"{self.file}: of a run that started from another model. One that has been trained since then is "
                "another, too: make it anew. Nothing was overwritten: or take another logdir."
            )
        if different:
            name = different[0]
            raise ValueError(
                f"{self.file}: of another run, with {name} {settings.get(name)!r} where this one has "
                f"{self.settings[name]!r}. Nothing was overwritten: take another logdir, or move that one away."
            )
        return state

    def _load(self, state: dict[str, Any], runner) -> None:
        model = trained_model(runner)
        kept, own = (
            {name: tuple(x.shape) for name, x in each.items()} for each in (state["model"], model.state_dict())
        )
        if kept != own:
            name = next(name for name in [*own, *kept] if kept.get(name) != own.get(name))
            raise ValueError(
                f"{self.file}: of another model: {name} is {kept.get(name, 'not there')} in it, and "
                f"{own.get(name, 'not there')} here. Nothing was overwritten: take another logdir."
            )
        parts = self._with_state(runner)
        unknown, left = parts.keys() - state["callbacks"], state["callbacks"].keys() - parts
        if unknown or (left and runner.engine.is_main_process):  # the other processes have no loggers
            raise ValueError(
                f"{self.file}: of another run, with the callbacks and loggers {', '.join(state['callbacks'])} where "
                f"this one has {', '.join(parts)}. Nothing was overwritten: take another logdir, or move that one away."
            )
        model.load_state_dict(state["model"])
        for other, kept in zip(trained_models(runner.model)[1:], state.get("others", []), strict=True):
            runner.engine.unwrap_model(other).load_state_dict(kept)
        runner.optimizer.load_state_dict(state["optimizer"])
        runner.scheduler.load_state_dict(state["scheduler"])
        if runner.engine.scaler is not None and state["scaler"] is not None:
            runner.engine.scaler.load_state_dict(state["scaler"])
        for name, part in parts.items():
            put_back(part, state["callbacks"][name])
        runner.epoch_step, runner.batch_step, runner.sample_step = (state[key] for key in COUNTERS)
        runner.need_early_stop = state["stopped"]
        for loader in runner.loaders.values():
            loader.set_epoch(runner.epoch_step)
        if runner.engine.is_main_process:
            print(f"Goes on after epoch {runner.epoch_step} of {runner.num_epochs}, from {self.file.name}.")

    def _with_state(self, runner) -> dict[str, Callback | ILogger]:
        parts = [*runner.callbacks.values(), *runner.loggers.values()]
        with_state = [part for part in parts if has_state(part)]
        return {f"{type(part).__name__} {number}": part for number, part in enumerate(with_state, 1)}

    def on_epoch_end(self, runner) -> None:
        is_last = runner.epoch_step == runner.num_epochs or runner.need_early_stop
        is_due = time.monotonic() - self.written_at > self.seconds
        if not runner.engine.is_main_process or not (is_last or is_due):
            return
        state = {
            "settings": self.settings,
            "stopped": runner.need_early_stop,
            **dict(zip(COUNTERS, (runner.epoch_step, runner.batch_step, runner.sample_step), strict=True)),
            "model": trained_model(runner).state_dict(),
            "others": [runner.engine.unwrap_model(each).state_dict() for each in trained_models(runner.model)[1:]],
            "optimizer": runner.optimizer.state_dict(),
            "scheduler": runner.scheduler.state_dict(),
            "scaler": None if runner.engine.scaler is None else runner.engine.scaler.state_dict(),
            "callbacks": {name: state_of(part) for name, part in self._with_state(runner).items()},
        }
        with written_beside(self.file) as beside:
            torch.save(state, beside)
        self.written_at = time.monotonic()


COUNTERS = ("epoch", "batches", "samples")
"""The keys under which Catalyst's counters stand in the file."""


class TracingCallback(Callback):
    """Trace the student when the run has ended, into one file that runs where there is torch and nothing else.

    ``torch.export.load(file).module()(input_ids, attention_mask)`` takes two (batch, length) int64 tensors of any batch
    and of any length from 2 that the student has positions for, and gives logits (batch, length, vocabulary) in float32
    on the CPU. Upstream's ``TracingCallback`` is commented out, and torch.jit.trace, on which it stood, is deprecated.

    Args:
        file: the file to write, by custom ``.pt2``.
    """

    def __init__(self, file: str | Path):
        super().__init__(order=CallbackOrder.External)  # after the checkpoints, which go back to the best weights
        self.file = Path(file)

    def on_experiment_end(self, runner) -> None:
        if not runner.engine.is_main_process:
            return
        student = copy.deepcopy(trained_model(runner).model).cpu().eval()
        batch, length = (
            torch.export.Dim("batch"),
            torch.export.Dim("length", min=2, max=student.config.max_position_embeddings),
        )
        # With a row of padding: transformers leaves the mask out where every token is attended.
        ids, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        program = torch.export.export(
            LogitsAlone(student), (ids, mask), dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length})
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(self.file) as beside:
            torch.export.save(program, beside)
