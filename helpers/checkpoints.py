"""What a run leaves in its logdir. Knows nothing of losses."""

from __future__ import annotations

import copy
import math
import os
import tempfile
from pathlib import Path

import torch
from catalyst.core.callback import Callback, CallbackOrder, ICheckpointCallback
from safetensors.torch import load_model

from helpers.models import quiet_transformers


def save_folder(folder: Path, *savers) -> None:
    """Let each saver's ``save_pretrained`` write into a folder beside `folder`, then move the files into place.

    Each file is whole at any moment: the one from before, or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as writing:
        for saver in savers:
            saver.save_pretrained(writing)
        for file in sorted(Path(writing).iterdir()):
            os.replace(file, folder / file.name)


class StudentCheckpointCallback(ICheckpointCallback):
    """Save the student, a `MaskedPositionLM`, after each epoch: as ``last`` and, by a validation metric, as ``best``.

    Both are folders that `transformers` loads.

    Upstream's ``CheckpointCallback`` would save the teacher along with the student each time, and writes the *current*
    weights into ``model.best.pth`` after an epoch that was not the best.

    Args:
        logdir: the folder in which ``last/`` and ``best/`` are made.
        metric_key: the validation metric that is to become small.
        model_key: the student's key in the runner's dict of models.
    """

    def __init__(self, logdir: str | Path, metric_key: str = "loss", model_key: str = "student"):
        super().__init__()
        self.logdir, self.metric_key, self.model_key = Path(logdir), metric_key, model_key

    def on_experiment_start(self, runner) -> None:
        self.best_score = float("inf")

    def on_epoch_end(self, runner) -> None:
        score = runner.epoch_metrics["valid"][self.metric_key]
        if not math.isfinite(score):
            kept = f"The best student so far is in {self.logdir.name}/best." if self.best_score < math.inf else ""
            raise FloatingPointError(
                f"the validation {self.metric_key} of epoch {runner.epoch_step} is {score}: lower LEARNING_RATE. {kept}"
            )
        if not runner.engine.is_main_process:
            return
        student = runner.engine.unwrap_model(runner.model[self.model_key])
        save_folder(self.logdir / "last", student)
        if score < self.best_score:
            self.best_score = score
            save_folder(self.logdir / "best", student)

    def on_experiment_end(self, runner) -> None:
        """Go back to the best weights, so that what is used afterwards is what was chosen."""
        runner.engine.wait_for_everyone()
        student = runner.engine.unwrap_model(runner.model[self.model_key])
        load_model(student.model, self.logdir / "best" / "model.safetensors")


class TracingCallback(Callback):
    """Trace the student when the run has ended, into one file that runs where there is torch and nothing else.

    ``torch.export.load(file).module()(input_ids, attention_mask)`` takes two (batch, length) int64 tensors of any batch
    and of any length from 2 that the student has positions for, and gives logits (batch, length, vocabulary) in float32
    on the CPU. Upstream's ``TracingCallback`` is commented out, and torch.jit.trace, on which it stood, is deprecated.

    Args:
        file: the file to write, by custom ``.pt2``.
        model_key: the student's key in the runner's dict of models.
    """

    def __init__(self, file: str | Path, model_key: str = "student"):
        super().__init__(order=CallbackOrder.External)  # after the checkpoints, which go back to the best weights
        self.file, self.model_key = Path(file), model_key

    def on_experiment_end(self, runner) -> None:
        if not runner.engine.is_main_process:
            return
        student = copy.deepcopy(runner.engine.unwrap_model(runner.model[self.model_key]).model).cpu().eval()
        batch, length = (
            torch.export.Dim("batch"),
            torch.export.Dim("length", min=2, max=student.config.max_position_embeddings),
        )
        # With a row of padding: transformers leaves the mask out where every token is attended.
        ids, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        program = torch.export.export(
            _Logits(student), (ids, mask), dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length})
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_name(".writing-" + self.file.name)
        torch.export.save(program, beside)
        os.replace(beside, self.file)


class _Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
