"""Teacher and student as the parameters describe them, before any training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.catalyst_today.engine import is_main_process
from helpers.models import (
    KINDS,
    check_student,
    check_vocabularies,
    check_width,
    describe_trimming,
    extract_student,
    keep_rows,
    load_student,
    load_teacher,
    narrow_feed_forward,
    spread_layers,
    trim_vocabulary,
)
from helpers.runs.experiment.texts import corpus_loaders, read_corpus
from helpers.runs.experiment.trained import Trained
from helpers.runs.records import from_root, identity
from helpers.training import check_shapes

SHAPE = {"STUDENT": "distilbert", "VOCABULARY": None, "FEED_FORWARD": None}
"""The parameters of a student's shape, LAYERS aside, and what they are where nobody gives them."""
IMPORTANCE_BATCHES = 16
"""Batches of the corpus on which FEED_FORWARD chooses its neurons."""


def cuts(parameters: dict[str, Any], *names: str) -> dict[str, Any]:
    """The parameters of the shape that are not as by default, a model as what `identity` says of it."""
    given = {name: parameters.get(name, SHAPE[name]) for name in names}
    cuts = {name: value for name, value in given.items() if value != SHAPE[name]}
    return cuts | ({"STUDENT": identity(cuts["STUDENT"])} if "STUDENT" in cuts else {})


def chosen_layers(layers: int | str | list[int], teacher_layers: int) -> list[int]:
    """LAYERS as a list: a number, like ``"spread:3"``, is spread over the teacher's; or ``"first:3"``, ``"last:3"``.

    Raises:
        ValueError: there are not so many layers.
    """
    if isinstance(layers, list):
        return layers
    which, number = layers.split(":") if isinstance(layers, str) else ("spread", layers)
    spread = spread_layers(teacher_layers, int(number))
    every = list(range(teacher_layers))
    return {"spread": spread, "first": every[: len(spread)], "last": every[-len(spread) :]}[which]


def teacher_source(teacher: str | Path) -> str | Path:
    """A local folder's path from the root, or the name as it is."""
    return from_root(teacher) if from_root(teacher).is_dir() else teacher


def prepare_teacher(parameters: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """TEACHER and its tokenizer before any training, of VOCABULARY rows where that says a number.

    Whether the student that the parameters describe can be made of it is looked at here, before minutes of training.

    Raises:
        FileNotFoundError, ValueError: what `load_teacher`, `load_student`, `trim_vocabulary` and the checks of LAYERS,
            STUDENT, FEED_FORWARD and LOSS_WEIGHTS find.
    """
    model, tokenizer = load_teacher(teacher_source(parameters["TEACHER"]), parameters["MAX_LENGTH"])
    if "LAYERS" in parameters:
        _check_student(parameters, model, tokenizer)
    size = parameters.get("VOCABULARY")
    if size is None:
        return model, tokenizer
    texts = read_corpus(parameters)
    small, trimmed = trim_vocabulary(model, tokenizer, texts, size)
    if is_main_process():
        found = describe_trimming(texts, tokenizer, trimmed)
        cover = ", ".join(f"{share:.1%} need {rows:,}" for share, rows in found["rows"].items())
        before, after = found["before"], found["after"]
        print(
            f"VOCABULARY: {size:,} of {len(tokenizer.get_vocab()):,} rows stay. Of the tokens of CORPUS {cover}. A "
            f"text has {after['tokens']:.1f} tokens (before: {before['tokens']:.1f}); {after['unknown']:.2%} "
            f"are {tokenizer.unk_token} (before: {before['unknown']:.2%})."
        )
    return small, trimmed


def _check_student(parameters: dict[str, Any], teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    kind, student = parameters.get("STUDENT", SHAPE["STUDENT"]), teacher
    if kind in KINDS:
        check_student(teacher, chosen_layers(parameters["LAYERS"], teacher.config.num_hidden_layers), kind)
    else:
        student, own = load_student(teacher_source(kind), parameters["MAX_LENGTH"])
        check_vocabularies(own, tokenizer, kind)
        check_shapes(teacher, student, parameters.get("LOSS_WEIGHTS", {}))
    if (width := parameters.get("FEED_FORWARD")) is not None:
        check_width(student, width)


def make_student(parameters: dict[str, Any], teacher: Trained) -> PreTrainedModel:
    """The student that STUDENT, LAYERS and FEED_FORWARD describe, not distilled yet, in eval mode.

    A model of the user's own gets the rows that VOCABULARY has left its teacher, and keeps all its layers. The neurons
    that FEED_FORWARD keeps are the same for every SEED.

    Args:
        parameters: checked parameters.
        teacher: as `ensure_teacher` gives it.
    """
    kind = parameters.get("STUDENT", SHAPE["STUDENT"])
    if kind in KINDS:
        layers = chosen_layers(parameters["LAYERS"], teacher.model.config.num_hidden_layers)
        student = extract_student(teacher.model, layers, student=kind)
    else:
        student, own = load_student(teacher_source(kind), parameters["MAX_LENGTH"])
        if parameters.get("VOCABULARY") is not None:
            numbers, kept = own.get_vocab(), teacher.tokenizer.get_vocab()
            student = keep_rows(student, [numbers[token] for token in sorted(kept, key=kept.get)])
    width = parameters.get("FEED_FORWARD")
    if width is None:
        return student
    with torch.random.fork_rng():  # the batches' masks come from torch's global generator
        torch.manual_seed(0)
        batches = corpus_loaders(parameters, teacher.tokenizer, IMPORTANCE_BATCHES)["train"]
        return narrow_feed_forward(student, width, islice(batches, IMPORTANCE_BATCHES))
