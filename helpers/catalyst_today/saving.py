"""Files that are whole at any moment, the old one or the new. Knows nothing of what is in them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from helpers.models import quiet_transformers

WRITING = ".writing-"
"""How the name of a file begins that is not yet written to its end."""


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """Give a path beside `file` to write to, which then takes its place atomically."""
    beside = file.with_name(WRITING + file.name)
    yield beside
    with beside.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(beside, file)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file that is whole at any moment."""
    with written_beside(file) as beside:
        beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_folder(folder: Path, *savers, card: ModelCard | None = None) -> None:
    """Let each saver's ``save_pretrained`` write into a folder beside `folder`, then move the files into place.

    A model card goes beside them as README.md, where the hub reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=WRITING) as writing:
        for saver in savers:
            saver.save_pretrained(writing)
        if card is not None:
            card.save(Path(writing) / "README.md")
        for file in sorted(Path(writing).iterdir()):
            os.replace(file, folder / file.name)
