"""The wrapper that teacher and student are trained in, and the one that they are exported in."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.data import IGNORED
from helpers.models.families import family_of

ROWS_TO_A_MULTIPLE_OF = 64
"""What the head is given; see `MaskedPositionLM.forward`."""


class MaskedPositionLM(nn.Module):
    """A masked-LM model of `families.FAMILIES` whose head runs at the masked positions alone.

    `transformers` projects every position onto the vocabulary; six sevenths of that work, and of the memory, is for
    positions that no masked loss reads. The wrapper saves and loads as the model it wraps.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits (masked, vocabulary) and hidden states, a tuple of (batch, length, hidden), embeddings first.

        The masked positions are those where `labels`, (batch, length) int64, is not -100, in row-major order.
        """
        encoder = self.model.base_model
        output = encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        masked = (labels != IGNORED).flatten().nonzero()[:, 0]
        # Filled up with the first position, and cut again: for every other number of rows oneDNN would keep matrix
        # products of their own, megabytes a step, and the large buffers would not fit where the last step's were.
        filled = nn.functional.pad(masked, (0, -len(masked) % ROWS_TO_A_MULTIPLE_OF))
        logits = self.head(output.last_hidden_state.flatten(0, 1)[filled])
        return logits[: len(masked)], output.hidden_states

    def head(self, hidden: Tensor) -> Tensor:
        """Project (..., hidden) onto (..., vocabulary) as the wrapped model's own forward does."""
        return family_of(self.model).head(self.model, hidden)

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        return self.model.load_state_dict(*args, **kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the wrapped model as config.json and model.safetensors."""
        self.model.save_pretrained(folder)


class LogitsAlone(nn.Module):
    """A model as a function of two tensors, (batch, length) int64 each, to one: what an exporter can trace."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
