"""What the readers of all forms share: the columns that are wanted, and rows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Wanted = dict[str, str | int]
"""From the parameter that names it to a column that a file has to have: its name, or its number, counted from 0."""
Rows = Callable[[], Iterable[Sequence[str | None]]]
"""Gives a file's rows from the beginning, each the values of the wanted columns in their order; None where there is
none."""


def check_columns(path: str | Path, wanted: Wanted, columns: Sequence[str | int]) -> None:
    """ValueError: a wanted column is not there, or is there twice."""
    for parameter, field in wanted.items():
        if field not in columns:
            raise ValueError(
                f"{path}: no column {field!r}. Its columns are {list(map(str, columns))}: set {parameter} to one of "
                "them."
            )
        if list(columns).count(field) > 1:
            raise ValueError(f"{path}: two columns are called {field!r}. Give one of them another name.")
