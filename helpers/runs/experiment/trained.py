"""A model that was trained here, and its folder, in which it is found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.catalyst_today.engine import is_main_process, wait_for_everyone
from helpers.catalyst_today.history import History
from helpers.catalyst_today.saving import save_folder, write_json
from helpers.models import quiet_transformers


@dataclass(frozen=True)
class HeadRecipe:
    """How a teacher's missing head is trained, beside TEACHER_STEPS and TEACHER_BATCH_SIZE.

    Attributes:
        learning_rate: at the end of the warm-up.
        token_frequencies: True where the output bias, if there is one, starts at the log of the token frequencies of
            the training rows (see `models.start_head`), and not at zero.
    """

    learning_rate: float = 5e-4
    token_frequencies: bool = False


HEAD = HeadRecipe()
"""That of all notebooks."""


@dataclass
class Trained:
    """A model on the CPU in eval mode, its tokenizer, the history of its training and the folder that holds it.

    `history` is None of a model that was not trained here; `seconds` is what the training took since it was last
    started; `found` is True where an earlier run left the model; `recipe` is how a teacher's head was trained.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    history: History | None
    folder: Path
    seconds: float
    found: bool = False
    recipe: HeadRecipe = HEAD


def found_or_made(
    folder: Path,
    values: dict[str, Any],
    what: str,
    make: Callable[[], Trained],
    card: Callable[[str, int, dict[str, float]], ModelCard],
) -> Trained:
    """Take a model from its folder, or make it and save it there with its card, the record of its training last.

    Under torchrun all processes make it together, and one of them prints and saves.

    Args:
        folder: its own, named by the fingerprint of `values`.
        values: what it is made with.
        what: the model as it is called in what is printed.
        make: makes it.
        card: from the folder's name, the steps that the weights have seen, and their metrics to the model card.
    """
    where = f"{folder.parent.name}/{folder.name}"
    marker = folder / "training.json"
    if marker.is_file():
        if is_main_process():
            print(f"{what}: found in {where}, made with the same parameters.")
        training = json.loads(marker.read_text(encoding="utf-8"))
        try:
            with quiet_transformers():
                model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: the model that was saved here is damaged ({error}). Nothing was overwritten: put back what "
                "is missing, or move the folder away to have the model made anew."
            ) from error
        history, seconds = History(**training["history"]), training["timings"]["seconds"]
        return Trained(model.eval(), tokenizer, history, folder, seconds, found=True)
    if is_main_process():
        print(f"{what}: making {where}.")
    made = make()
    if is_main_process():
        metrics = {name: value for name, value in made.history.kept.items() if name != "step"}
        own_card = card(folder.name, made.history.kept["step"], metrics)
        save_folder(folder, made.model, made.tokenizer, card=own_card)
        training = {"parameters": values, "history": vars(made.history), "timings": {"seconds": made.seconds}}
        write_json(marker, training)
    wait_for_everyone()
    return made
