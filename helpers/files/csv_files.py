"""CSV files: separator, names, rows. One reader, the `csv` module, finds the dialect and reads with it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from helpers.files.columns import Rows, Wanted, check_columns
from helpers.files.sources import endings
from helpers.files.streams import LONGEST, decoded, encoding_of, line_end, lines_of, sample_of

SEPARATORS = ",;\t"
SAMPLE_ROWS = 1000
"""Rows from which the separator is found out."""
CERTAIN_ROWS = 10
"""So many rows of one width show a separator; fewer may have it by chance in each text."""
QUOTES = (
    "A text that holds the separator, a quote or a line break needs quotes around it, and each quote within it doubled."
)


@contextmanager
def _long_fields():
    """Let `csv` read fields of `LONGEST` characters. Its limit is the whole process's: it is put back."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, LONGEST))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parsed(lines: Iterable[str], separator: str) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each row; lines that are empty, or blank in a file of several columns, are none.

    Strict: text after a closing quote is an error, and so is a quote that is never closed. csv.Error says where.
    """
    reader, row, width = csv.reader(lines, delimiter=separator, strict=True), 1, 1
    while True:
        where = f"row {row} (line {reader.line_num + 1})"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"{where}: {str(error).partition(' - ')[0]}") from error
        if fields and (width == 1 or len(fields) > 1 or fields[0].strip()):
            yield where, fields
            row, width = row + 1, max(width, len(fields))


def _sampled(text: str, separator: str, end: str) -> list[list[str]]:
    """The first rows of a text, as far as they are CSV with this separator and all have as many fields as the first."""
    rows = []
    try:
        for _, fields in islice(_parsed(io.StringIO(text, newline=end), separator), SAMPLE_ROWS):
            if rows and len(fields) != len(rows[0]):
                break
            rows.append(fields)
    except csv.Error:
        pass
    return rows


def _dialect(path: Path, text: str, end: str, wanted: Wanted, named: bool) -> tuple[str, int, list[int]]:
    """The separator that gives the wanted columns and fits most rows of a sample, the fields of a row, and the places
    of the wanted ones."""
    separators = "\t" if endings(path)[0] == ".tsv" else SEPARATORS
    sampled = {each: rows for each in separators if (rows := _sampled(text, each, end))}
    if not sampled:
        raise ValueError(f"{path}: not readable as CSV: a quote in row 1 is not closed, or text follows it. {QUOTES}")
    columns = {each: rows[0] if named else range(len(rows[0])) for each, rows in sampled.items()}
    possible = [each for each in columns if set(wanted.values()) <= set(columns[each])]
    if not possible:
        check_columns(path, wanted, max(columns.values(), key=len))
    several = [each for each in possible if len(columns[each]) > 1]
    # A separator that a file does not have fits every row. So one that has parted some rows is not given up for it.
    certain = [each for each in several if len(sampled[each]) >= CERTAIN_ROWS]
    best = max(len(sampled[each]) for each in certain or possible)
    fitting = [each for each in certain or possible if len(sampled[each]) == best]
    if not named and not certain:
        fitting += [each for each in several if 2 <= len(sampled[each]) < best]
    places = {each: [list(columns[each]).index(field) for field in wanted.values()] for each in fitting}
    readings = [[[row[place] for place in places[each]] for row in sampled[each]] for each in fitting]
    if any(reading != readings[0] for reading in readings):
        raise ValueError(
            f"{path}: the separator may be {' or '.join(map(repr, fitting))}: the first rows can be read with each. "
            "Give the file a row of names, or put quotes around each text."
        )
    check_columns(path, wanted, columns[fitting[0]])
    return fitting[0], len(columns[fitting[0]]), places[fitting[0]]


def open_csv(path: Path, wanted: Wanted) -> Rows:
    """Find out what a CSV file is made of; see `columns` for what is taken and given.

    Columns are named by the first row; where a wanted column is a number, no row names them.

    Raises:
        ValueError: the file is empty, cut short, in no encoding known here, without such a column, or not clear in its
            separator. Reading its rows: one is not CSV, has more or fewer fields than the first, or there is none.
    """
    sample = sample_of(path)
    named = all(isinstance(field, str) for field in wanted.values())
    encoding = encoding_of(path, sample, [field for field in wanted.values() if named])
    text = decoded(sample, encoding)
    end = line_end(text)
    with _long_fields():
        separator, width, places = _dialect(path, text, end, wanted, named)

    def rows() -> Iterator[list[str]]:
        number = 0
        try:
            with _long_fields():
                for number, (where, fields) in enumerate(_parsed(lines_of(path, encoding, end), separator), start=1):
                    if len(fields) != width:
                        raise csv.Error(f"{where} has {len(fields)} fields, the first row {width}")
                    if number > 1 or not named:
                        yield [fields[place] for place in places]
        except csv.Error as error:
            raise ValueError(f"{path}: not readable as CSV: {error}. {QUOTES}") from error
        if number == named:
            raise ValueError(f"{path}: the file has a row of names and no other. At least two texts are needed.")

    return rows
