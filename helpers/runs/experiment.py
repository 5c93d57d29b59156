"""The texts that the parameters name, and the models that one notebook makes and the next uses."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from catalyst.core.callback import Callback
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.catalyst_today.engine import Engine, default_precision, is_main_process, wait_for_everyone
from helpers.catalyst_today.history import History
from helpers.catalyst_today.saving import save_folder, write_json
from helpers.data import (
    bundled_reviews,
    masked_lm_loaders,
    read_labelled,
    read_texts,
    source_name,
    token_counts,
    without_bars,
)
from helpers.models import (
    KINDS,
    check_student,
    check_vocabularies,
    check_width,
    describe_trimming,
    extract_student,
    head_is_untrained,
    keep_rows,
    load_student,
    load_teacher,
    narrow_feed_forward,
    quiet_transformers,
    spread_layers,
    start_head,
    trim_vocabulary,
)
from helpers.runs.cards import VALIDATION_PART, model_card
from helpers.runs.records import fingerprint, from_root, identities, identity, texts_from_root
from helpers.training import check_shapes, distill, train_masked_lm

VALIDATIONS = 4
"""How often a run validates at least: this many mini-epochs share out its steps."""
EPOCH_STEPS = 500
"""The most steps in a mini-epoch, after which a run is saved: no more than these, and a minute's, are ever lost."""
TEACHER_SEED = 99_991
"""One of its own, so that no student reads the rows in the order in which its teacher did."""
SHAPE = {"STUDENT": "distilbert", "VOCABULARY": None, "FEED_FORWARD": None}
"""The parameters of a student's shape, LAYERS aside, and what they are where nobody gives them."""
IMPORTANCE_BATCHES = 16
"""Batches of the corpus on which FEED_FORWARD chooses its neurons."""


@dataclass(frozen=True)
class HeadRecipe:
    """How a teacher's missing head is trained, beside TEACHER_STEPS and TEACHER_BATCH_SIZE.

    Attributes:
        learning_rate: at the end of the warm-up.
        token_frequencies: True where the output bias starts at the log of CORPUS' token frequencies (see
            `models.start_head`), and not at zero.
    """

    learning_rate: float = 5e-4
    token_frequencies: bool = False


HEAD = HeadRecipe()
"""That of all notebooks."""


def read_corpus(parameters: dict[str, Any]):
    """The texts that CORPUS names; ``"bundled"`` is the IMDb reviews, Rotten Tomatoes being kept for evaluation."""
    if parameters["CORPUS"] == "bundled":
        return bundled_reviews("imdb")
    return read_texts(texts_from_root(parameters["CORPUS"]), parameters["TEXT_FIELD"])


def labelled_corpus(parameters: dict[str, Any]) -> datasets.Dataset:
    """The labelled texts that LABELLED_CORPUS names; ``"bundled"`` is the Rotten Tomatoes sentences."""
    source = parameters["LABELLED_CORPUS"]
    if source == "bundled":
        reviews = bundled_reviews("rotten_tomatoes")
        with without_bars():
            return reviews.cast_column("label", datasets.ClassLabel(names=["negative", "positive"]))
    return read_labelled(texts_from_root(source), parameters["LABELLED_TEXT_FIELD"], parameters["LABEL_FIELD"])


def split_steps(steps: int) -> tuple[int, int]:
    """Share out the steps of a run: (mini-epochs, steps in each), never more than `steps` in all."""
    epochs = max(min(VALIDATIONS, steps), math.ceil(steps / EPOCH_STEPS))
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


def _ensure(
    folder: Path, values: dict[str, Any], what: str, make: Callable[[], Trained], card: Callable[[Trained], ModelCard]
) -> Trained:
    """Take a model from its folder, or make it and save it there with its card, the record of its training last.

    Under torchrun all processes make it together, and one of them prints and saves.
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
        save_folder(folder, made.model, made.tokenizer, card=card(made))
        training = {"parameters": values, "history": vars(made.history), "timings": {"seconds": made.seconds}}
        write_json(marker, training)
    wait_for_everyone()
    return made


def _cuts(parameters: dict[str, Any], *names: str) -> dict[str, Any]:
    """The parameters of the shape that are not as by default, a model as what `identity` says of it."""
    given = {name: parameters.get(name, SHAPE[name]) for name in names}
    cuts = {name: value for name, value in given.items() if value != SHAPE[name]}
    return cuts | ({"STUDENT": identity(cuts["STUDENT"])} if "STUDENT" in cuts else {})


def _teacher_values(
    parameters: dict[str, Any], trained: bool, engine: Engine | None, recipe: HeadRecipe
) -> dict[str, Any]:
    """What a teacher, and what is learned from it, depends on; `trained` where its head was trained here."""
    keys = ("MAX_LENGTH", "TEACHER_BATCH_SIZE", "TEACHER_STEPS") if trained else ("MAX_LENGTH",)
    # Named only where it is not the first recipe: what was made before there were others keeps its name.
    own = {"head": asdict(recipe)} if trained and recipe != HeadRecipe() else {}
    values = {
        "TEACHER": identity(parameters["TEACHER"]),
        "CORPUS": [identities(parameters["CORPUS"]), parameters["TEXT_FIELD"]],
        "precision": engine.mixed_precision if engine else default_precision()[0],
        **{key: parameters[key] for key in keys},
    }
    return values | own | _cuts(parameters, "VOCABULARY")


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


def ensure_teacher(parameters: dict[str, Any], engine: Engine | None = None, recipe: HeadRecipe = HEAD) -> Trained:
    """The teacher with a masked-LM head that works.

    A checkpoint that has its head is taken as it is. Where the head is missing, the model is trained on CORPUS for
    TEACHER_STEPS of TEACHER_BATCH_SIZE, once: ``OUTPUT_DIR/02_student_extraction/teacher-<fingerprint>`` keeps it.
    SEED and BATCH_SIZE have no part in it, so that students of several seeds and batches have one teacher.

    Args:
        parameters: checked parameters.
        engine: where and in which precision to train it; None takes an engine of its own. A head that was trained in
            another precision is another.
        recipe: how to train it. A head of another recipe is another, too.
    """
    model, tokenizer = prepare_teacher(parameters)
    values = _teacher_values(parameters, trained=True, engine=engine, recipe=recipe)
    folder = from_root(parameters["OUTPUT_DIR"]) / "02_student_extraction" / f"teacher-{fingerprint(values)}"
    if not head_is_untrained(model):
        return Trained(model, tokenizer, None, folder, 0.0)

    def make() -> Trained:
        steps = parameters["TEACHER_STEPS"]
        settings = {**parameters, "BATCH_SIZE": parameters["TEACHER_BATCH_SIZE"]}
        loaders = corpus_loaders(settings, tokenizer, steps, TEACHER_SEED)
        if recipe.token_frequencies:
            start_head(model, token_counts(read_corpus(parameters), tokenizer))
        own_engine, start = engine or Engine(), time.perf_counter()
        history = train_masked_lm(
            model,
            loaders,
            epochs=split_steps(steps)[0],
            learning_rate=recipe.learning_rate,
            seed=TEACHER_SEED,
            engine=own_engine,
            logdir=folder / "logs",
        )
        return Trained(model, tokenizer, history, folder, time.perf_counter() - start, recipe=recipe)

    made = _ensure(folder, values, "Teacher with a trained head", make, lambda made: _card(parameters, made))
    return replace(made, recipe=recipe)


def ensure_student(
    parameters: dict[str, Any], teacher: Trained, callbacks: Sequence[Callback] = (), engine: Engine | None = None
) -> Trained:
    """The student extracted from `teacher` (as `ensure_teacher` gives it) and distilled on CORPUS for MAX_STEPS.

    ``OUTPUT_DIR/03_runner/student-<fingerprint>`` keeps it, with the checkpoints and logs of the run under ``logs/``;
    a run that was interrupted goes on from there.

    Args:
        parameters: checked parameters.
        teacher: the teacher to extract from and to learn from.
        callbacks: further ones of the training, if there is one; see `training.fit`.
        engine: as `ensure_teacher`'s.
    """
    layers = chosen_layers(parameters["LAYERS"], teacher.model.config.num_hidden_layers)
    keys = ("BATCH_SIZE", "MAX_STEPS", "LEARNING_RATE", "TEMPERATURE", "LOSS_WEIGHTS", "SEED")
    values = _teacher_values(parameters, trained=teacher.history is not None, engine=engine, recipe=teacher.recipe)
    values |= {"LAYERS": layers, **{key: parameters[key] for key in keys}}
    values |= _cuts(parameters, "STUDENT", "FEED_FORWARD")
    folder = from_root(parameters["OUTPUT_DIR"]) / "03_runner" / f"student-{fingerprint(values)}"

    def make() -> Trained:
        student = make_student(parameters, teacher)
        steps = parameters["MAX_STEPS"]
        loaders = corpus_loaders(parameters, teacher.tokenizer, steps, parameters["SEED"])
        own_engine, start = engine or Engine(), time.perf_counter()
        history = distill(
            teacher.model,
            student,
            loaders,
            loss_weights=parameters["LOSS_WEIGHTS"],
            temperature=parameters["TEMPERATURE"],
            epochs=split_steps(steps)[0],
            learning_rate=parameters["LEARNING_RATE"],
            seed=parameters["SEED"],
            engine=own_engine,
            logdir=folder / "logs",
            callbacks=callbacks,
        )
        return Trained(student, teacher.tokenizer, history, folder, time.perf_counter() - start)

    return _ensure(folder, values, "Distilled student", make, lambda made: _card(parameters, made, layers))


def card(
    parameters: dict[str, Any],
    title: str,
    steps: int,
    metrics: dict[str, float],
    layers: list[int] | None = None,
    recipe: HeadRecipe = HEAD,
) -> ModelCard:
    """The card of a student of these layers after that many steps; without layers, of a teacher with a trained head.

    Args:
        parameters: those that it was trained with.
        title: the card's heading.
        steps: optimizer steps that its weights have seen.
        metrics: of the validation part, by name.
        layers: the teacher's layers that it was copied from.
        recipe: how a teacher's head was trained.
    """
    settings = {"tokens in a block": parameters["MAX_LENGTH"], "steps": steps}
    if layers is None:
        what = "Its masked-LM head, which the checkpoint lacked, was trained together with its encoder."
        settings |= _cuts(parameters, "VOCABULARY")
        settings |= {"blocks in a batch": parameters["TEACHER_BATCH_SIZE"], "learning rate": recipe.learning_rate}
    else:
        weights = {name: weight for name, weight in parameters["LOSS_WEIGHTS"].items() if weight > 0}
        how = "trained by masked LM alone" if set(weights) == {"mlm"} else "distilled from it"
        kind = parameters.get("STUDENT", SHAPE["STUDENT"])
        shape = {"distilbert": "A DistilBERT of its teacher's layers", "same": "A model of its teacher's layers"}
        what = f"{shape[kind]} {layers}, {how}." if kind in KINDS else f"A student with a shape of its own, {how}."
        settings |= {name: parameters[name] for name in _cuts(parameters, *SHAPE) if name != "STUDENT"}
        settings |= {"blocks in a batch": parameters["BATCH_SIZE"], "learning rate": parameters["LEARNING_RATE"]}
        settings |= {"losses": weights, "temperature": parameters["TEMPERATURE"], "seed": parameters["SEED"]}
    corpus = "stanfordnlp/imdb" if parameters["CORPUS"] == "bundled" else source_name(parameters["CORPUS"])
    source = {"teacher": parameters["TEACHER"], "corpus": corpus}
    return model_card(title, "fill-mask", what, **source, settings=settings, metrics=metrics, split=VALIDATION_PART)


def _card(parameters: dict[str, Any], made: Trained, layers: list[int] | None = None) -> ModelCard:
    metrics = {name: value for name, value in made.history.kept.items() if name != "step"}
    return card(parameters, made.folder.name, made.history.kept["step"], metrics, layers, made.recipe)


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


def cut_at(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that cuts texts at that many tokens where it is told to truncate, as a classifier's rows.

    Saved beside the classifier, it makes ``pipeline(..., truncation=True)`` read what the classifier was scored on.
    """
    own = copy.deepcopy(tokenizer)
    own.model_max_length = max_length
    return own


def teacher_source(teacher: str | Path) -> str | Path:
    """A local folder's path from the root, or the name as it is."""
    return from_root(teacher) if from_root(teacher).is_dir() else teacher
