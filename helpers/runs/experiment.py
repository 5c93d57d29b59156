"""The texts that the parameters name, and the models that one notebook makes and the next uses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from catalyst.core.callback import Callback
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.catalyst_today.engine import Engine, default_precision, is_main_process, wait_for_everyone
from helpers.catalyst_today.history import History
from helpers.catalyst_today.saving import save_folder, write_json
from helpers.data import bundled_reviews, masked_lm_loaders, read_labelled, read_texts, without_bars
from helpers.models import (
    check_layers,
    extract_student,
    head_is_untrained,
    load_teacher,
    quiet_transformers,
    spread_layers,
)
from helpers.runs.cards import model_card
from helpers.runs.records import fingerprint, from_root, identity
from helpers.training import distill, train_masked_lm

VALIDATIONS = 4
"""How often a run validates at least: this many mini-epochs share out its steps."""
EPOCH_STEPS = 500
"""The most steps in a mini-epoch, after which a run is saved: no more than these, and a minute's, are ever lost."""
TEACHER_LEARNING_RATE = 5e-4
TEACHER_SEED = 99_991
"""One of its own, so that no student reads the rows in the order in which its teacher did."""


def read_corpus(parameters: dict[str, Any]):
    """The texts that CORPUS names; ``"bundled"`` is the IMDb reviews, Rotten Tomatoes being kept for evaluation."""
    if parameters["CORPUS"] == "bundled":
        return bundled_reviews("imdb")
    return read_texts(from_root(parameters["CORPUS"]), parameters["TEXT_FIELD"])


def labelled_corpus(parameters: dict[str, Any]) -> datasets.Dataset:
    """The labelled texts that LABELLED_CORPUS names; ``"bundled"`` is the Rotten Tomatoes sentences."""
    source = parameters["LABELLED_CORPUS"]
    if source == "bundled":
        reviews = bundled_reviews("rotten_tomatoes")
        with without_bars():
            return reviews.cast_column("label", datasets.ClassLabel(names=["negative", "positive"]))
    if isinstance(source, dict):
        source = {label: from_root(file) for label, file in source.items()}
    else:
        source = from_root(source)
    return read_labelled(source, parameters["LABELLED_TEXT_FIELD"], parameters["LABEL_FIELD"])


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
    started; `found` is True where an earlier run left the model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    history: History | None
    folder: Path
    seconds: float
    found: bool = False


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


def _teacher_values(parameters: dict[str, Any], trained: bool, engine: Engine | None) -> dict[str, Any]:
    """What a teacher, and what is learned from it, depends on; `trained` where its head was trained here."""
    keys = ("MAX_LENGTH", "TEACHER_BATCH_SIZE", "TEACHER_STEPS") if trained else ("MAX_LENGTH",)
    return {
        "TEACHER": identity(parameters["TEACHER"]),
        "CORPUS": [identity(parameters["CORPUS"]), parameters["TEXT_FIELD"]],
        "precision": engine.mixed_precision if engine else default_precision()[0],
        **{key: parameters[key] for key in keys},
    }


def ensure_teacher(parameters: dict[str, Any], engine: Engine | None = None) -> Trained:
    """The teacher with a masked-LM head that works.

    A checkpoint that has its head is taken as it is. Where the head is missing, the model is trained on CORPUS for
    TEACHER_STEPS of TEACHER_BATCH_SIZE, once: ``OUTPUT_DIR/02_student_extraction/teacher-<fingerprint>`` keeps it.
    SEED and BATCH_SIZE have no part in it, so that students of several seeds and batches have one teacher.

    Args:
        parameters: checked parameters.
        engine: where and in which precision to train it; None takes an engine of its own. A head that was trained in
            another precision is another.
    """
    model, tokenizer = load_teacher(teacher_source(parameters["TEACHER"]))
    most = model.config.max_position_embeddings
    if parameters["MAX_LENGTH"] > most:
        raise ValueError(f"MAX_LENGTH is {parameters['MAX_LENGTH']}, but the teacher takes {most} tokens at most.")
    if "LAYERS" in parameters:
        # Here, before minutes of training, and not only where the student is extracted.
        check_layers(chosen_layers(parameters["LAYERS"], depth := model.config.num_hidden_layers), depth)
    values = _teacher_values(parameters, trained=True, engine=engine)
    folder = from_root(parameters["OUTPUT_DIR"]) / "02_student_extraction" / f"teacher-{fingerprint(values)}"
    if not head_is_untrained(model):
        return Trained(model, tokenizer, None, folder, 0.0)

    def make() -> Trained:
        steps = parameters["TEACHER_STEPS"]
        settings = {**parameters, "BATCH_SIZE": parameters["TEACHER_BATCH_SIZE"]}
        loaders = corpus_loaders(settings, tokenizer, steps, TEACHER_SEED)
        own_engine, start = engine or Engine(), time.perf_counter()
        history = train_masked_lm(
            model,
            loaders,
            epochs=split_steps(steps)[0],
            learning_rate=TEACHER_LEARNING_RATE,
            seed=TEACHER_SEED,
            engine=own_engine,
            logdir=folder / "logs",
        )
        return Trained(model, tokenizer, history, folder, time.perf_counter() - start)

    return _ensure(folder, values, "Teacher with a trained head", make, lambda made: _card(parameters, made))


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
    values = _teacher_values(parameters, trained=teacher.history is not None, engine=engine)
    values |= {"LAYERS": layers, **{key: parameters[key] for key in keys}}
    folder = from_root(parameters["OUTPUT_DIR"]) / "03_runner" / f"student-{fingerprint(values)}"

    def make() -> Trained:
        student = extract_student(teacher.model, layers)
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
    parameters: dict[str, Any], title: str, steps: int, metrics: dict[str, float], layers: list[int] | None = None
) -> ModelCard:
    """The card of a student of these layers after that many steps; without layers, of a teacher with a trained head.

    Args:
        parameters: those that it was trained with.
        title: the card's heading.
        steps: optimizer steps that its weights have seen.
        metrics: of the validation part, by name.
        layers: the teacher's layers that it was copied from.
    """
    settings = {"tokens in a block": parameters["MAX_LENGTH"], "steps": steps}
    if layers is None:
        what = "A BERT whose masked-LM head, which its checkpoint lacked, was trained together with its encoder."
        settings |= {"blocks in a batch": parameters["TEACHER_BATCH_SIZE"], "learning rate": TEACHER_LEARNING_RATE}
    else:
        weights = {name: weight for name, weight in parameters["LOSS_WEIGHTS"].items() if weight > 0}
        how = "trained by masked LM alone" if set(weights) == {"mlm"} else "distilled from it"
        what = f"A DistilBERT of its teacher's layers {layers}, {how}."
        settings |= {"blocks in a batch": parameters["BATCH_SIZE"], "learning rate": parameters["LEARNING_RATE"]}
        settings |= {"losses": weights, "temperature": parameters["TEMPERATURE"], "seed": parameters["SEED"]}
    corpus = "stanfordnlp/imdb" if parameters["CORPUS"] == "bundled" else parameters["CORPUS"]
    source = {"teacher": parameters["TEACHER"], "corpus": corpus}
    return model_card(title, "fill-mask", what, **source, settings=settings, metrics=metrics)


def _card(parameters: dict[str, Any], made: Trained, layers: list[int] | None = None) -> ModelCard:
    metrics = {name: value for name, value in made.history.kept.items() if name != "step"}
    return card(parameters, made.folder.name, made.history.kept["step"], metrics, layers)


def chosen_layers(layers: int | list[int], teacher_layers: int) -> list[int]:
    """LAYERS as a list: a number is spread over the teacher's layers."""
    return spread_layers(teacher_layers, layers) if isinstance(layers, int) else layers


def teacher_source(teacher: str | Path) -> str | Path:
    """A local folder's path from the root, or the name as it is."""
    return from_root(teacher) if from_root(teacher).is_dir() else teacher
