"""Labelled texts to parts, rows and dict batches. Knows nothing of models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import datasets
import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from helpers.data.masked import IGNORED, EndlessShuffle, attended, padded
from helpers.data.texts import without_bars
from helpers.files.labels import check_classes

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+")


def words(text: str) -> list[str]:
    """The words and numbers of a text, without case and punctuation."""
    return re.findall(r"\w+", text.casefold())


def _shingles(text: str) -> set[str]:
    found = words(text)
    return {" ".join(found[start : start + 3]) for start in range(max(1, len(found) - 2))}


def near_repeats(texts: Sequence[str], least: float = 0.5) -> np.ndarray:
    """Group texts that are nearly the same: (texts,) int, equal numbers for those of a group.

    Two texts are, if the Jaccard index of their sets of three successive words is at least `least`; and so are those
    that a chain of such pairs connects. Shingles that more than a thousand texts share do not count.
    """
    if not len(texts):
        return np.zeros(0, dtype=int)
    counts = CountVectorizer(analyzer=_shingles, binary=True, dtype=np.int32).fit_transform(texts)
    counts = counts[:, np.asarray(counts.sum(axis=0)).ravel() <= 1000]
    sizes = np.asarray(counts.sum(axis=1)).ravel()
    shared = (counts @ counts.T).tocoo()
    near = shared.data >= least * (sizes[shared.row] + sizes[shared.col] - shared.data)
    shared.data = near & (shared.data > 0)
    shared.eliminate_zeros()
    return connected_components(shared, directed=False)[1]


def sentences(texts: Iterable[str], least: int = 4, most: int = 60) -> list[str]:
    """Cut texts after full stops, question and exclamation marks; keep what has `least` to `most` words."""
    pieces = (piece.strip() for text in texts for piece in SENTENCE_END.split(text))
    return [piece for piece in pieces if least <= len(words(piece)) <= most]


def _found_in(texts: datasets.Dataset, corpus: datasets.Dataset) -> set[str]:
    """The texts, as their words, that stand in a corpus, as a whole text or as a sentence of one."""
    wanted = {" ".join(words(text)) for text in texts["text"]}

    found = set()
    for batch in corpus.iter(1000):
        pieces = [*batch["text"], *(piece for text in batch["text"] for piece in SENTENCE_END.split(text))]
        found |= wanted & {" ".join(words(piece)) for piece in pieces}
    return found


def part(
    labelled: datasets.Dataset,
    sizes: dict[str, int],
    *,
    corpus: datasets.Dataset,
    transfer_texts: int,
    seed: int = 0,
) -> dict[str, datasets.Dataset]:
    """Part labelled texts once, by content, so that no text, and no near repeat of one, stands in two parts.

    Of a group of near repeats (`near_repeats`) the first is kept; so is no text that the corpus holds. Each class has
    the same share in every part. How many texts were left out is printed.

    Args:
        labelled: ``text`` and ``label``, as `read_labelled` gives them.
        sizes: of the parts ``"train"``, ``"valid"`` and ``"test"``, in texts. Where there are fewer texts than that,
            each part shrinks by the same factor; each has one text of each class at least.
        corpus: what teacher and student were distilled on, a dataset with ``text``.
        transfer_texts: how many texts without label to gather at most: what is left of the labelled texts, and as many
            sentences of the corpus as are still wanted.
        seed: of the parting.

    Returns:
        ``"train"``, ``"valid"``, ``"test"``: ``text`` and ``label``; ``"transfer"``: ``text``.

    Raises:
        ValueError: a class has fewer examples than there are parts, or no text without label is left.
    """
    generator = np.random.default_rng(seed)
    read = _found_in(labelled, corpus)
    unread = [number for number, text in enumerate(labelled["text"]) if " ".join(words(text)) not in read]
    sources = generator.permutation(len(corpus))[:transfer_texts]
    pieces = sentences(corpus.select(np.sort(sources))["text"])
    pieces = [pieces[number] for number in generator.permutation(len(pieces))[:transfer_texts]]
    own = labelled.select(unread)
    groups = near_repeats([*own["text"], *pieces])
    _, first = np.unique(groups, return_index=True)  # labelled texts come first, so they are kept
    kept = np.sort(first[first < len(own)])
    print(
        f"{len(labelled):,} labelled texts, left out: {len(labelled) - len(own):,} that the corpus holds and "
        f"{len(own) - len(kept):,} near repeats."
    )
    labels = np.asarray(own["label"])[kept]
    check_classes(labelled.features["label"].names, labelled["label"], own["label"], labels, len(sizes))
    own = own.select(kept)
    shrink = min(1.0, len(own) / sum(sizes.values()))
    rows = _stratified(labels, {name: int(size * shrink) for name, size in sizes.items()}, generator)
    if shrink < 1:
        sizes_made = ", ".join(str(len(numbers)) for numbers in rows.values())
        print(f"{len(own):,} labelled texts are too few for {sum(sizes.values()):,}: the parts are {sizes_made}.")
        print("They take all of them; smaller PART_SIZES leave some over, to be read without their labels.")
    rest = np.setdiff1d(np.arange(len(own)), np.concatenate(list(rows.values())))
    pieces = [pieces[number - len(unread)] for number in np.sort(first[first >= len(unread)])]
    unlabelled = [*own.select(rest)["text"], *pieces][:transfer_texts]
    if not unlabelled:
        raise ValueError(
            "no text is left to distil the task on: CORPUS has no other sentence of 4 to 60 words, and the parts take "
            "all labelled texts. Lower PART_SIZES, or take another CORPUS."
        )
    parts = {name: own.select(np.sort(numbers)) for name, numbers in rows.items()}
    transfer = datasets.Dataset.from_dict({"text": unlabelled}, features=own.select_columns("text").features)
    return {**parts, "transfer": transfer}


def _stratified(labels: np.ndarray, sizes: dict[str, int], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Row numbers of each part: one of each class at least, and otherwise each class in its share."""
    taken = {name: [] for name in sizes}
    places, rows = [], []
    for label in np.unique(labels):
        own = generator.permutation(np.flatnonzero(labels == label))
        for name, number in zip(sizes, own, strict=False):
            taken[name].append(number)
        # The places of a class are spread evenly from 0 to 1, so that any stretch holds its share of them.
        rows += own[len(sizes) :].tolist()
        places += ((np.arange(len(own) - len(sizes)) + 0.5) / max(1, len(own) - len(sizes))).tolist()
    order, start = np.asarray(rows, dtype=int)[np.argsort(places, kind="stable")], 0
    for name, size in sizes.items():
        end = start + max(0, size - len(taken[name]))
        taken[name], start = np.concatenate([taken[name], order[start:end]]).astype(int), end
    return taken


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """What a text of each class counts so that all classes count alike, one on average: (classes,) float32."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(counts.sum() / (classes * counts), dtype=torch.float32)


def encode(texts: datasets.Dataset, tokenizer, max_length: int) -> datasets.Dataset:
    """Texts to rows, in their order: ``text``, ``input_ids`` (list of int), ``length``, ``label`` (-100 for none).

    Each row is [CLS] text [SEP], cut at `max_length` tokens.
    """

    def ids(batch):
        found = tokenizer(batch["text"], truncation=True, max_length=max_length)["input_ids"]
        return {"input_ids": found, "length": [len(row) for row in found]}

    with without_bars():
        rows = texts.map(ids, batched=True, load_from_cache_file=False)
        if "label" not in rows.column_names:
            return rows.add_column("label", [IGNORED] * len(rows))
        return rows.cast_column("label", datasets.Value("int64"))


def lengths(rows: datasets.Dataset) -> np.ndarray:
    """Tokens in each of `encode`'s rows: (rows,) int64."""
    return rows.with_format("numpy")["length"][:]


def with_teacher_logits(rows: datasets.Dataset, logits: Tensor) -> datasets.Dataset:
    """Add a teacher's logits, (rows, classes) float, as the column ``t_logits``."""
    with without_bars():
        return rows.add_column("t_logits", logits.tolist())


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


def label_loaders(
    train: datasets.Dataset, valid: datasets.Dataset, tokenizer, *, batch_size: int, steps_per_epoch: int, seed: int
) -> dict[str, DataLoader]:
    """Dict batches of `encode`'s rows, of about one length each; see `LabelCollator` for what a batch holds.

    Args:
        train, valid: rows; both with ``t_logits`` (`with_teacher_logits`) where the task is distilled.
        tokenizer: gives the padding.
        batch_size: rows in a batch.
        steps_per_epoch: training batches that Catalyst counts as one epoch.
        seed: of the order of the training rows.
    """
    order = LengthGroupedShuffle(lengths(train), steps_per_epoch * batch_size, seed, batch_size)
    shortest_first = np.argsort(lengths(valid), kind="stable")
    return {
        "train": row_loader(train, tokenizer, batch_size, order),
        "valid": row_loader(valid.select(shortest_first), tokenizer, batch_size),
    }


def row_loader(rows: datasets.Dataset, tokenizer, batch_size: int, order: Sampler | None = None) -> DataLoader:
    """Dict batches of `encode`'s rows, in their order where none is given."""
    columns = [name for name in ("input_ids", "label", "t_logits") if name in rows.column_names]
    chosen = rows.select_columns(columns).with_format("numpy")
    return DataLoader(chosen, batch_size=batch_size, sampler=order, collate_fn=LabelCollator(tokenizer))
