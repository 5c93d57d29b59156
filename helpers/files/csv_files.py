"""What a CSV file is made of: encoding, separator, columns. Knows nothing of what is done with its texts."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
from itertools import islice
from pathlib import Path

import charset_normalizer

SEPARATORS = ",;\t"
LEGACY_ENCODINGS = ["utf_16_le", "utf_16_be", "cp1251", "cp1252"]


def _detect_encoding(path: Path, sample: bytes) -> str:
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    try:
        # Not final: the sample may end in the middle of a character.
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=False)
        if b"\0" not in sample:
            return "utf-8"
    except UnicodeDecodeError:
        pass
    guess = charset_normalizer.from_bytes(sample, cp_isolation=LEGACY_ENCODINGS).best()
    if guess is None:
        raise ValueError(f"{path}: the bytes are neither UTF-8, UTF-16, cp1251 nor cp1252. Save the file as UTF-8.")
    print(f"{path.name} is not UTF-8: read as {guess.encoding}.")
    return guess.encoding


def undecodable_line(path: Path, encoding: str) -> int:
    """The number of the first line that is not in this encoding, counted from 1."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with _opener(path)(path, "rb") as file:
        number = 0
        for number, line in enumerate(file, start=1):  # noqa: B007 the last one counts where nothing is found
            try:
                decoder.decode(line)
            except UnicodeDecodeError:
                break
    return number


def _opener(path: Path):
    return {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)


def csv_dialect(path: Path, wanted: dict[str, str | int]) -> tuple[str, str, list[str]]:
    """Find out from the first megabyte what a CSV file is: (encoding, separator, columns).

    Args:
        path: the file.
        wanted: from the parameter that names it to a column that the file has to have; the separator is the one that
            gives them. Columns are named as in the first row; where no row names them, they are numbers, counted from
            0, and the columns returned are "0", "1", ...

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, in no encoding known here, without such a column, or row 2 has too many fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. CORPUS and LABELLED_CORPUS name CSV files, or are 'bundled'.")
    with _opener(path)(path, "rb") as file:
        sample = file.read(1 << 20)
    encoding = _detect_encoding(path, sample)
    text = codecs.getincrementaldecoder(encoding)().decode(sample, final=False)
    if not text.strip():
        raise ValueError(f"{path}: the file is empty. A header row and at least two texts are needed.")
    # The default refuses a field of more than 131,072 characters. The limit is the whole process's: never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))

    def rows(separator: str) -> list[list[str]]:
        # Rows, not lines: a text of the first row may hold a line break.
        return list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), 2))

    firsts = {separator: rows(separator)[0] for separator in SEPARATORS}
    if any(isinstance(field, int) for field in wanted.values()):
        firsts = {separator: [str(number) for number in range(len(row))] for separator, row in firsts.items()}
    separator, columns = max(
        firsts.items(), key=lambda item: (set(map(str, wanted.values())) <= set(item[1]), len(item[1]))
    )
    for parameter, field in wanted.items():
        if str(field) not in columns:
            raise ValueError(f"{path}: no column {field!r}. Its columns are {columns}: set {parameter} to one of them.")
    second = rows(separator)[-1]
    if len(second) > len(columns):
        # pandas would take the first columns of such a file for an index, and another column for the text.
        raise ValueError(
            f"{path}: not readable as CSV: row 2 has {len(second)} fields, the first row {len(columns)}. "
            "A text that holds the separator needs quotes around it."
        )
    return encoding, separator, columns
