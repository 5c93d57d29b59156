"""Files of one text, or one object, a line: plain text and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from helpers.files.columns import Rows, Wanted, check_columns
from helpers.files.streams import decoded, encoding_of, line_end, lines_of, sample_of

SAMPLE_LINES = 1000
"""Lines of a JSON-lines file in which each wanted column has to stand once."""


def open_plain_text(path: Path, wanted: Wanted) -> Rows:
    """A text a line: its one column is called ``text``, and has the number 0.

    Raises:
        ValueError: another column is wanted; or see `streams`.
    """
    numbered = any(isinstance(field, int) for field in wanted.values())
    check_columns(path, wanted, [0] if numbered else ["text"])
    sample = sample_of(path)
    encoding = encoding_of(path, sample)
    end = line_end(decoded(sample, encoding))

    def rows() -> Iterator[list[str]]:
        for line in lines_of(path, encoding, end):
            yield [line.removesuffix(end).removesuffix("\r")] * len(wanted)

    return rows


def _object(path: Path, number: int, line: str) -> dict:
    """One line's object; numbers as they are spelled. ValueError: it is none."""
    try:
        found = json.loads(line, parse_int=str, parse_float=str, parse_constant=lambda _: None)
        problem = "" if isinstance(found, dict) else f"it is a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        remedy = 'Each line has to be one object, such as {"text": "..."}.'
        if line.lstrip().startswith("[") and number == 1:
            remedy += f" A file that is one array becomes JSON lines by: jq -c '.[]' {path.name} > {path.stem}.jsonl"
        raise ValueError(f"{path}: not readable as JSON lines: line {number}: {problem}. {remedy}")
    return found


def _text(path: Path, number: int, field: str | int, value) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        raise ValueError(
            f"{path}: line {number}: {field!r} is a {type(value).__name__}, not a text. Name another column, or write "
            "the file with one text a line."
        )
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: line {number}: {field!r} holds half of a character ({error.object[error.start]!a}, a lone "
            "surrogate). Take it out, or write the file in UTF-8 without escapes."
        ) from error
    return value


def open_json_lines(path: Path, wanted: Wanted) -> Rows:
    """An object a line, in UTF-8; its keys are the columns, and one that a line lacks is None there.

    Raises:
        ValueError: a line is no object, a wanted key is in none of the first lines, or a value of it is a list or an
            object; or see `streams`.
    """
    sample_of(path)

    def objects() -> Iterator[tuple[int, dict]]:
        for number, line in enumerate(lines_of(path, "utf-8-sig"), start=1):
            if line.strip():
                yield number, _object(path, number, line)

    columns = dict.fromkeys(key for _, found in islice(objects(), SAMPLE_LINES) for key in found)
    check_columns(path, wanted, list(columns))

    def rows() -> Iterator[list[str | None]]:
        for number, found in objects():
            yield [_text(path, number, field, found.get(field)) for field in wanted.values()]

    return rows
