"""The encoders that are read here: how each names its layers, its feed-forward and its masked-LM head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel


class Family(NamedTuple):
    """What the masked-LM models of one kind call their parts.

    Attributes:
        layers: the list of layers, from the model on.
        queries_keys_values: the linear maps to query, key and value, from the layer on: three, or one for all.
        inward, outward: the feed-forward's first and last linear map, from the layer on.
        width: the feed-forward's width in the configuration.
        dense, norm: the head's transform, from the model on.
        bias: the name under which the output bias stands a second time in the state dict, if it does.
        head: from the model and (..., hidden) to (..., vocabulary), as the model's own forward does it.
        gated: True where `inward` gives twice the width, the second half multiplying the first (Shazeer 2020).
        rotated: True where queries and keys are rotated by their positions before they are multiplied.
        first_stays: True where layer 0 is built otherwise than the others, so that only it can be the first.
    """

    layers: str
    queries_keys_values: tuple[str, ...]
    inward: str
    outward: str
    width: str
    dense: str
    norm: str
    bias: str | None
    head: Callable[[PreTrainedModel, Tensor], Tensor]
    gated: bool = False
    rotated: bool = False
    first_stays: bool = False


BERT = Family(
    layers="bert.encoder.layer",
    queries_keys_values=("attention.self.query", "attention.self.key", "attention.self.value"),
    inward="intermediate.dense",
    outward="output.dense",
    width="intermediate_size",
    dense="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    bias="cls.predictions.bias",
    head=lambda model, hidden: model.cls(hidden),
)
ROBERTA = BERT._replace(
    layers="roberta.encoder.layer",
    dense="lm_head.dense",
    norm="lm_head.layer_norm",
    bias="lm_head.bias",
    head=lambda model, hidden: model.lm_head(hidden),
)
DISTILBERT = Family(
    layers="distilbert.transformer.layer",
    queries_keys_values=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    inward="ffn.lin1",
    outward="ffn.lin2",
    width="hidden_dim",
    dense="vocab_transform",
    norm="vocab_layer_norm",
    bias=None,
    head=lambda model, hidden: model.vocab_projector(
        model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    ),
)
MODERNBERT = Family(
    layers="model.layers",
    queries_keys_values=("attn.Wqkv",),
    inward="mlp.Wi",
    outward="mlp.Wo",
    width="intermediate_size",
    dense="head.dense",
    norm="head.norm",
    bias=None,
    head=lambda model, hidden: model.decoder(model.head(hidden)),
    gated=True,
    rotated=True,
    first_stays=True,  # the embeddings' norm serves as that before its attention (Warner et al. 2024, section 2.1.1)
)

FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
}
"""From ``model_type`` in config.json to the names: the one place that tells a kind of model from another."""


def family_of(model: PreTrainedModel) -> Family:
    """How this model names its parts. KeyError: `load_teacher` and `load_student` let no other model in."""
    return FAMILIES[model.config.model_type]
