"""Checked parameters, and the models that one notebook makes and the next uses. Knows nothing of notebooks."""

from __future__ import annotations

import difflib
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.callbacks import LOSS_WEIGHTS_FORM, are_loss_weights
from helpers.checkpoints import save_folder
from helpers.data import bundled_reviews, masked_lm_loaders, read_texts
from helpers.engine import Engine
from helpers.models import (
    check_layers,
    extract_student,
    head_is_untrained,
    load_teacher,
    quiet_transformers,
    spread_layers,
)
from helpers.records import fingerprint, from_root, identity, write_json
from helpers.training import distill, train_masked_lm

VALIDATIONS = 4
"""How often a run validates: this many mini-epochs share out its steps."""
TEACHER_LEARNING_RATE = 5e-4
TEACHER_SEED = 99_991
"""One of its own, so that no student reads the rows in the order in which its teacher did."""


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


text = (lambda value: isinstance(value, str) and value != "", "a text that is not empty")

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


def read_corpus(parameters: dict[str, Any]):
    """The texts that CORPUS names; ``"bundled"`` is the IMDb reviews, Rotten Tomatoes being kept for evaluation."""
    if parameters["CORPUS"] == "bundled":
        return bundled_reviews("imdb")
    return read_texts(from_root(parameters["CORPUS"]), parameters["TEXT_FIELD"])


def split_steps(steps: int) -> tuple[int, int]:
    """Share out the steps of a run: (mini-epochs, steps in each), never more than `steps` in all."""
    epochs = min(VALIDATIONS, steps)
    return epochs, steps // epochs


def corpus_loaders(
    parameters: dict[str, Any], tokenizer: PreTrainedTokenizerBase, steps: int, seed: int = 0
) -> dict[str, DataLoader]:
    """`masked_lm_loaders` over CORPUS, a mini-epoch of a run of `steps` being an epoch to Catalyst.

    The seed is that of the training rows' order; the validation part is the same for every seed.
    """
    return masked_lm_loaders(
        read_corpus(parameters),
        tokenizer,
        max_length=parameters["MAX_LENGTH"],
        batch_size=parameters["BATCH_SIZE"],
        steps_per_epoch=split_steps(steps)[1],
        order_seed=seed,
    )


@dataclass
class Trained:
    """A model on the CPU in eval mode, its tokenizer, the history of its training and the folder that holds it.

    `found` is True where an earlier run left it there.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    steps: list[dict[str, float]]
    validations: list[dict[str, float]]
    folder: Path
    seconds: float
    found: bool = False


def _ensure(folder: Path, values: dict[str, Any], what: str, make: Callable[[], Trained]) -> Trained:
    """Take a model from its folder, or make it and save it there, the record of its training last."""
    where = f"{folder.parent.name}/{folder.name}"
    marker = folder / "training.json"
    if marker.is_file():
        print(f"{what}: found in {where}, made with the same parameters.")
        training = json.loads(marker.read_text(encoding="utf-8"))
        with quiet_transformers():
            model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        seconds = training["timings"]["seconds"]
        return Trained(model.eval(), tokenizer, training["steps"], training["validations"], folder, seconds, found=True)
    print(f"{what}: making {where}.")
    made = make()
    save_folder(folder, made.model, made.tokenizer)
    timings = {"seconds": made.seconds}
    write_json(marker, {"parameters": values, "steps": made.steps, "validations": made.validations, "timings": timings})
    return made


def _teacher_values(parameters: dict[str, Any], trained: bool) -> dict[str, Any]:
    """What a teacher, and what is learned from it, depends on; `trained` where its head was trained here."""
    keys = ("MAX_LENGTH", "TEACHER_BATCH_SIZE", "TEACHER_STEPS") if trained else ("MAX_LENGTH",)
    return {
        "TEACHER": identity(parameters["TEACHER"]),
        "CORPUS": [identity(parameters["CORPUS"]), parameters["TEXT_FIELD"]],
        **{key: parameters[key] for key in keys},
    }


def ensure_teacher(parameters: dict[str, Any]) -> Trained:
    """The teacher with a masked-LM head that works.

    A checkpoint that has its head is taken as it is. Where the head is missing, the model is trained on CORPUS for
    TEACHER_STEPS of TEACHER_BATCH_SIZE, once: ``OUTPUT_DIR/02_student_extraction/teacher-<fingerprint>`` keeps it.
    SEED and BATCH_SIZE have no part in it, so that students of several seeds and batches have one teacher.
    """
    model, tokenizer = load_teacher(teacher_source(parameters["TEACHER"]))
    most = model.config.max_position_embeddings
    if parameters["MAX_LENGTH"] > most:
        raise ValueError(f"MAX_LENGTH is {parameters['MAX_LENGTH']}, but the teacher takes {most} tokens at most.")
    if "LAYERS" in parameters:
        # Here, before minutes of training, and not only where the student is extracted.
        check_layers(chosen_layers(parameters["LAYERS"], depth := model.config.num_hidden_layers), depth)
    values = _teacher_values(parameters, trained=True)
    folder = from_root(parameters["OUTPUT_DIR"]) / "02_student_extraction" / f"teacher-{fingerprint(values)}"
    if not head_is_untrained(model):
        return Trained(model, tokenizer, [], [], folder, 0.0)

    def make() -> Trained:
        steps = parameters["TEACHER_STEPS"]
        settings = {**parameters, "BATCH_SIZE": parameters["TEACHER_BATCH_SIZE"]}
        loaders = corpus_loaders(settings, tokenizer, steps, TEACHER_SEED)
        engine, start = Engine(), time.perf_counter()
        history = train_masked_lm(
            model,
            loaders,
            epochs=split_steps(steps)[0],
            learning_rate=TEACHER_LEARNING_RATE,
            seed=TEACHER_SEED,
            engine=engine,
        )
        seconds = time.perf_counter() - start
        return Trained(model, tokenizer, history.steps, history.validations, folder, seconds)

    return _ensure(folder, values, "Teacher with a trained head", make)


def ensure_student(parameters: dict[str, Any], teacher: Trained, draw=None) -> Trained:
    """The student extracted from `teacher` (as `ensure_teacher` gives it) and distilled on CORPUS for MAX_STEPS.

    ``OUTPUT_DIR/03_runner/student-<fingerprint>`` keeps it, with the checkpoints and logs of the run under ``logs/``.

    Args:
        parameters: checked parameters.
        teacher: the teacher to extract from and to learn from.
        draw: see `training.distill`.
    """
    layers = chosen_layers(parameters["LAYERS"], teacher.model.config.num_hidden_layers)
    keys = ("BATCH_SIZE", "MAX_STEPS", "LEARNING_RATE", "TEMPERATURE", "LOSS_WEIGHTS", "SEED")
    values = _teacher_values(parameters, trained=bool(teacher.steps))
    values |= {"LAYERS": layers, **{key: parameters[key] for key in keys}}
    folder = from_root(parameters["OUTPUT_DIR"]) / "03_runner" / f"student-{fingerprint(values)}"

    def make() -> Trained:
        student = extract_student(teacher.model, layers)
        steps = parameters["MAX_STEPS"]
        loaders = corpus_loaders(parameters, teacher.tokenizer, steps, parameters["SEED"])
        engine, start = Engine(), time.perf_counter()
        history = distill(
            teacher.model,
            student,
            loaders,
            epochs=split_steps(steps)[0],
            learning_rate=parameters["LEARNING_RATE"],
            loss_weights=parameters["LOSS_WEIGHTS"],
            temperature=parameters["TEMPERATURE"],
            seed=parameters["SEED"],
            engine=engine,
            logdir=_fresh(folder / "logs"),
            draw=draw,
        )
        seconds = time.perf_counter() - start
        return Trained(student, teacher.tokenizer, history.steps, history.validations, folder, seconds)

    return _ensure(folder, values, "Distilled student", make)


def chosen_layers(layers: int | list[int], teacher_layers: int) -> list[int]:
    """LAYERS as a list: a number is spread over the teacher's layers."""
    return spread_layers(teacher_layers, layers) if isinstance(layers, int) else layers


def teacher_source(teacher: str | Path) -> str | Path:
    """A local folder's path from the root, or the name as it is."""
    return from_root(teacher) if from_root(teacher).is_dir() else teacher


def _fresh(logdir: Path) -> Path:
    """Move what an interrupted run left in `logdir` aside: its checkpoints may be worth hours."""
    if logdir.exists():
        number = 1 + len(list(logdir.parent.glob("logs.interrupted-*")))
        logdir.rename(logdir.with_name(f"logs.interrupted-{number}"))
    return logdir
