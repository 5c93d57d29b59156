"""What losses of layers need beside a model's outputs: queries, keys and values, and a map to another width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

QKV = tuple[Tensor, Tensor, Tensor]
"""Query, key and value of one layer, each (batch, heads, length, width)."""


class AttentionNames(NamedTuple):
    """Where an encoder has its layers, and in a layer the linear maps to query, key and value: three, or one."""

    layers: str
    maps: tuple[str, ...]
    rotated: bool = False  # between these maps and the scores


BERTS = AttentionNames("encoder.layer", ("attention.self.query", "attention.self.key", "attention.self.value"))
ATTENTION_NAMES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), BERTS),
    "distilbert": AttentionNames("transformer.layer", ("attention.q_lin", "attention.k_lin", "attention.v_lin")),
    "modernbert": AttentionNames("layers", ("attn.Wqkv",), rotated=True),
}
"""By a configuration's ``model_type``."""


@contextmanager
def recorded_qkv(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, QKV]]:
    """Record, by forward hooks, the queries, keys and values that some layers compute meanwhile.

    A ModernBERT's are those before the rotation of its positions.

    Args:
        model: its ``base_model`` is the encoder; the kind has to stand in `ATTENTION_NAMES`.
        layers: counted from 0.

    Yields:
        From each layer that has been run to query, key and value, each (batch, heads, length, width).
    """
    names, heads = ATTENTION_NAMES[model.config.model_type], model.config.num_attention_heads
    given, recorded = {}, {}

    def record(layer: int, name: str, output: Tensor) -> None:
        parts = output.chunk(3 if len(names.maps) == 1 else 1, dim=-1)
        given[layer, name] = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
        if name == names.maps[-1]:
            recorded[layer] = tuple(part for each in names.maps for part in given[layer, each])

    with ExitStack() as hooks:
        for layer in layers:
            block = model.base_model.get_submodule(names.layers)[layer]
            for name in names.maps:
                hook = block.get_submodule(name).register_forward_hook(
                    lambda _, __, output, at=(layer, name): record(*at, output)
                )
                hooks.callback(hook.remove)
        yield recorded


class Projection(nn.Module):
    """A learned linear map of hidden states to another width, one for all layers (TinyBERT's W_h, Jiao et al. 2020).

    Args:
        width, to_width: the student's hidden size, and the teacher's.
        seed: of its start, random numbers of variance 1 / `width`; the global generator is left alone.
    """

    def __init__(self, width: int, to_width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(to_width, width, generator=generator) * width**-0.5)

    def forward(self, hidden_states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map each (..., width) to (..., to_width)."""
        return tuple(nn.functional.linear(states, self.weight) for states in hidden_states)
