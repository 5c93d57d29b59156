"""Tables in Arrow's memory format: Parquet files, and data sets on the Hugging Face hub."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.files.columns import Rows, Wanted, check_columns
from helpers.files.sources import HUB

BATCH = 1000
"""Rows that are in memory at once."""


def _check_kinds(path: str | Path, wanted: Wanted, schema: pa.Schema) -> None:
    """ValueError: a wanted column is not there, or holds neither texts nor numbers."""
    check_columns(path, wanted, schema.names)
    for parameter, field in wanted.items():
        kind = schema.field(field).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(
                f"{path}: column {field!r} is of the kind {kind}, not of texts. Set {parameter} to another column; its "
                f"columns are {schema.names}."
            )


def _text(value, feature) -> str | None:
    """A value as text: a class by its name; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if value >= 0 else None  # -1 is a missing label on the hub
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _rows_of(batches: Iterable[pa.RecordBatch | pa.Table], wanted: Wanted, features) -> Iterator[list[str | None]]:
    for batch in batches:
        columns = [batch.column(field).to_pylist() for field in wanted.values()]
        for values in zip(*columns, strict=True):
            yield [_text(value, features.get(field)) for value, field in zip(values, wanted.values(), strict=True)]


def open_parquet(path: Path, wanted: Wanted) -> Rows:
    """A Parquet file, read some rows at a time; see `columns` for what is taken and given.

    Raises:
        ValueError: it is no Parquet, damaged, without rows, or without such a column of texts.
    """

    def opened() -> pq.ParquetFile:
        # Read through a small buffer: a file may be one group of all its rows.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)

    damaged = f"{path}: not readable as Parquet: {{}}. The file is cut short or damaged: make it again."
    try:
        with opened() as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise ValueError(damaged.format(error)) from error
    _check_kinds(path, wanted, schema)
    if not count:
        raise ValueError(f"{path}: the file has no rows. At least two texts are needed.")
    by_datasets = b"huggingface" in (schema.metadata or {})  # then classes have their names there
    features = datasets.Features.from_arrow_schema(schema) if by_datasets else {}

    def rows() -> Iterator[list[str | None]]:
        try:
            with opened() as file:
                yield from _rows_of(file.iter_batches(BATCH, columns=list(wanted.values())), wanted, features)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(damaged.format(error)) from error

    return rows


def open_hub(name: str, wanted: Wanted) -> tuple[str, Rows]:
    """A data set on the Hugging Face hub, ``hub:OWNER/NAME[:CONFIG[:SPLIT]]``: its fingerprint and its rows.

    Without SPLIT, the split ``train`` is read.

    Raises:
        ValueError: the hub has no such data set, configuration or split, or cannot be reached; or there is no such
            column of texts.
    """
    repository, config, split = [*name.removeprefix(HUB).split(":", 2), "", ""][:3]
    try:
        table = datasets.load_dataset(repository, config or None, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{name}: the hub gives no such data set, or cannot be reached ({error}). The form is "
            "hub:OWNER/NAME:CONFIG:SPLIT; without SPLIT, it is train."
        ) from error
    _check_kinds(name, wanted, table.features.arrow_schema)
    if not len(table):
        raise ValueError(f"{name}: the data set has no rows. At least two texts are needed.")

    def rows() -> Iterator[list[str | None]]:
        batches = table.select_columns(list(wanted.values())).with_format("arrow").iter(BATCH)
        yield from _rows_of(batches, wanted, table.features)

    return table._fingerprint, rows
