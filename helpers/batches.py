"""Rows of token ids to dict batches: the order in which they are read, and the masks. Knows nothing of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import DataCollatorForLanguageModeling

IGNORED = -100
"""The label of a position that no loss looks at: torch's own default for cross-entropy."""


class EndlessShuffle(Sampler[int]):
    """Row numbers from one shuffled pass after another, cut into epochs of `samples`.

    So a run of several mini-epochs reads every row once before it reads any row twice. What an epoch gives depends on
    its number and the seed alone; `accelerate` calls `set_epoch` as each begins, as it does for a DistributedSampler.

    Args:
        rows: how many rows there are.
        samples: how many row numbers an epoch gives.
        seed: of the passes.
    """

    def __init__(self, rows: int, samples: int, seed: int):
        self.rows, self.samples, self.seed, self.epoch = rows, samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples

    def __iter__(self):
        start, drawn, order = self.epoch * self.samples, None, None
        for position in range(start, start + self.samples):
            number, row = divmod(position, self.rows)
            if number != drawn:
                order, drawn = self.order(np.random.default_rng([self.seed, number])), number
            yield int(order[row])

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """The row numbers of one pass: (rows,) int64."""
        return generator.permutation(self.rows)


class LengthGroupedShuffle(EndlessShuffle):
    """The same, with rows of about one length beside each other, so that little of a batch is padding.

    Each pass is shuffled and cut into pieces of `BATCHES_SORTED` batches; a piece is sorted by length, and its batches
    are shuffled again.

    Args:
        lengths: tokens in each row, (rows,) int.
        samples, seed: see `EndlessShuffle`.
        batch_size: rows in a batch.
    """

    BATCHES_SORTED = 32

    def __init__(self, lengths: np.ndarray, samples: int, seed: int, batch_size: int):
        super().__init__(len(lengths), samples, seed)
        self.lengths, self.batch_size = np.asarray(lengths), batch_size

    def order(self, generator):
        shuffled, batches = super().order(generator), []
        for start in range(0, self.rows, self.batch_size * self.BATCHES_SORTED):
            piece = shuffled[start : start + self.batch_size * self.BATCHES_SORTED]
            piece = piece[np.argsort(self.lengths[piece], kind="stable")]
            batches += [piece[first : first + self.batch_size] for first in range(0, len(piece), self.batch_size)]
        return np.concatenate([batches[number] for number in generator.permutation(len(batches))])


def micro_batches(loader: Iterable[dict[str, torch.Tensor]], parts: int) -> Iterator[dict[str, torch.Tensor | bool]]:
    """Cut each batch of a loader into `parts` along its rows (fewer, where it has fewer rows).

    A micro-batch holds its part of what the batch holds, and three more keys: ``step_masked`` and ``step_attended``,
    the numbers of masked and of attended tokens in the whole batch, and ``step_ends``, True in the last one.
    """
    for batch in loader:
        counts = {"step_masked": (batch["labels"] != IGNORED).sum(), "step_attended": batch["attention_mask"].sum()}
        pieces = min(parts, len(batch["input_ids"]))
        cut = {key: tensor.tensor_split(pieces) for key, tensor in batch.items()}
        for piece in range(pieces):
            part = {key: tensors[piece] for key, tensors in cut.items()}
            yield part | counts | {"step_ends": piece == pieces - 1}


def padded(rows: list[dict], key: str, value: int) -> torch.Tensor:
    """One column of some rows, filled up with `value` to the longest: (batch, length) int64."""
    return pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value)


def attended(rows: list[dict]) -> torch.Tensor:
    """1 where a row of ``input_ids`` has a token, 0 where `padded` fills it up: (batch, length) int64."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return (torch.arange(lengths.max()) < lengths[:, None]).long()


class LabelCollator:
    """Rows of token ids with a label to a dict batch.

    ``input_ids`` and ``attention_mask`` are (batch, length) int64, ``labels`` (batch,) int64, `IGNORED` where there is
    none; rows that have the teacher's ``t_logits`` give (batch, classes) float32.
    """

    def __init__(self, tokenizer):
        self.pad = tokenizer.pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": padded(rows, "input_ids", self.pad).long(),
            "attention_mask": attended(rows),
            "labels": torch.tensor([int(row["label"]) for row in rows]),
        }
        if "t_logits" in rows[0]:
            batch["t_logits"] = torch.stack([torch.as_tensor(row["t_logits"]).float() for row in rows])
        return batch


class MaskingCollator:
    """Rows of token ids to a dict batch, with BERT's masking (Devlin et al. 2019, section 3.1).

    Of the tokens that are not special, a share of `probability` becomes a label; of these 80 % are replaced by [MASK],
    10 % by a random token and 10 % stay as they are. The masking itself is that of `transformers`.

    Rows that already have ``labels`` (the validation part's) are only padded.
    """

    def __init__(self, tokenizer, probability: float = 0.15):
        self.pad = tokenizer.pad_token_id
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)

    def mask(self, input_ids: torch.Tensor, generator: torch.Generator | None = None):
        """Mask a (batch, length) int64 tensor in place; return (input_ids, labels), both (batch, length) int64.

        The random numbers come from `generator`, or from torch's global one, which Catalyst seeds anew each epoch.
        """
        self.masking.generator = generator
        special = torch.isin(input_ids, self.special)
        return self.masking.torch_mask_tokens(input_ids, special_tokens_mask=special)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        input_ids = padded(rows, "input_ids", self.pad)
        if "labels" in rows[0]:
            labels = padded(rows, "labels", IGNORED)
        else:
            input_ids, labels = self.mask(input_ids)
        return {"input_ids": input_ids, "attention_mask": attended(rows), "labels": labels}
