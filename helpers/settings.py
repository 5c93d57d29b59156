"""The parameters of all notebooks, and what right values are. Knows nothing of what they are used for."""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.callbacks import LOSS_WEIGHTS_FORM, are_loss_weights
from helpers.records import from_root

TASK_LOSSES = ("labels", "kl", "mse")
"""The names that TASK_LOSS_WEIGHTS may hold: what `sentiment.train_classifier` takes."""


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


def _are_task_loss_weights(value) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= set(TASK_LOSSES)
        and all(type(weight) in (int, float) and 0 <= weight < math.inf for weight in value.values())
        and value.get("kl", 0) + value.get("mse", 0) > 0
    )


text = (lambda value: isinstance(value, str) and value != "", "a text that is not empty")
field = (
    lambda value: (isinstance(value, str) and value != "") or (type(value) is int and value >= 0),
    "the name of a column, or its number, counted from 0, where the file has no row of names",
)

PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "TEACHER": text,
    "LAYERS": (_is_layers, "how many layers to keep, or a list of layer numbers such as [0, 2, 5]"),
    "CORPUS": text,
    "TEXT_FIELD": text,
    "MAX_LENGTH": whole(3),
    "BATCH_SIZE": whole(1),
    "TEACHER_STEPS": whole(1),
    "TEACHER_BATCH_SIZE": whole(1),
    "MAX_STEPS": whole(1),
    "LEARNING_RATE": number(0, 1),
    "TEMPERATURE": number(0, math.inf),
    "LOSS_WEIGHTS": (are_loss_weights, LOSS_WEIGHTS_FORM),
    "LABELLED_CORPUS": (_is_labelled_corpus, "a CSV file, 'bundled', or a dict from two labels or more to CSV files"),
    "LABELLED_TEXT_FIELD": field,
    "LABEL_FIELD": field,
    "PART_SIZES": (_are_sizes, "a dict from 'train', 'valid' and 'test' to numbers of texts, each at least 2"),
    "TRANSFER_TEXTS": whole(1),
    "BASELINE": (lambda value: value is None or (isinstance(value, str) and value != ""), "a model, or None"),
    "FINE_TUNING_BATCH_SIZE": whole(1),
    "FINE_TUNING_EPOCHS": whole(1),
    "FINE_TUNING_LEARNING_RATES": (_are_rates, "a list of numbers above 0 and at most 1"),
    "TASK_EPOCHS": whole(1),
    "TASK_LOSS_WEIGHTS": (
        _are_task_loss_weights,
        f"a dict from names out of {list(TASK_LOSSES)} to weights of at least 0, kl or mse above 0",
    ),
    "PROCESSES": whole(2),
    "SEED": whole(0),
    "SEEDS": (_are_seeds, "a list of different whole numbers, each at least 0"),
    "OUTPUT_DIR": text,
}
"""Every parameter of every notebook: the check of its value, and what a right value is."""


def check_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """Check the UPPER_CASE names of a notebook, papermill's injected ones among them.

    Args:
        namespace: the notebook's ``globals()``.

    Returns:
        The parameters alone.

    Raises:
        ValueError: a name that no notebook has, or a value out of its range (every fault is named), or an OUTPUT_DIR
            that cannot be written.
    """
    names = [name for name in namespace if name.isupper() and not name.startswith("_")]
    faults = []
    for name in names:
        if name not in PARAMETERS:
            near = difflib.get_close_matches(name, PARAMETERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f". The parameters are {', '.join(PARAMETERS)}."
            faults.append(f"{name} is no parameter of any notebook{hint}")
        elif not PARAMETERS[name][0](namespace[name]):
            faults.append(f"{name} is {namespace[name]!r}; it has to be {PARAMETERS[name][1]}.")
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
