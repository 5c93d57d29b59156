"""Where things are written, what names them, and the record of what a notebook measured. Knows nothing of models."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from helpers.catalyst_today.provenance import ROOT
from helpers.catalyst_today.saving import write_json


def from_root(path: str | Path) -> Path:
    """Take a relative path from the repository's root; from the working folder where only the helpers are installed."""
    return (ROOT if (ROOT / "notebooks").is_dir() else Path.cwd()) / Path(path).expanduser()


@lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of a file's bytes; read once as long as its size and its time of change (in nanoseconds) are the same."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for piece in iter(lambda: opened.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def identity(source: str | Path) -> str:
    """What a file, a model folder or a name stands for: its content's sha256 where it is on disk."""
    path = from_root(source)
    files = [path] if path.is_file() else [file for file in sorted(path.glob("*")) if file.is_file()]
    if not files:
        return str(source)
    stats = [(file, file.stat()) for file in files]
    digests = [_sha256(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _identities(source: str | dict[str, str]) -> str | dict[str, str]:
    return {key: identity(file) for key, file in source.items()} if isinstance(source, dict) else identity(source)


def fingerprint(values: dict[str, Any]) -> str:
    """Ten hexadecimal digits that name a set of parameters."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def without_output_dir(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that say what is made, and not where."""
    return {name: value for name, value in parameters.items() if name != "OUTPUT_DIR"}


def with_contents(parameters: dict[str, Any]) -> dict[str, Any]:
    """`without_output_dir`, and in place of each file, folder or name what `identity` says of it."""
    settings = without_output_dir(parameters)
    sources = {name: settings[name] for name in ("TEACHER", "CORPUS", "LABELLED_CORPUS") if name in settings}
    return settings | {name: _identities(source) for name, source in sources.items()}


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
