"""Where things are written, what names them, and the record of what a notebook measured. Knows nothing of models."""

from __future__ import annotations

import glob
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from helpers.catalyst_today.provenance import ROOT
from helpers.catalyst_today.saving import write_json

SOURCES = ("TEACHER", "STUDENT", "CORPUS", "LABELLED_CORPUS")
"""The parameters that name files, folders, or what lies on the hub."""


def from_root(path: str | Path) -> Path:
    """Take a relative path from the repository's root; from the working folder where only the helpers are installed."""
    return (ROOT if (ROOT / "notebooks").is_dir() else Path.cwd()) / Path(path).expanduser()


def below_root(path: Path) -> Path:
    """A path as it is given to a command in the repository's root: `from_root`, the other way round."""
    root = from_root("")
    return path.relative_to(root) if path.is_relative_to(root) else path


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a file's bytes; read once as long as its size and its time of change (in nanoseconds) are the same."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def texts_from_root(source: str | list | dict) -> str | Path | list | dict:
    """CORPUS or LABELLED_CORPUS with `from_root`'s paths, in lists and dicts too; names on the hub as they are."""
    if isinstance(source, dict):
        return {label: texts_from_root(each) for label, each in source.items()}
    if isinstance(source, list):
        return [texts_from_root(each) for each in source]
    return source if source.startswith("hub:") else from_root(source)


def identity(source: str | Path) -> str:
    """What a file, a folder, a pattern of files or a name stands for: its content's sha256 where it is on disk."""
    path = from_root(source)
    found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    files = [file for each in found for file in (sorted(each.glob("*")) if each.is_dir() else [each]) if file.is_file()]
    if not files:
        return str(source)
    stats = [(file, file.stat()) for file in files]
    digests = [_sha256(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def identities(source: str | list | dict) -> str | list | dict:
    """`identity` of each of the sources in a list or a dict."""
    if isinstance(source, dict):
        return {key: identities(each) for key, each in source.items()}
    return [identities(each) for each in source] if isinstance(source, list) else identity(source)


def fingerprint(values: dict[str, Any]) -> str:
    """Ten hexadecimal digits that name a set of parameters."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def without_output_dir(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that say what is made, and not where."""
    return {name: value for name, value in parameters.items() if name != "OUTPUT_DIR"}


def with_contents(parameters: dict[str, Any]) -> dict[str, Any]:
    """`without_output_dir`, and in place of each file, folder or name what `identity` says of it."""
    settings = without_output_dir(parameters)
    sources = {name: settings[name] for name in SOURCES if name in settings}
    return settings | {name: identities(source) for name, source in sources.items()}


def record_name(parameters: dict[str, Any]) -> str:
    """The fingerprint of a notebook's parameters and of the files that they name."""
    return fingerprint(with_contents(parameters))


def write_record(parameters: dict[str, Any], notebook: str, metrics: dict[str, Any], timings: dict[str, float]) -> Path:
    """Write what a notebook measured to ``OUTPUT_DIR/notebook/metrics.json``.

    The same goes into ``metrics-<fingerprint>.json``, which a run with other parameters leaves alone.
    """
    name = record_name(parameters)
    folder = from_root(parameters["OUTPUT_DIR"]) / notebook
    folder.mkdir(parents=True, exist_ok=True)
    record = {"parameters": without_output_dir(parameters), "fingerprint": name, **metrics, "timings": timings}
    for file in (folder / f"metrics-{name}.json", folder / "metrics.json"):
        write_json(file, record)
    return folder / "metrics.json"
