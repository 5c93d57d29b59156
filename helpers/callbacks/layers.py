"""The losses of what happens inside the models, over attended tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from transformers import PretrainedConfig

from helpers import losses
from helpers.callbacks.measures import (
    KLDivLossCallback,
    LoaderMeanCallback,
    MaskedLanguageModelCallback,
    MSELossCallback,
)
from helpers.models import FAMILIES, recorded_qkv

KEYS = {"s_qkv": "student", "t_qkv": "teacher"}
OF_LOGITS = (MaskedLanguageModelCallback, KLDivLossCallback, MSELossCallback)
"""Losses whose gradient reaches every weight of a student."""


class LayerLossCallback(LoaderMeanCallback):
    """A loss between layers of the student and of the teacher, which are looked at before the first step.

    A subclass gives `measure`, and `pairs` where it has others.

    Args:
        metric_key: the name under which the loss stands.
        layers: pairs of layers, the student's first, counted from 0; None takes `losses.uniform_layers`.
    """

    def __init__(self, metric_key: str, layers: Sequence[tuple[int, int]] | None = None):
        super().__init__(metric_key)
        self.layers = layers

    def count(self, batch):
        own = batch["attention_mask"].sum()
        return own, batch.get("step_attended", own)

    def pairs(self, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
        """Return the layers that are compared, the student's first, given how many each has."""
        return self.layers or losses.uniform_layers(student_layers, teacher_layers)

    def pairs_of(self, batch: dict) -> list[tuple[int, int]]:
        """The same for the models that a batch went through: their hidden states are one more than their layers."""
        return self.pairs(len(batch["s_hidden_states"]) - 1, len(batch["t_hidden_states"]) - 1)

    def check(self, student: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Raise a ValueError where the loss cannot be taken between models of these configurations."""
        depths = student.num_hidden_layers, teacher.num_hidden_layers
        for pair in self.pairs(*depths):
            for layer, depth, who in zip(pair, depths, ("student", "teacher"), strict=True):
                if not 0 <= layer < depth:
                    raise ValueError(
                        f"the {self.metric_key} loss compares layer {layer} of the {who}, which has 0 to {depth - 1}."
                    )

    def on_experiment_start(self, runner) -> None:
        models = [runner.engine.unwrap_model(runner.model[which]).model for which in KEYS.values()]
        self.check(*(model.config for model in models))
        # Between processes, torch waits for the gradient of every weight; a loss between layers reaches no head.
        if runner.engine.num_processes > 1 and not any(type(each) in OF_LOGITS for each in runner.callbacks.values()):
            raise ValueError(
                f"several processes cannot train by {self.metric_key} alone, which leaves the student's head without a "
                "gradient: give mlm, kl or mse a weight, too, or start one process."
            )


class CosineLossCallback(LayerLossCallback):
    """`losses.cosine_loss` between the last hidden states, over attended tokens."""

    def __init__(self, metric_key: str = "cosine"):
        super().__init__(metric_key)

    def pairs(self, student_layers, teacher_layers):
        return [(student_layers - 1, teacher_layers - 1)]

    def check(self, student, teacher):
        if student.hidden_size != teacher.hidden_size:
            raise ValueError(
                f"the student's hidden states have {student.hidden_size} numbers, the teacher's {teacher.hidden_size}: "
                "the cosine loss compares vectors of one size. Leave it out of LOSS_WEIGHTS."
            )

    def measure(self, batch, count):
        student, teacher = batch["s_hidden_states"][-1], batch["t_hidden_states"][-1]
        return losses.cosine_loss(student, teacher, batch["attention_mask"], count)


class HiddenLossCallback(LayerLossCallback):
    """`losses.hidden_loss`, over attended tokens.

    Where the widths differ, the runner's models hold a `Projection` under ``"projection"``, which learns along. What
    it makes of the student's hidden states stands in the batch as ``s_projected_states``.
    """

    def __init__(self, metric_key: str = "hidden", layers: Sequence[tuple[int, int]] | None = None):
        super().__init__(metric_key, layers)

    def on_experiment_start(self, runner) -> None:
        super().on_experiment_start(runner)
        widths = [runner.engine.unwrap_model(runner.model[which]).model.config.hidden_size for which in KEYS.values()]
        if widths[0] != widths[1] and "projection" not in runner.model:
            raise ValueError(
                f"the student's hidden states have {widths[0]} numbers, the teacher's {widths[1]}: the hidden loss "
                "needs a models.Projection under 'projection' beside teacher and student, as training.distill makes it."
            )

    def on_batch_end(self, runner) -> None:
        if "projection" in runner.model:
            projected = runner.model["projection"](runner.batch["s_hidden_states"])
            runner.batch["s_projected_states"] = projected
        super().on_batch_end(runner)

    def measure(self, batch, count):
        student = batch.get("s_projected_states", batch["s_hidden_states"])
        pairs = self.pairs_of(batch)
        return losses.hidden_loss(student, batch["t_hidden_states"], pairs, batch["attention_mask"], count)


class QKVLossCallback(LayerLossCallback):
    """A loss of queries, keys and values: forward hooks put those of its layers into the batch."""

    def __init__(self, metric_key: str, layers: Sequence | None = None):
        super().__init__(metric_key, layers)
        self.hooks = ExitStack()

    def on_loader_start(self, runner) -> None:
        super().on_loader_start(runner)
        models = [runner.engine.unwrap_model(runner.model[which]).model for which in KEYS.values()]
        layers = zip(*self.pairs(*(model.config.num_hidden_layers for model in models)), strict=True)
        self.recorded = [
            self.hooks.enter_context(recorded_qkv(model, set(asked)))
            for model, asked in zip(models, layers, strict=True)
        ]

    def on_batch_end(self, runner) -> None:
        for key, recorded in zip(KEYS, self.recorded, strict=True):
            runner.batch.setdefault(key, {}).update(recorded)
            recorded.clear()
        super().on_batch_end(runner)

    def on_loader_end(self, runner) -> None:
        self.hooks.close()
        super().on_loader_end(runner)

    def on_exception(self, runner) -> None:
        self.hooks.close()


class RelationLossCallback(QKVLossCallback):
    """`losses.relation_loss` of one layer of each model.

    Args:
        metric_key: the name under which the loss stands.
        layers: the student's layer and the teacher's, counted from 0; None takes the last of each.
        heads: relation heads; None takes as many as the teacher has attention heads.
    """

    def __init__(self, metric_key: str = "relation", layers: tuple[int, int] | None = None, heads: int | None = None):
        super().__init__(metric_key, layers)
        self.heads = heads

    def pairs(self, student_layers, teacher_layers):
        return [self.layers or (student_layers - 1, teacher_layers - 1)]

    def check(self, student, teacher):
        super().check(student, teacher)
        heads = self.heads or teacher.num_attention_heads
        for who, config in (("student", student), ("teacher", teacher)):
            if config.hidden_size % heads:
                raise ValueError(
                    f"the relation loss cuts hidden states into {heads} relation heads, which does not divide the "
                    f"{who}'s {config.hidden_size} numbers: set its heads to a number that divides both models'."
                )

    def measure(self, batch, count):
        ((own, theirs),) = self.pairs_of(batch)
        student, teacher = batch["s_qkv"][own], batch["t_qkv"][theirs]
        heads = self.heads or teacher[0].shape[1]
        return losses.relation_loss(student, teacher, batch["attention_mask"], heads, count)


class AttentionLossCallback(QKVLossCallback):
    """`losses.attention_loss`, over attended queries."""

    def __init__(self, metric_key: str = "attention", layers: Sequence[tuple[int, int]] | None = None):
        super().__init__(metric_key, layers)

    def check(self, student, teacher):
        super().check(student, teacher)
        for who, config in (("student", student), ("teacher", teacher)):
            if FAMILIES[config.model_type].rotated:
                raise ValueError(
                    f"the {who} is a {config.model_type!r}, which rotates queries and keys by their positions before "
                    "it multiplies them: the attention loss would compare other scores. Take the relation loss."
                )
        heads = student.num_attention_heads, teacher.num_attention_heads
        if heads[0] != heads[1]:
            raise ValueError(
                f"the student has {heads[0]} attention heads, the teacher {heads[1]}: the attention loss compares them "
                "one by one. Take the relation loss, which cuts both into as many heads as it is told."
            )

    def measure(self, batch, count):
        pairs, mask = self.pairs_of(batch), batch["attention_mask"]
        return losses.attention_loss(batch["s_qkv"], batch["t_qkv"], pairs, mask, count)
