"""The ways to distil that are compared. Each trains a student on what it is given, in the precision that it is told.

All minimise the same weighted sum by AdamW (torch's fused one) with a linear schedule, the gradient clipped at norm 1:
`WEIGHTS` of the KL at `TEMPERATURE`, masked LM, and one minus the cosine of the last hidden states at every attended
position. They differ in where the KL is taken, which `OBJECTIVES` says. Only ways of one objective may be compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from catalyst.core.callback import Callback, CallbackOrder
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from helpers import callbacks, losses, training
from helpers.catalyst_today import engine as engines
from helpers.catalyst_today import steps
from helpers.catalyst_today.engine import Engine
from helpers.data import IGNORED, masked_targets
from helpers.models import MaskedPositionLM
from helpers.runner import DistilMLMRunner
from helpers.training import distill, warmup_steps

TEMPERATURE = 1.0
WEIGHTS = {"kl": 0.625, "mlm": 0.25, "cosine": 0.125}
LEARNING_RATE = 5e-4
"""The defaults of notebook 03; a test compares them."""

OBJECTIVES = {
    "masked": "KL and masked LM at the masked positions, cosine at the attended ones",
    "attended": "KL and cosine at every attended position, masked LM at the masked ones",
}
PRECISIONS = ("float32", "bfloat16")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16")


def plain_setup(teacher: PreTrainedModel, student: PreTrainedModel, total: int):
    """Both models where they compute; the optimizer and the schedule that ours has, as torch gives them."""
    teacher.to(DEVICE).eval().requires_grad_(False)
    student.to(DEVICE).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    return optimizer, get_linear_schedule_with_warmup(optimizer, warmup_steps(total), total)


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
    """The rows of (batch, length, width) where the (batch, length) mask is True, by `masked_select`."""
    return tensor.masked_select(mask.unsqueeze(-1).expand_as(tensor)).view(-1, tensor.shape[-1])


def selected(kl_positions: Callable, student, teacher, batch) -> dict[str, torch.Tensor]:
    """The step of Hugging Face's distiller, which the article's code follows.

    The masked-LM loss is given all positions and passes over most of them by their label.
    """
    attended, chosen = batch["attention_mask"].bool(), kl_positions(batch)
    hidden = [picked(output.hidden_states[-1], attended) for output in (student, teacher)]
    return {
        "kl": softened_kl(picked(student.logits, chosen), picked(teacher.logits, chosen)),
        "mlm": F.cross_entropy(student.logits.flatten(0, 1), batch["labels"].flatten()),
        "cosine": cosine(*hidden),
    }


article = partial(selected, lambda batch: batch["attention_mask"].bool())
"""The KL at every attended position: as in the article's code, and in the distiller without further flags."""
huggingface = partial(selected, lambda batch: batch["labels"] != IGNORED)
"""The distiller with its flag `--restrict_ce_to_mask`."""


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


def plain(
    parts_of: Callable, precision: str, teacher, student, loaders: dict[str, DataLoader], blocks: Callable
) -> None:
    """A training loop as it is usually written."""
    optimizer, scheduler = plain_setup(teacher, student, len(loaders["train"]))
    for batch in blocks(loaders["train"]):
        batch = {key: value.to(DEVICE) for key, value in batch.items()}
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with autocast(precision):
            with torch.no_grad():
                teacher_output = teacher(**inputs, output_hidden_states=True)
            student_output = student(**inputs, output_hidden_states=True)
            parts = parts_of(student_output, teacher_output, batch)
            loss = sum(WEIGHTS[name] * value for name, value in parts.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


class WithoutLabels(torch.nn.Module):
    """TextBrewer gives both models all of a batch; one that is not to compute a loss must not get the labels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, labels, **inputs):
        return self.model(**inputs)


def textbrewer(
    loss_outside: bool, precision: str, teacher, student, loaders: dict[str, DataLoader], blocks: Callable
) -> None:
    """TextBrewer's GeneralDistiller, its KL kept to the masked positions by a logits mask.

    The masked-LM loss is the one that the model returns, over all positions' logits, as in TextBrewer's examples; or,
    with `loss_outside`, the adaptor takes it at the masked positions.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    optimizer, scheduler = plain_setup(teacher, student, len(loaders["train"]))

    def adapt_teacher(batch, output):
        return {
            "logits": output.logits,
            "logits_mask": batch["labels"] != IGNORED,
            "hidden": [output.hidden_states[-1]],
            "inputs_mask": batch["attention_mask"],
        }

    def adapt_student(batch, output):
        loss = output.loss
        if loss_outside:
            masked = batch["labels"] != IGNORED
            loss = F.cross_entropy(output.logits[masked], batch["labels"][masked])
        return {**adapt_teacher(batch, output), "losses": loss}

    last_hidden = {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "cos", "weight": WEIGHTS["cosine"]}
    distillation = DistillationConfig(
        temperature=TEMPERATURE,
        # It takes the soft cross-entropy: the same gradient as the KL, without the factor of T squared.
        kd_loss_weight=WEIGHTS["kl"] * TEMPERATURE**2,
        hard_label_weight=WEIGHTS["mlm"],
        intermediate_matches=[last_hidden],
    )
    models = WithoutLabels(teacher), WithoutLabels(student) if loss_outside else student
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingConfig(output_dir=folder, device=DEVICE)
        distiller = GeneralDistiller(settings, distillation, *models, adapt_teacher, adapt_student)
        with distiller, autocast(precision):
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


def ours(
    changes: Sequence[Callable], precision: str, teacher, student, loaders: dict[str, DataLoader], blocks: Callable
) -> None:
    """What notebook 03 runs, with all its callbacks.

    Args:
        changes: context managers, each of which changes one thing of it. The last three arguments are everybody's.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for change in changes:
            stack.enter_context(change())
        distill(
            teacher,
            student,
            loaders,
            epochs=1,
            learning_rate=LEARNING_RATE,
            loss_weights=WEIGHTS,
            temperature=TEMPERATURE,
            seed=0,
            engine=Engine({"float32": "no", "bfloat16": "bf16"}[precision]),
            logdir=Path(folder) / "logs",
            callbacks=[BlocksCallback(blocks)],
        )


def everywhere(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with a label at every attended position, so that there are logits for all of them."""
    return {**batch, "labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], IGNORED)}


class EveryPositionRunner(DistilMLMRunner):
    """Our runner, with logits at every attended position."""

    def handle_batch(self, batch):
        super().handle_batch(everywhere(batch))
        self.batch["labels"] = batch["labels"]


class AmongAllCallback(callbacks.MaskedLanguageModelCallback):
    """Our masked-LM loss, at the masked ones among all attended positions."""

    def count(self, batch):
        own = (batch["labels"] != IGNORED).sum()
        return own, own

    def measure(self, batch, count):
        masked = (batch["labels"] != IGNORED)[batch["attention_mask"].bool()]
        return losses.masked_lm_loss(batch["s_logits"][masked], masked_targets(batch), count)


@contextmanager
def kl_everywhere():
    """Our pieces under the article's objective, which no notebook runs."""

    def measures(weights, temperature):
        each = {name: make() for name, make in callbacks.LOSSES.items()} | {"mlm": AmongAllCallback()}
        return callbacks.weighted_sum(weights, each | {"kl": callbacks.KLDivLossCallback(temperature=temperature)})

    with mock.patch.multiple(training, DistilMLMRunner=EveryPositionRunner, masked_lm_measures=measures):
        yield


@contextmanager
def all_logits():
    """The head at every position, and the masked ones picked out after it."""

    def forward(self, input_ids, attention_mask, labels):
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return output.logits[labels != IGNORED], output.hidden_states

    with mock.patch.object(MaskedPositionLM, "forward", forward):
        yield


@contextmanager
def torchs_losses():
    """The losses of logits written with torch's own, in float32 as autocast has them."""

    def masked_lm_loss(logits, targets, count=None):
        return F.cross_entropy(logits.float(), targets, reduction="sum") / (len(targets) if count is None else count)

    def kl_div_loss(student, teacher, temperature=1.0, count=None):
        shares = F.log_softmax(student.float() / temperature, -1), F.softmax(teacher.float() / temperature, -1)
        return temperature**2 * F.kl_div(*shares, reduction="sum") / (len(student) if count is None else count)

    with mock.patch.multiple(losses, masked_lm_loss=masked_lm_loss, kl_div_loss=kl_div_loss):
        yield


@contextmanager
def torchs_modules():
    """torch's own dropout and attention."""
    with mock.patch.object(steps, "fast_training", return_value=nullcontext()):
        yield


@contextmanager
def freed_memory_goes_back():
    """glibc's own dealing with freed memory."""
    with mock.patch.object(engines, "keep_freed_memory"):
        yield


@contextmanager
def unfused_adamw():
    """torch's AdamW as it is by default on a processor."""
    adamw = torch.optim.AdamW

    def unfused(*arguments, **options):
        return adamw(*arguments, **{**options, "fused": False})

    with mock.patch.object(torch.optim, "AdamW", unfused):
        yield


class Contender(NamedTuple):
    """A way to train: its objective, how tables call it, and ``train(precision, teacher, student, loaders, blocks)``.

    `blocks(loader)` gives the batches to train on.
    """

    objective: str
    label: str
    train: Callable


OURS = "**this repository**"
CONTENDERS = {
    "masked_after": Contender("masked", "all logits, the masked ones picked out after", partial(plain, masked_after)),
    "huggingface": Contender(
        "masked", "Hugging Face's distiller with `--restrict_ce_to_mask`", partial(plain, huggingface)
    ),
    "textbrewer": Contender("masked", "TextBrewer's `GeneralDistiller`", partial(textbrewer, False)),
    "textbrewer_outside": Contender(
        "masked", "the same, the masked-LM loss outside of the model", partial(textbrewer, True)
    ),
    "ours": Contender("masked", OURS, partial(ours, [])),
    "article": Contender("attended", "the article's step, and Hugging Face's distiller", partial(plain, article)),
    "ours_attended": Contender("attended", "our pieces under this loss", partial(ours, [kl_everywhere])),
    "ours_all_logits": Contender("masked", "the head at every position", partial(ours, [all_logits])),
    "ours_torchs_losses": Contender("masked", "torch's losses", partial(ours, [torchs_losses])),
    "ours_torchs_modules": Contender("masked", "torch's dropout and attention", partial(ours, [torchs_modules])),
    "ours_unfused": Contender("masked", "AdamW not fused", partial(ours, [unfused_adamw])),
    "ours_memory": Contender("masked", "freed memory goes back", partial(ours, [freed_memory_goes_back])),
}
