"""What losses of layers need beside a model's outputs: queries, keys and values, and a map to another width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.models.families import family_of


@contextmanager
def recorded_qkv(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, tuple[Tensor, ...]]]:
    """Record, by forward hooks, the queries, keys and values that some layers compute meanwhile.

    A ModernBERT's are those before the rotation of its positions.

    Args:
        model: a masked-LM model of one of the `FAMILIES`.
        layers: counted from 0.

    Yields:
        From each layer that has been run to query, key and value, each (batch, heads, length, width).
    """
    family, heads = family_of(model), model.config.num_attention_heads
    names = family.queries_keys_values
    given, recorded = {}, {}

    def record(layer: int, name: str, output: Tensor) -> None:
        parts = output.chunk(3 if len(names) == 1 else 1, dim=-1)
        given[layer, name] = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
        if name == names[-1]:
            recorded[layer] = tuple(part for each in names for part in given[layer, each])

    with ExitStack() as hooks:
        for layer in layers:
            block = model.get_submodule(family.layers)[layer]
            for name in names:
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
