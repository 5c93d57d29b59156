"""A model's folder to the Hugging Face hub, in one commit. Knows nothing of how the model was made."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token

CARD = "README.md"
STAYS = ("training.json",)
"""Files beside the model that are of use on this machine alone."""


def files(folder: str | Path) -> list[Path]:
    """What `push_to_hub` would upload, relative to the folder: card, config, weights, tokenizer, and ``onnx/*.onnx``.

    Checkpoints, logs and the state to go on from stay.

    Raises:
        FileNotFoundError: the folder lacks the card, the config or the weights.
    """
    folder = Path(folder)
    for name in (CARD, "config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: {name} is missing. Name a folder that a notebook has saved a model in.")
    found = [file for file in folder.iterdir() if file.is_file() and file.name not in STAYS and file.name[0] != "."]
    return sorted(file.relative_to(folder) for file in [*found, *folder.glob("onnx/*.onnx")])


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> CommitInfo:
    """Upload a model with its tokenizer, card and ONNX files; a repository that is not there is made.

    The card's example names the repository there in place of the folder.

    Args:
        folder: what `files` takes.
        repo_id: OWNER/NAME.
        private: whether a repository that is made can be seen by its owner alone.

    Raises:
        FileNotFoundError: see `files`.
        PermissionError: no token is known here.
        huggingface_hub.errors.HfHubHTTPError, HFValidationError: the hub, or its library, refuses.
    """
    listed = files(folder)
    if get_token() is None:
        raise PermissionError("the hub takes files from known users alone: give `hf auth login`, or set HF_TOKEN.")
    api, card = HfApi(), (Path(folder) / CARD).read_text(encoding="utf-8").replace("this folder", repo_id)
    api.create_repo(repo_id, private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(file.as_posix(), card.encode("utf-8") if file.name == CARD else str(Path(folder) / file))
        for file in listed
    ]
    return api.create_commit(repo_id, operations, commit_message="Model, tokenizer and card")
