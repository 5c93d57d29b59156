"""Texts to rows of token ids, and rows to dict batches with BERT's masking. Knows nothing of models."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler
from transformers import DataCollatorForLanguageModeling

from helpers.data.texts import drop_repeats, without_bars
from helpers.files.tokenizer_checks import check_known

IGNORED = -100
"""The label of a position that no loss looks at: torch's own default for cross-entropy."""
VALID_MASKS = 21_000
"""Masked tokens to validate with: the standard error of an accuracy of 30 % is then 0.3 points."""


def masked_targets(batch: dict) -> torch.Tensor:
    """The hidden tokens of a batch in row-major order: (masked,) int64."""
    return batch["labels"][batch["labels"] != IGNORED]


def renumbered(batch: dict[str, torch.Tensor], rows: Sequence[int]) -> tuple[dict, dict]:
    """The blocks of a batch that a vocabulary of fewer rows can read: as they are, and in its own numbers.

    A block stays if all its tokens and labels are among `rows`, so that models of either vocabulary can be scored on
    the same hidden tokens.

    Args:
        batch: `input_ids`, `attention_mask` and `labels` of masked LM, (batch, length) int64 each.
        rows: the old numbers of the tokens that stay, in their new order.

    Returns:
        (blocks in the old numbers, the same blocks in the new ones), dict batches of (kept, length); kept may be 0.
    """
    highest = max(*rows, batch["input_ids"].max().item(), batch["labels"].max().item())
    number = torch.full((highest + 1,), -1)
    number[list(rows)] = torch.arange(len(rows))
    labels = torch.where(batch["labels"] == IGNORED, IGNORED, number[batch["labels"].clamp(min=0)])
    new = batch | {"input_ids": number[batch["input_ids"]], "labels": labels}
    stays = ((new["input_ids"] >= 0) & (new["labels"] != -1)).all(dim=1)
    return tuple({key: tensor[stays] for key, tensor in each.items()} for each in (batch, new))


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


def padded(rows: list[dict], key: str, value: int) -> torch.Tensor:
    """One column of some rows, filled up with `value` to the longest: (batch, length) int64."""
    return pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value)


def attended(rows: list[dict]) -> torch.Tensor:
    """1 where a row of ``input_ids`` has a token, 0 where `padded` fills it up: (batch, length) int64."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return (torch.arange(lengths.max()) < lengths[:, None]).long()


class MaskingCollator:
    """Rows of token ids to a dict batch, with BERT's masking (Devlin et al. 2019, section 3.1).

    Of the tokens that are not special, a share of `probability` becomes a label; of these 80 % are replaced by [MASK],
    10 % by a random token and 10 % stay as they are. The masking itself is that of `transformers`.

    Rows that already have ``labels`` (the validation part's) are only padded.
    """

    def __init__(self, tokenizer, probability: float = 0.15):
        self.pad = tokenizer.pad_token_id
        self.special = torch.tensor([*tokenizer.all_special_ids, *_edges(tokenizer)])
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


def token_ids(texts: datasets.Dataset, tokenizer) -> datasets.Dataset:
    """Token ids of each text, without special tokens: ``input_ids`` (list of int32) and their number, ``length``."""

    def encode(batch):
        ids = tokenizer(
            batch["text"],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # texts longer than the model takes are cut into blocks below
        )["input_ids"]
        return {"input_ids": ids, "length": [len(i) for i in ids]}

    # Named by what determines the result, so that the second run finds the first one's cache: a fast tokenizer's own
    # pickle, which `datasets` would hash, changes as it is used.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = [file.read_bytes() for file in sorted(Path(folder).iterdir())]
    fingerprint = Hasher.hash([texts._fingerprint, type(tokenizer).__name__, files])
    with without_bars():
        return texts.map(encode, batched=True, remove_columns=texts.column_names, new_fingerprint=fingerprint)


def token_lengths(texts: datasets.Dataset, tokenizer) -> np.ndarray:
    """Number of tokens of each text without special tokens: (texts,) int64."""
    return token_ids(texts, tokenizer).with_format("numpy")["length"][:]


def id_counts(rows: datasets.Dataset, tokenizer) -> np.ndarray:
    """How often rows of `input_ids` hold each id of the vocabulary: (highest id + 1,) int64."""
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for batch in rows.with_format("numpy").iter(1000):
        counts += np.bincount(np.concatenate(batch["input_ids"]).astype(np.int64), minlength=len(counts))
    return counts


def token_counts(texts: datasets.Dataset, tokenizer) -> np.ndarray:
    """How often the texts use each token of the vocabulary: (highest id + 1,) int64."""
    return id_counts(token_ids(texts, tokenizer), tokenizer)


def _edges(tokenizer) -> list[int]:
    """The ids that a tokenizer puts before and behind a text, whatever it calls them: BERT's [CLS] and [SEP]."""
    return tokenizer("")["input_ids"]


def _blocks(tokens: datasets.Dataset, tokenizer, max_length: int, pack: bool) -> datasets.Dataset:
    """Rows of at most `max_length` ids, [CLS] ... [SEP]: packed from many texts end to end, or one text a row."""
    room = max_length - 2
    cls, sep = _edges(tokenizer)

    def packed(batch):
        stream = [token for ids in batch["input_ids"] for token in [*ids, sep]]
        pieces = (stream[start : start + room] for start in range(0, len(stream), room))
        # A [SEP] that the cut leaves at the end of a piece serves as the block's own.
        return {"input_ids": [[cls, *piece] if piece[-1] == sep else [cls, *piece, sep] for piece in pieces]}

    def single(batch):
        return {"input_ids": [[cls, *ids[:room], sep] for ids in batch["input_ids"]]}

    with without_bars():
        return tokens.map(packed if pack else single, batched=True, remove_columns=tokens.column_names)


def _split(tokens: datasets.Dataset, masks_wanted: float, probability: float, seed: int):
    """Part the texts at random: enough of them for the wanted number of masks, but at most a tenth, validate."""
    order = np.random.default_rng(seed).permutation(len(tokens))
    lengths = tokens.with_format("numpy")["length"][:][order]
    enough = int(np.searchsorted(np.cumsum(lengths) * probability, masks_wanted)) + 1
    count = max(1, min(enough, len(tokens) // 10))
    return tokens.select(np.sort(order[count:])), tokens.select(np.sort(order[:count]))


def masked_lm_loaders(
    texts: datasets.Dataset,
    tokenizer,
    *,
    max_length: int = 64,
    batch_size: int = 64,
    steps_per_epoch: int | None = None,
    pack: bool = True,
    probability: float = 0.15,
    valid_masks: int = VALID_MASKS,
    seed: int = 0,
    order_seed: int = 0,
) -> dict[str, DataLoader]:
    """Dict batches for masked-LM training and validation.

    Exact repeats are dropped; the texts, not the blocks, are parted into training and validation, so that no text is
    on both sides. Training masks are drawn afresh whenever a row is read. Validation masks are drawn once, here, from
    `seed`, and depend neither on the batch size nor on the epoch.

    Args:
        texts: a dataset with a column ``text``.
        tokenizer: one with [CLS], [SEP], [MASK] and [PAD], whatever it calls them.
        max_length: tokens in a row, [CLS] and [SEP] included.
        batch_size: rows in a batch.
        steps_per_epoch: training batches that Catalyst counts as one epoch; by default as many as one pass over the
            rows needs, the last one filled up from the next pass.
        pack: lay the texts end to end, [SEP] between them, and cut rows of `max_length`, so that next to nothing is
            padding. Otherwise one row a text, cut at `max_length` and padded to the longest of its batch.
        probability: share of the tokens that are masked.
        valid_masks: masked tokens aimed at in the validation part, which takes no more than a tenth of the texts.
        seed: of the split and of the validation masks.
        order_seed: of the order in which the training rows are read.

    Returns:
        ``{"train": DataLoader, "valid": DataLoader}``. A batch is ``{"input_ids", "attention_mask", "labels"}``, each
        (batch, length) int64; labels are -100 wherever nothing was masked.

    Raises:
        ValueError: fewer than two different texts, `max_length` below 3, what `check_known` finds, or nothing is to be
            predicted in the validation part.
    """
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}: a row needs room for [CLS], one token and [SEP], so at least 3.")
    different = drop_repeats(texts)
    if len(different) < 2:
        raise ValueError(f"{len(different)} different text(s): one to train on and one to validate with are needed.")
    check_known(different, tokenizer)
    train, valid = _split(token_ids(different, tokenizer), valid_masks, probability, seed)
    train, valid = (_blocks(part, tokenizer, max_length, pack) for part in (train, valid))
    collate = MaskingCollator(tokenizer, probability)
    generator = torch.Generator().manual_seed(seed)

    def with_labels(batch):
        rows = [torch.tensor(ids) for ids in batch["input_ids"]]
        ids, labels = collate.mask(pad_sequence(rows, batch_first=True, padding_value=collate.pad), generator)
        lengths = [len(row) for row in rows]
        return {
            "input_ids": [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)],
            "labels": [row[:length] for row, length in zip(labels.tolist(), lengths, strict=True)],
        }

    with without_bars():
        # Not cached: `datasets` cannot see the generator's state, on which the result depends.
        valid = valid.map(with_labels, batched=True, load_from_cache_file=False, keep_in_memory=True)
    if probability > 0 and all(label == IGNORED for labels in valid["labels"] for label in labels):
        raise ValueError(
            f"CORPUS: of {sum(map(len, valid['labels']))} tokens in the texts that validate, none is to be predicted. "
            "Take more texts."
        )
    # Whole batches: of a smaller last one, some of several processes would get nothing.
    samples = (steps_per_epoch or math.ceil(len(train) / batch_size)) * batch_size
    return {
        "train": DataLoader(
            train.with_format("numpy"),
            batch_size=batch_size,
            sampler=EndlessShuffle(len(train), samples, order_seed),
            collate_fn=collate,
        ),
        "valid": DataLoader(valid.with_format("numpy"), batch_size=batch_size, collate_fn=collate),
    }
