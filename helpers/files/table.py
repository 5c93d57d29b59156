"""From files in any form to one table on disk: the only place where a corpus is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import datasets

from helpers.files.arrow_files import open_hub, open_parquet
from helpers.files.columns import Rows, Wanted
from helpers.files.csv_files import open_csv
from helpers.files.line_files import open_json_lines, open_plain_text
from helpers.files.sources import FORMS, endings, files_of

OPEN = {"csv": open_csv, "json lines": open_json_lines, "parquet": open_parquet, "plain text": open_plain_text}


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@cache
def _reader() -> list[str]:
    """The hashes of these modules: what another version of them has read is read again."""
    return [_sha256(file) for file in sorted(Path(__file__).parent.glob("*.py"))]


def open_file(file: str | Path, wanted: Wanted) -> tuple[list[str], Rows]:
    """What names the content of a file, and its rows."""
    if isinstance(file, str):
        fingerprint, rows = open_hub(file, wanted)
        return [fingerprint], rows
    try:
        form, compression = endings(file)
        return [form, compression, _sha256(file)], OPEN[FORMS[form]](file, wanted)
    except OSError as error:
        raise ValueError(f"{file}: the file cannot be read ({error.strerror}).") from error


def read_columns(source: str | Path | Sequence[str | Path], wanted: Wanted) -> datasets.Dataset:
    """Read some columns as they are, all as strings, None where there is nothing.

    The files are read once, a row at a time, into a memory-mapped Arrow table in the cache of `datasets`, so they may
    be larger than memory. The table is named by the content of the files: one that has changed is read again.

    Args:
        source: see `sources.files_of`.
        wanted: see `columns`. Each file has to have these columns.

    Returns:
        A dataset with the wanted columns by their names, or by their numbers as strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, or a row of it; file, row and what would be right are named.
    """
    names = [str(field) for field in wanted.values()]
    with without_bars():
        opened = [open_file(file, wanted) for file in files_of(source)]
    named_by = [_reader(), [repr(field) for field in wanted.values()], [content for content, _ in opened]]

    def rows() -> Iterator[dict[str, str | None]]:
        for _, rows_of_file in opened:
            for values in rows_of_file():
                yield dict(zip(names, values, strict=True))

    try:
        with without_bars():
            return datasets.Dataset.from_generator(
                rows,
                features=datasets.Features({name: datasets.Value("string") for name in names}),
                fingerprint=hashlib.sha256(repr(named_by).encode()).hexdigest()[:16],
            )
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
