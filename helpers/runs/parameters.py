"""The parameters of all notebooks, and what right values are. Knows nothing of what they are used for."""

from __future__ import annotations

import ast
import difflib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from helpers.callbacks import LOSSES, TASK_LOSSES, are_loss_weights, loss_weights_form
from helpers.runs.records import from_root


def defaults(path: Path) -> dict[str, Any]:
    """The parameters of a notebook and their values, from the cell that is tagged so."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (lines,) = (cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse("".join(lines)).body}


def whole(least: int):
    return lambda value: type(value) is int and value >= least, f"a whole number, at least {least}"


def number(low: float, high: float):
    def check(value):
        return type(value) in (int, float) and math.isfinite(value) and low < value <= high

    return check, f"a number above {low:g}" + ("" if high == math.inf else f" and at most {high:g}")


def _is_layers(value) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(layer) is int for layer in value)
    if isinstance(value, str):
        return re.fullmatch(r"(spread|first|last):[1-9]\d*", value) is not None
    return type(value) is int and value >= 1


def _is_seed(value) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _are_seeds(value) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_seed, value)) and not _has_repeats(value)


def _are_sentences(value) -> bool:
    return isinstance(value, list) and bool(value) and all(str(each).count("[MASK]") == 1 for each in value)


def _is_corpus(value) -> bool:
    return (
        all(isinstance(each, str) and each for each in value) if isinstance(value, list) and value else text[0](value)
    )


def _is_labelled_corpus(value) -> bool:
    if isinstance(value, dict):
        return len(value) > 1 and all(text[0](label) and _is_corpus(files) for label, files in value.items())
    return _is_corpus(value)


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


SOURCES = "'bundled', a file, a folder, a pattern, hub:OWNER/NAME[:CONFIG[:SPLIT]], or a list of these"


at_least_one_or_none = (
    lambda value: value is None or (type(value) is int and value >= 1),
    "a whole number, at least 1, or None",
)


MORE_CONTENDERS = {
    "random_layers",
    "extracted_longer",
    "extracted_hard",
    "extracted_task_one",
    "mlm_only_task",
    "distilled_longer",
    "distilled_hard",
    "distilled_task_labelled",
    "distilled_task_left_over",
    "distilled_task_corpus",
    "distilled_task_one",
}


class Parameter(NamedTuple):
    """What a value has to fulfil, what a right value is, and what the parameter is, with its unit."""

    check: Callable[[Any], bool]
    right: str
    what: str


PARAMETERS: dict[str, Parameter] = {
    "TEACHER": Parameter(
        *text, "the teacher: `minilm` (packaged), an encoder's name on the Hugging Face hub, or a folder"
    ),
    "LAYERS": Parameter(
        _is_layers,
        "how many layers to keep, or a list of layer numbers such as [0, 2, 5], or spread:3, first:3 or last:3",
        "the teacher's layers that the student keeps, counted from 0; a number is spread over the teacher's",
    ),
    "STUDENT": Parameter(
        *text,
        "what the student is: `distilbert` (of a BERT), `same` (the teacher's own class), or a folder or a name on the "
        "hub of a masked-LM model with the teacher's vocabulary, of any width; LAYERS then has no part in it",
    ),
    "VOCABULARY": Parameter(
        *at_least_one_or_none,
        "rows of the vocabulary that teacher and student keep, those that CORPUS uses most; None keeps all",
    ),
    "FEED_FORWARD": Parameter(
        *at_least_one_or_none,
        "width of the student's feed-forward layers: the neurons that matter most on CORPUS; None keeps all",
    ),
    "CORPUS": Parameter(
        _is_corpus,
        SOURCES,
        "the texts of the distillation: a file (CSV, TSV, JSON lines, Parquet or plain text), a folder, a pattern, "
        "`hub:OWNER/NAME`, or a list of these; `bundled` is the packaged IMDb reviews",
    ),
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
    "HIDDEN_WORDS": Parameter(
        lambda value: type(value) is bool,
        "True or False",
        "True distils the student on hidden words before its task; False leaves that out: it starts as copied layers",
    ),
    "CONTROL": Parameter(
        lambda value: type(value) is bool,
        "True or False",
        "True trains a second student as long, on masked LM alone, to show what the teacher adds",
    ),
    "LABELLED_CORPUS": Parameter(
        _is_labelled_corpus,
        f"{SOURCES}; or a dict from two labels or more to these",
        "the task's labelled texts, as in CORPUS, or a dict from each label to them; `bundled` is Rotten Tomatoes",
    ),
    "LABELLED_TEXT_FIELD": Parameter(*field, "the column of LABELLED_CORPUS that holds the text"),
    "LABEL_FIELD": Parameter(*field, "the column of LABELLED_CORPUS that holds the label, a word or a number"),
    "PART_SIZES": Parameter(
        _are_sizes,
        "a dict from 'train', 'valid' and 'test' to numbers of texts, each at least 2",
        "labelled texts in each part; where there are fewer in all, each part shrinks by the same factor",
    ),
    "TRANSFER_TEXTS": Parameter(*whole(1), "texts without label, at most, that the task is distilled on"),
    "BASELINE": Parameter(
        lambda value: value is None or (isinstance(value, str) and value not in ("", "None")),
        "a model, or None",
        "a public model to compare with: `minilm-l3` (packaged, 3 layers), a name on the hub, a folder, or None",
    ),
    "FINE_TUNING_BATCH_SIZE": Parameter(*whole(1), "texts in a batch of the fine-tuning"),
    "FINE_TUNING_EPOCHS": Parameter(*whole(1), "passes over the labelled training part"),
    "FINE_TUNING_LEARNING_RATES": Parameter(
        _are_rates,
        "a list of numbers above 0 and at most 1",
        "learning rates that are tried on the validation part, for every contender",
    ),
    "SEARCH_SEEDS": Parameter(
        *whole(1), "of SEEDS, at most, that each of these learning rates is tried with; the mean decides"
    ),
    "MORE_CONTENDERS": Parameter(
        lambda value: isinstance(value, list) and not _has_repeats(value) and set(map(str, value)) <= MORE_CONTENDERS,
        f"a list of different names out of {sorted(MORE_CONTENDERS)}",
        "notebook 06's controls that take the gain of the task's distillation apart",
    ),
    "TASK_EPOCHS": Parameter(*whole(1), "passes over labelled and unlabelled texts when the task is distilled"),
    "TASK_LOSS_WEIGHTS": Parameter(
        lambda value: are_loss_weights(value, TASK_LOSSES) and value.get("kl", 0) + value.get("mse", 0) > 0,
        f"{loss_weights_form(TASK_LOSSES)}; kl or mse above 0",
        "the weights of the losses that distil the task",
    ),
    "PROCESSES": Parameter(*whole(2), "processes that learn together; BATCH_SIZE is a multiple of it"),
    "SEED": Parameter(_is_seed, "a whole number, at least 0 and below 2**64", "of order, masks and dropout"),
    "SEEDS": Parameter(
        _are_seeds,
        "a list of different whole numbers, each at least 0 and below 2**64",
        "one model, or classifier, is made for each",
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
    "SMALL": Parameter(
        lambda value: (
            isinstance(value, dict)
            and set(value) == {"VOCABULARY", "FEED_FORWARD"}
            and all(type(size) is int and size >= 1 for size in value.values())
        ),
        "a dict from 'VOCABULARY' and 'FEED_FORWARD' to whole numbers, each at least 1",
        "what notebook 07's small student keeps: tokens, and neurons of each feed-forward layer",
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


NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


WORDS = {"None": None, "True": True, "true": True, "False": False, "false": False}
"""What these words spell: Python's, and YAML's."""


def as_spelled(value: Any) -> Any:
    """Texts that spell a number, list, dict, truth value or None as such, inside lists and dicts too; keys as texts."""
    if isinstance(value, list):
        return [as_spelled(each) for each in value]
    if isinstance(value, dict):
        return {str(key): as_spelled(each) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    if NUMBER.fullmatch(value):
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    try:
        return as_spelled(yaml.safe_load(value)) if value[:1] in ("[", "{") else WORDS.get(value, value)
    except yaml.YAMLError:
        return value


def as_meant(name: str, value: Any) -> Any:
    """The value that is meant where YAML or a command line gives another type; one that is right, or unknown, as it is.

    YAML reads ``5e-4`` as a text, and so it does what stands in quotes; papermill's ``-p`` knows numbers and texts
    alone. A text that is no right value is read as the number, list or dict that it spells; a whole number that is
    none, as a text: ``-p TEXT_FIELD 0`` is the column named 0. In GRID this holds for each value that is tried.
    """
    if name == "GRID":
        grid = as_spelled(value) if isinstance(value, str) else value
        if isinstance(grid, dict):
            return {
                each: [as_meant(each, one) for one in tried] if isinstance(tried, list) else tried
                for each, tried in grid.items()
            }
    if name in PARAMETERS and not PARAMETERS[name].check(value):
        as_text = str(value) if type(value) is int and value >= 0 else value
        for meant in (as_spelled(value), as_text):
            if PARAMETERS[name].check(meant):
                return meant
    return value


def _fault(name: str, value: Any) -> str:
    """The sentence on a value that is not right."""
    said = f"{name} is {value!r}; it has to be {PARAMETERS[name].right}."
    if not isinstance(value, str | list | dict) and PARAMETERS[name].check(str(value)):
        said += " In a file, put it in quotes; on the command line, give it by -r in place of -p."
    return said


def uneven(name: str, size: int, processes: int) -> str | None:
    """The sentence on a batch that processes cannot share evenly, if they cannot."""
    if size % processes:
        return f"{name} is {size}: {processes} processes cannot share it evenly. Make it a multiple."
    return None


def check_parameters(namespace: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters of a notebook: its UPPER_CASE names, and what papermill has set, of whatever case.

    Args:
        namespace: the notebook's ``globals()``; IPython keeps the cells that were run in its ``In``. A value of
            another type than it is meant to have is replaced there (see `as_meant`).

    Returns:
        The parameters alone.

    Raises:
        ValueError: a name that no notebook has, or a value out of its range (every fault is named), or an OUTPUT_DIR
            that cannot be written.
    """
    names = [name for name in namespace if name.isupper() and not name.startswith("_")]
    names += [name for name in _injected(namespace.get("In", [])) if name not in names]
    parameters = {name: as_meant(name, namespace[name]) for name in names}
    faults = []
    for name, value in parameters.items():
        if name not in PARAMETERS:
            faults.append(f"{name} is no parameter of any notebook{did_you_mean(name.upper(), PARAMETERS)}")
        elif not PARAMETERS[name].check(value):
            faults.append(_fault(name, value))
    if not faults and "PROCESSES" in parameters and "BATCH_SIZE" in parameters:
        faults += filter(None, [uneven("BATCH_SIZE", parameters["BATCH_SIZE"], parameters["PROCESSES"])])
    if faults:
        raise ValueError("\n".join(faults))
    if "OUTPUT_DIR" in parameters:
        _check_writable(from_root(parameters["OUTPUT_DIR"]))
    namespace.update(parameters)
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
