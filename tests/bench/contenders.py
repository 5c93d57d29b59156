"""The ways to distil that are compared: two peers' ways, the article's, and ours. Each trains on what it is given.

All minimise 0.625 KL (T = 2) + 0.25 masked LM + 0.125 (1 - cosine of the last hidden states) by AdamW with a linear
schedule, the gradient clipped at norm 1. In `article` the KL is a mean over every attended position, as in the
article's code; in the others over the masked positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from catalyst.core.callback import Callback, CallbackOrder
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from helpers.catalyst_today.engine import Engine
from helpers.data import IGNORED
from helpers.training import distill

TEMPERATURE = 2.0
WEIGHTS = {"kl": 0.625, "mlm": 0.25, "cosine": 0.125}
LEARNING_RATE = 5e-4

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def plain_setup(teacher: PreTrainedModel, student: PreTrainedModel, steps: int):
    """Both models where they compute; AdamW as torch gives it by default, and the schedule that `ours` has."""
    teacher.to(DEVICE).eval().requires_grad_(False)
    student.to(DEVICE).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    return optimizer, get_linear_schedule_with_warmup(optimizer, round(0.06 * steps), steps)


def softened_kl(student_logits, teacher_logits):
    return TEMPERATURE**2 * F.kl_div(
        F.log_softmax(student_logits / TEMPERATURE, dim=-1),
        F.softmax(teacher_logits / TEMPERATURE, dim=-1),
        reduction="batchmean",
    )


def cosine(student_hidden, teacher_hidden):
    same_direction = torch.ones(len(student_hidden), device=student_hidden.device)
    return F.cosine_embedding_loss(student_hidden, teacher_hidden, same_direction)


def picked(tensor, mask):
    """The rows of (batch, length, width) where the (batch, length) mask is True, as the article's code picks them."""
    return tensor.masked_select(mask.unsqueeze(-1).expand_as(tensor)).view(-1, tensor.shape[-1])


def article(student, teacher, batch) -> dict[str, torch.Tensor]:
    """KL at every attended position; the masked-LM loss is given all positions and passes over most by their label."""
    attended = batch["attention_mask"].bool()
    hidden = [picked(output.hidden_states[-1], attended) for output in (student, teacher)]
    return {
        "kl": softened_kl(picked(student.logits, attended), picked(teacher.logits, attended)),
        "mlm": F.cross_entropy(student.logits.flatten(0, 1), batch["labels"].flatten()),
        "cosine": cosine(*hidden),
    }


def masked_after(student, teacher, batch) -> dict[str, torch.Tensor]:
    """Logits at every position, of which the masked ones are picked out for both losses, by an index."""
    masked, attended = batch["labels"] != IGNORED, batch["attention_mask"].bool()
    hidden = [output.hidden_states[-1][attended] for output in (student, teacher)]
    student_logits = student.logits[masked]
    return {
        "kl": softened_kl(student_logits, teacher.logits[masked]),
        "mlm": F.cross_entropy(student_logits, batch["labels"][masked]),
        "cosine": cosine(*hidden),
    }


def plain(losses: Callable, bf16: bool, teacher, student, loaders: dict[str, DataLoader], blocks: Callable) -> None:
    """A training loop as it is usually written."""
    optimizer, scheduler = plain_setup(teacher, student, len(loaders["train"]))
    for batch in blocks(loaders["train"]):
        batch = {key: value.to(DEVICE) for key, value in batch.items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                teacher_output = teacher(**inputs, output_hidden_states=True)
            student_output = student(**inputs, output_hidden_states=True)
            parts = losses(student_output, teacher_output, batch)
            loss = sum(WEIGHTS[name] * value for name, value in parts.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def textbrewer(teacher, student, loaders: dict[str, DataLoader], blocks: Callable) -> None:
    """TextBrewer's GeneralDistiller, its KL kept to the masked positions by a logits mask."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    optimizer, scheduler = plain_setup(teacher, student, len(loaders["train"]))

    def adapt(batch, output):
        adapted = {
            "logits": output.logits,
            "logits_mask": batch["labels"] != IGNORED,
            "hidden": [output.hidden_states[-1]],
            "inputs_mask": batch["attention_mask"],
        }
        return adapted if output.loss is None else {**adapted, "losses": output.loss}

    class Teacher(torch.nn.Module):
        """GeneralDistiller gives both models all of a batch; the teacher has no need of a loss."""

        def __init__(self):
            super().__init__()
            self.model = teacher

        def forward(self, labels, **inputs):
            return self.model(**inputs)

    last_hidden = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "cos", "weight": WEIGHTS["cosine"]}
    distillation = DistillationConfig(
        temperature=TEMPERATURE,
        # It takes the soft cross-entropy: the same gradient as the KL, without the factor of T squared.
        kd_loss_weight=WEIGHTS["kl"] * TEMPERATURE**2,
        hard_label_weight=WEIGHTS["mlm"],
        intermediate_matches=[last_hidden],
    )
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingConfig(output_dir=folder, device=DEVICE)
        distiller = GeneralDistiller(training, distillation, Teacher(), student, adapt, adapt)
        with distiller:
            distiller.train(
                optimizer,
                blocks(loaders["train"]),
                num_epochs=1,
                scheduler=scheduler,
                max_grad_norm=1.0,
                output_hidden_states=True,
            )


class BlocksCallback(Callback):
    """Take the training batches in blocks."""

    def __init__(self, blocks: Callable):
        super().__init__(order=CallbackOrder.Internal)
        self.blocks = blocks

    def on_loader_start(self, runner) -> None:
        if runner.is_train_loader:
            runner.loader = self.blocks(runner.loader)


def ours(precision: str | None, teacher, student, loaders: dict[str, DataLoader], blocks: Callable) -> None:
    """What notebook 03 runs, with all its callbacks."""
    with tempfile.TemporaryDirectory() as folder:
        distill(
            teacher,
            student,
            loaders,
            epochs=1,
            learning_rate=LEARNING_RATE,
            loss_weights=WEIGHTS,
            temperature=TEMPERATURE,
            seed=0,
            engine=Engine(precision),
            logdir=Path(folder) / "logs",
            callbacks=[BlocksCallback(blocks)],
        )


CONTENDERS = {
    "article": partial(plain, article, False),
    "article_bf16": partial(plain, article, True),
    "textbrewer": textbrewer,
    "masked_after": partial(plain, masked_after, False),
    "masked_after_bf16": partial(plain, masked_after, True),
    "ours_fp32": partial(ours, "no"),
    "ours": partial(ours, None),
}
"""From names to ``train(teacher, student, loaders, blocks)``: `blocks(loader)` gives the batches to train on."""
