"""The parameters of all notebooks, and what right values are. Knows nothing of what they are used for."""

from __future__ import annotations

import ast
import difflib
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from helpers.callbacks import LOSSES, TASK_LOSSES, are_loss_weights, loss_weights_form
from helpers.runs.records import from_root


def whole(least: int):
    return lambda value: type(value) is int and value >= least, f"a whole number, at least {least}"


def number(low: float, high: float):
    def check(value):
        return type(value) in (int, float) and math.isfinite(value) and low < value <= high

    return check, f"a number above {low:g}" + ("" if high == math.inf else f" and at most {high:g}")


def _is_layers(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(layer) is int for layer in value)
    return type(value) is int and value >= 1


def _are_seeds(value) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and len(set(value)) == len(value)
        and all(type(seed) is int and seed >= 0 for seed in value)
    )


def _are_sentences(value) -> bool:
    return isinstance(value, list) and bool(value) and all(str(each).count("[MASK]") == 1 for each in value)


def _is_labelled_corpus(value) -> bool:
    if isinstance(value, dict):
        return len(value) > 1 and all(isinstance(item, str) and item for pair in value.items() for item in pair)
    return isinstance(value, str) and value != ""


def _are_sizes(value) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"train", "valid", "test"}
        and all(type(size) is int and size >= 2 for size in value.values())
    )


def _are_rates(value) -> bool:
    return isinstance(value, list) and bool(value) and all(number(0, 1)[0](rate) for rate in value)


def _is_grid(value) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and not {"GRID", "OUTPUT_DIR"} & set(value)
        and all(isinstance(tried, list) and tried and not _has_repeats(tried) for tried in value.values())
    )


def _has_repeats(values: list) -> bool:
    return any(value in values[:i] for i, value in enumerate(values))


text = (lambda value: isinstance(value, str) and value != "", "a text that is not empty")
field = (
    lambda value: (isinstance(value, str) and value != "") or (type(value) is int and value >= 0),
    "the name of a column, or its number, counted from 0, where the file has no row of names",
)


class Parameter(NamedTuple):
    """What a value has to fulfil, what a right value is, and what the parameter is, with its unit."""

    check: Callable[[Any], bool]
    right: str
    what: str


PARAMETERS: dict[str, Parameter] = {
    "TEACHER": Parameter(*text, "the teacher: `minilm` (packaged), a BERT's name on the Hugging Face hub, or a folder"),
    "LAYERS": Parameter(
        _is_layers,
        "how many layers to keep, or a list of layer numbers such as [0, 2, 5]",
        "the teacher's layers that the student keeps, counted from 0; a number is spread over the teacher's",
    ),
    "CORPUS": Parameter(*text, "the texts of the distillation: a CSV file, or `bundled`, the packaged IMDb reviews"),
    "TEXT_FIELD": Parameter(*text, "the column of CORPUS that holds the text"),
    "SENTENCES": Parameter(
        _are_sentences,
        "a list of sentences with one [MASK] each",
        "teacher and student fill in their [MASK] before your eyes; examples, not a measurement",
    ),
    "MAX_LENGTH": Parameter(*whole(3), "tokens in a block, [CLS] and [SEP] included; at most what the teacher takes"),
    "BATCH_SIZE": Parameter(*whole(1), "blocks in a batch of the distillation, of all processes together"),
    "TEACHER_STEPS": Parameter(*whole(1), "optimizer steps that train a teacher's missing masked-LM head"),
    "TEACHER_BATCH_SIZE": Parameter(*whole(1), "blocks in a batch of that training"),
    "MAX_STEPS": Parameter(*whole(1), "optimizer steps of a distillation, at most"),
    "LEARNING_RATE": Parameter(*number(0, 1), "of the distillation, at the end of the warm-up"),
    "TEMPERATURE": Parameter(*number(0, math.inf), "divides the logits that the KL losses compare"),
    "LOSS_WEIGHTS": Parameter(
        lambda value: are_loss_weights(value, LOSSES),
        loss_weights_form(LOSSES),
        "the weights of the distillation's losses",
    ),
    "LABELLED_CORPUS": Parameter(
        _is_labelled_corpus,
        "a CSV file, 'bundled', or a dict from two labels or more to CSV files",
        "the task's labelled texts; `bundled` is Rotten Tomatoes",
    ),
    "LABELLED_TEXT_FIELD": Parameter(*field, "the column of LABELLED_CORPUS that holds the text"),
    "LABEL_FIELD": Parameter(*field, "the column of LABELLED_CORPUS that holds the label, a word or a number"),
    "PART_SIZES": Parameter(
        _are_sizes,
        "a dict from 'train', 'valid' and 'test' to numbers of texts, each at least 2",
        "labelled texts in each part",
    ),
    "TRANSFER_TEXTS": Parameter(*whole(1), "texts without label, at most, that the task is distilled on"),
    "BASELINE": Parameter(
        lambda value: value is None or (isinstance(value, str) and value != ""),
        "a model, or None",
        "a further model to compare with: its name on the hub, or a folder",
    ),
    "FINE_TUNING_BATCH_SIZE": Parameter(*whole(1), "texts in a batch of the fine-tuning"),
    "FINE_TUNING_EPOCHS": Parameter(*whole(1), "passes over the labelled training part"),
    "FINE_TUNING_LEARNING_RATES": Parameter(
        _are_rates,
        "a list of numbers above 0 and at most 1",
        "learning rates that are tried on the validation part, for every contender",
    ),
    "TASK_EPOCHS": Parameter(*whole(1), "passes over labelled and unlabelled texts when the task is distilled"),
    "TASK_LOSS_WEIGHTS": Parameter(
        lambda value: are_loss_weights(value, TASK_LOSSES) and value.get("kl", 0) + value.get("mse", 0) > 0,
        f"{loss_weights_form(TASK_LOSSES)}; kl or mse above 0",
        "the weights of the losses that distil the task",
    ),
    "PROCESSES": Parameter(*whole(2), "processes that learn together; BATCH_SIZE is a multiple of it"),
    "SEED": Parameter(*whole(0), "of order, masks and dropout"),
    "SEEDS": Parameter(
        _are_seeds, "a list of different whole numbers, each at least 0", "one model, or classifier, is made for each"
    ),
    "GRID": Parameter(
        _is_grid,
        "a dict from parameters of notebook 03 to lists of different values; not OUTPUT_DIR",
        "what is varied: one run for each combination of these values",
    ),
    "TEXTS": Parameter(
        lambda value: value is None or (type(value) is int and value >= 20),
        "a whole number, at least 20, or None for all",
        "texts of CORPUS that each run of the grid reads, a tenth of them to validate with",
    ),
    "OUTPUT_DIR": Parameter(*text, "the folder of models and records; relative paths are from the repository's root"),
}
"""Every parameter of every notebook."""


def _injected(cells: list[str]) -> list[str]:
    """The names that papermill has set, given the sources of the cells run so far; those of the newest such cell.

    It writes them into a cell of their own, after the defaults. Names of any case: it takes what it is given.
    """
    written = [source for source in cells if source.startswith("# Parameters\n")]
    nodes = ast.parse(written[-1]).body if written else []
    return [node.targets[0].id for node in nodes if isinstance(node, ast.Assign)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message on a name that is not there: the nearest that is, or all of them."""
    near = difflib.get_close_matches(name, known := list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f". There are: {', '.join(known)}."


def check_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters of a notebook: its UPPER_CASE names, and what papermill has set, of whatever case.

    Args:
        namespace: the notebook's ``globals()``; IPython keeps the cells that were run in its ``In``.

    Returns:
        The parameters alone.

    Raises:
        ValueError: a name that no notebook has, or a value out of its range (every fault is named), or an OUTPUT_DIR
            that cannot be written.
    """
    names = [name for name in namespace if name.isupper() and not name.startswith("_")]
    names += [name for name in _injected(namespace.get("In", [])) if name not in names]
    faults = []
    for name in names:
        if name not in PARAMETERS:
            faults.append(f"{name} is no parameter of any notebook{did_you_mean(name.upper(), PARAMETERS)}")
        elif not PARAMETERS[name].check(namespace[name]):
            faults.append(f"{name} is {namespace[name]!r}; it has to be {PARAMETERS[name].right}.")
    if faults:
        raise ValueError("\n".join(faults))
    parameters = {name: namespace[name] for name in names}
    if "OUTPUT_DIR" in parameters:
        _check_writable(from_root(parameters["OUTPUT_DIR"]))
    return parameters


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR: {folder} cannot be written ({error.strerror}). Set it to a folder that you may write to."
        ) from error
