"""A model's folder: are its files there, whole and readable? Nothing is unpickled. Knows nothing of models."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What `transformers` looks for, in this order."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES += ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
OTHER_KINDS = {
    "bert_config.json": 'Rename it config.json, and see that it says "model_type": "bert"',
    "adapter_config.json": "That is an adapter: merge it into its model, and save that",
}
"""What a folder without config.json may hold instead, and the remedy."""
LFS_POINTER = b"version https://git-lfs"


def check_model_folder(folder: Path, what: str) -> None:
    """Check that `transformers` will find a whole model in a folder.

    Args:
        folder: is there.
        what: the model as the message names it: the parameter and its value.

    Raises:
        FileNotFoundError: no config.json, no weights, or not all parts of them.
        ValueError: a file is a pointer of Git LFS, no JSON, cut short, or says no ``model_type``.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{what}: {_without_config(folder)}.")
    names = [name for name in WEIGHTS if (folder / name).is_file()][:1]
    if not names:
        raise FileNotFoundError(
            f"{what}: the folder holds no weights, neither model.safetensors nor pytorch_model.bin. It holds "
            f"{_listing(folder)}. Save the model with save_pretrained."
        )
    if names[0].endswith(".index.json"):
        shards = sorted(set(_json(folder / names[0], what).get("weight_map", {}).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            raise FileNotFoundError(
                f"{what}: {names[0]} names {len(shards)} files of weights, and of these {', '.join(missing) or 'none'} "
                f"{'is' if shards else 'there is'} missing. Copy them into the folder, too."
            )
        names += shards
    for name in ["config.json", *names, *(name for name in TOKENIZER_FILES if (folder / name).is_file())]:
        _check_file(folder / name, what)
    if not _json(config, what).get("model_type"):
        raise ValueError(f'{what}: config.json has no "model_type". Of a BERT it has to be "bert": add it.')


def _listing(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"


def _without_config(folder: Path) -> str:
    for name, remedy in OTHER_KINDS.items():
        if (folder / name).is_file():
            return f"the folder holds {name} and no config.json. {remedy}"
    inside = sorted(file.parent.name for file in folder.glob("*/config.json"))
    if inside:
        return f"the folder holds no config.json, but its folder {inside[0]!r} does. Name that one"
    return f"the folder holds no config.json. It holds {_listing(folder)}. Name one that save_pretrained wrote"


def _json(file: Path, what: str) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise ValueError(f"{what}: {file.name} is not valid JSON: {error}. Mend it, or fetch it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what}: {file.name} has to be a JSON object, {{...}}. Fetch it again.")
    return found


def _check_file(file: Path, what: str) -> None:
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(
            f"{what}: {file.name} is a pointer of Git LFS, not the file itself. Run `git lfs pull` in the repository "
            "that you cloned, or download the file."
        )
    if file.suffix == ".json":
        _json(file, what)
    elif file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{what}: {file.name} is damaged or cut short ({error}). Fetch it again.") from error
    elif file.suffix == ".bin" and (not start or (start.startswith(b"PK") and not zipfile.is_zipfile(file))):
        raise ValueError(f"{what}: {file.name} is empty or cut short. Fetch it again.")
