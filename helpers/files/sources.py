"""Which files a corpus is made of, and in which form each is, by its name. Opens none of them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

HUB = "hub:"
"""What a data set on the Hugging Face hub begins with, in place of a path."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FORMS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".parquet": "parquet",
    ".txt": "plain text",
}
READ = f"Read are names that end in {', '.join(FORMS)}; all but .parquet also with {', '.join(COMPRESSIONS)} after it."


def endings(path: Path) -> tuple[str, str]:
    """The two endings of a name that say how it is read: (".csv", ".gz"), or (".csv", "") where nothing is packed."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in COMPRESSIONS:
        return (endings[0] if len(endings) > 1 else "", endings[-1])
    return (endings[-1] if endings else "", "")


def is_readable(path: Path) -> bool:
    """Whether a file's name says that it is in one of the forms."""
    form, compression = endings(path)
    return form in FORMS and not (form == ".parquet" and compression)


def source_name(source: str | Path | Sequence | dict) -> str:
    """What a corpus is called in messages and cards: its files without their folders, or the data set on the hub."""
    if isinstance(source, dict):
        return source_name(list(source.values()))
    if isinstance(source, str | Path):
        return str(source) if str(source).startswith(HUB) else Path(source).name
    return ", ".join(map(source_name, source))


def _files_of_folder(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    found = [file for file in inside if is_readable(file)]
    if not found:
        deeper = f" For files in its subfolders, write a pattern such as {folder}/**/*.csv." if inside == [] else ""
        raise FileNotFoundError(f"{folder}: no file in this folder is in a form that can be read. {READ}{deeper}")
    others = [file.name for file in inside if file not in found]
    if others:
        print(f"{folder.name}: {len(found):,} files are read; left out by their names: {', '.join(others)}.")
    return found


def files_of(source: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The files that a corpus names, in the order in which they are read.

    Args:
        source: a file, a folder (its files, not those of its subfolders), a pattern with ``*``, ``?``, ``[...]`` or
            ``**``, a data set on the hub (``hub:...``), or a list of these. A folder's and a pattern's files are sorted
            by name.

    Returns:
        Paths of files; strings that begin with ``hub:`` as they are.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder or of the pattern.
        ValueError: a name does not say in which form the file is, or the list is empty.
    """
    if not isinstance(source, str | Path):
        if not source:
            raise ValueError("The list of files is empty. CORPUS and LABELLED_CORPUS need one file or more.")
        return [file for each in source for file in files_of(each)]
    if str(source).startswith(HUB):
        return [str(source)]
    path = Path(source)
    if path.is_dir():
        return _files_of_folder(path)
    found = [path] if path.exists() else sorted(filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True))))
    if not found:
        kind = "no file has a name of this pattern" if glob.has_magic(str(path)) else "no such file"
        raise FileNotFoundError(
            f"{path}: {kind}. CORPUS and LABELLED_CORPUS name a file, a folder, a pattern such as news/*.csv, a data "
            f"set (hub:OWNER/NAME), or are 'bundled'."
        )
    for file in found:
        if endings(file)[0] == ".parquet" and not is_readable(file):
            raise ValueError(f"{file}: Parquet is compressed within. Unpack the file to {file.with_suffix('').name}.")
        if not is_readable(file):
            raise ValueError(f"{file}: its name does not say what it is. {READ} Rename or export it.")
    return found
