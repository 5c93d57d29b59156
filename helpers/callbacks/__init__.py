"""The losses and the metrics as Catalyst callbacks. Knows nothing of how logits were made.

The keys read from the runner's batch: ``s_logits`` and ``t_logits`` (masked, vocabulary), ``s_hidden_states`` and
``t_hidden_states`` (tuples of (batch, length, hidden)), ``attention_mask`` and ``labels`` (batch, length). Of a
classifier, logits are (batch, classes) and ``labels`` (batch,). A micro-batch also tells the counts of its whole step,
as ``step_logits``, ``step_labels`` and ``step_attended``. The losses that ask for queries, keys and values put them
there, as ``s_qkv`` and ``t_qkv`` (from a layer to the three, each (batch, heads, length, width)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from catalyst import dl
from catalyst.core.callback import Callback

from helpers.callbacks.layers import (
    AttentionLossCallback,
    CosineLossCallback,
    HiddenLossCallback,
    LayerLossCallback,
    RelationLossCallback,
)
from helpers.callbacks.measures import (
    ConfusionCallback,
    KLDivLossCallback,
    LabelLossCallback,
    LoaderMeanCallback,
    MaskedLanguageModelCallback,
    MSELossCallback,
    PerplexityCallback,
)

LOSSES = {
    "mlm": MaskedLanguageModelCallback,
    "kl": KLDivLossCallback,
    "cosine": CosineLossCallback,
    "mse": MSELossCallback,
    "relation": RelationLossCallback,
    "attention": AttentionLossCallback,
    "hidden": HiddenLossCallback,
}
"""The names that LOSS_WEIGHTS may hold."""

TASK_LOSSES = {"labels": LabelLossCallback, "kl": KLDivLossCallback, "mse": MSELossCallback}
"""The names that TASK_LOSS_WEIGHTS may hold: what teaches a classifier."""


def loss_weights_form(losses: Iterable[str]) -> str:
    """What weights of these losses have to be, in words."""
    return f"a dict from names out of {sorted(losses)} to weights of at least 0, not all 0"


def are_loss_weights(value, losses: Iterable[str]) -> bool:
    """True if `value` is what `loss_weights_form` says."""
    return (
        isinstance(value, dict)
        and set(value) <= set(losses)
        and all(type(weight) in (int, float) and math.isfinite(weight) and weight >= 0 for weight in value.values())
        and sum(value.values()) > 0
    )


def weighted_sum(weights: dict[str, float], losses: dict[str, LoaderMeanCallback]) -> dict[str, Callback]:
    """The losses that have a weight above zero, and the callback that adds them up as ``loss``.

    Raises:
        ValueError: an unknown name, or a weight that is negative or not finite, or all of them zero.
    """
    if not are_loss_weights(weights, losses):
        raise ValueError(f"loss weights {weights!r}: they have to be {loss_weights_form(losses)}.")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    total = dl.MetricAggregationCallback("loss", metrics=used, mode="weighted_sum")
    return {**{name: losses[name] for name in used}, "loss": total}
