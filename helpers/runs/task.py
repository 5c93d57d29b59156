"""A classifier of LABELLED_CORPUS, from the parameters: what notebook 06 does once, ready to be trained by a config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
from huggingface_hub import ModelCard
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.catalyst_today.engine import Engine
from helpers.classification import classifier_of, load_baseline, predict, train_classifier
from helpers.data import balanced_weights, check_known, encode, label_loaders, part, source_name, with_teacher_logits
from helpers.models import weights_sha256
from helpers.runs.cards import VALIDATION_PART, model_card
from helpers.runs.experiment import (
    VALIDATIONS,
    Trained,
    cut_at,
    ensure_student,
    labelled_corpus,
    make_student,
    prepare_teacher,
    read_corpus,
    teacher_source,
)
from helpers.runs.records import fingerprint, from_root, with_contents
from helpers.training import warmup_steps

STARTS = ("teacher", "distilled", "extracted")
"""What a classifier may start from: the teacher, the student that is distilled from it, or the one before that."""
TAUGHT_BY = ("labels", "teacher")
"""What a classifier may learn from."""
TEACHING = ("LABELLED_CORPUS", "LABELLED_TEXT_FIELD", "LABEL_FIELD", "PART_SIZES", "CORPUS", "TEXT_FIELD")
TEACHING += ("TRANSFER_TEXTS", "MAX_LENGTH", "FINE_TUNING_BATCH_SIZE", "FINE_TUNING_EPOCHS", "SEED")
"""The parameters on which a fine-tuned teacher depends."""


@dataclass
class Task:
    """A classifier that is not trained yet, and what trains it.

    Attributes:
        classifier: on the CPU, in eval mode.
        tokenizer: its own.
        loaders: dict batches under ``"train"`` and ``"valid"``.
        class_weights: (classes,) float32, what a text of each class counts.
        classes: how many there are.
        loss_weights: of the losses that teach it, those above zero.
        epochs: how often the training loader is gone through.
        steps: training batches in all.
        warmup_steps: of the schedule.
        card: from steps and validation metrics to the classifier's model card.
    """

    classifier: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loaders: dict[str, DataLoader]
    class_weights: Tensor
    classes: int
    loss_weights: dict[str, float]
    epochs: int
    steps: int
    warmup_steps: int
    card: Callable[[int, dict[str, float]], ModelCard]


def check_models(parameters: dict[str, Any]) -> None:
    """Look, before anything is trained, whether TEACHER and BASELINE can read MAX_LENGTH tokens of the labelled texts.

    Raises:
        FileNotFoundError, ValueError: what `labelled_corpus`, `load_teacher`, `load_baseline` and `check_known` find.
    """
    table, most = labelled_corpus(parameters), parameters["MAX_LENGTH"]
    _, tokenizer = prepare_teacher(parameters)
    check_known(table, tokenizer, "LABELLED_CORPUS", "TEACHER")
    if parameters.get("BASELINE") is not None:
        labels = table.features["label"].names
        _, tokenizer = load_baseline(teacher_source(parameters["BASELINE"]), labels, seed=0, max_length=most)
        check_known(table, tokenizer, "LABELLED_CORPUS", "BASELINE")


def task_loaders(
    train: datasets.Dataset, valid: datasets.Dataset, tokenizer, batch_size: int, passes: int, seed: int
) -> dict[str, DataLoader]:
    """`label_loaders` whose epochs, `VALIDATIONS` of them, are together `passes` over the training rows."""
    steps = max(1, round(passes * len(train) / batch_size / VALIDATIONS))
    return label_loaders(train, valid, tokenizer, batch_size=batch_size, steps_per_epoch=steps, seed=seed)


def check_choices(start: str, taught_by: str) -> list[str]:
    """What is wrong with these arguments of `task`, a sentence each."""
    faults = []
    for name, value, known in (("start", start, STARTS), ("taught_by", taught_by, TAUGHT_BY)):
        if value not in known:
            faults.append(f"task: {name} is {value!r}; choose one of {', '.join(known)}.")
    return faults


def parted(parameters: dict[str, Any]) -> dict[str, datasets.Dataset]:
    """The parts of LABELLED_CORPUS, and the texts to distil the task on; see `data.part`.

    Raises:
        ValueError: what the readers of texts, or `data.part`, raise.
    """
    table, corpus = labelled_corpus(parameters), read_corpus(parameters)
    return part(table, parameters["PART_SIZES"], corpus=corpus, transfer_texts=parameters["TRANSFER_TEXTS"])


def classifier_card(title: str, what: str, parameters: dict[str, Any], **options) -> ModelCard:
    """`model_card` of a classifier of LABELLED_CORPUS; the options are that function's."""
    source = parameters["LABELLED_CORPUS"]
    return model_card(
        title,
        "text-classification",
        what,
        teacher=parameters["TEACHER"],
        corpus="cornell-movie-review-data/rotten_tomatoes" if source == "bundled" else source_name(source),
        **options,
    )


def task(
    parameters: dict[str, Any],
    teacher: Trained,
    parts: dict[str, datasets.Dataset],
    *,
    start: str,
    taught_by: str,
    teacher_learning_rate: float,
    engine: Engine,
    title: str = "classifier",
) -> Task:
    """Make ready to train a classifier.

    Taught by ``"labels"``, it learns from them for FINE_TUNING_EPOCHS. Taught by the ``"teacher"``, that is first
    fine-tuned on the labels so, and kept in ``OUTPUT_DIR/06_sentiment_evaluation``; the classifier then learns for
    TASK_EPOCHS, by TASK_LOSS_WEIGHTS, on labelled and unlabelled texts with the teacher's logits.

    Args:
        parameters: checked parameters.
        teacher: as `ensure_teacher` gives it.
        parts: as `parted` gives them.
        start: one of `STARTS`; ``"distilled"`` is distilled first where no earlier run has left it.
        taught_by: ``"labels"`` or ``"teacher"``.
        teacher_learning_rate: of the teacher's fine-tuning.
        engine: where and in which precision to compute.
        title: the heading of the model card.

    Raises:
        ValueError: another `start` or `taught_by`.
    """
    if faults := check_choices(start, taught_by):
        raise ValueError(" ".join(faults))
    tokenizer = cut_at(teacher.tokenizer, parameters["MAX_LENGTH"])
    labels, seed = parts["train"].features["label"].names, parameters["SEED"]
    rows = {name: encode(texts, tokenizer, parameters["MAX_LENGTH"]) for name, texts in parts.items()}
    weights, batch_size = balanced_weights(parts["train"]["label"], len(labels)), parameters["FINE_TUNING_BATCH_SIZE"]
    train, valid, passes = rows["train"], rows["valid"], parameters["FINE_TUNING_EPOCHS"]
    loss_weights = {"labels": 1.0}
    if taught_by == "teacher":
        loss_weights = {name: weight for name, weight in parameters["TASK_LOSS_WEIGHTS"].items() if weight > 0}
        classifier = classifier_of(teacher.model, labels, seed)
        values = with_contents({name: parameters[name] for name in TEACHING})
        values |= {"rate": teacher_learning_rate, "precision": engine.mixed_precision}
        values |= {"teacher": weights_sha256(teacher.model)}
        train_classifier(
            classifier,
            task_loaders(train, valid, tokenizer, batch_size, passes, seed),
            epochs=VALIDATIONS,
            learning_rate=teacher_learning_rate,
            seed=seed,
            engine=engine,
            class_weights=weights,
            logdir=from_root(parameters["OUTPUT_DIR"]) / "06_sentiment_evaluation" / f"teacher-{fingerprint(values)}",
        )
        train, passes = datasets.concatenate_datasets([train, rows["transfer"]]), parameters["TASK_EPOCHS"]
        options = {"batch_size": batch_size, "engine": engine}
        train, valid = (
            with_teacher_logits(each, predict(classifier, each, tokenizer, **options)) for each in (train, valid)
        )
    if start == "distilled":
        encoder = ensure_student(parameters, teacher, engine=engine).model
    else:
        encoder = teacher.model if start == "teacher" else make_student(parameters, teacher)
    layers = getattr(encoder.config, "teacher_layers", "its own")
    loaders = task_loaders(train, valid, tokenizer, batch_size, passes, seed)
    steps = VALIDATIONS * len(loaders["train"])

    def card(steps: int, metrics: dict[str, float]) -> ModelCard:
        settings = {"start": start, "steps": steps, "losses": loss_weights, "seed": seed}
        return classifier_card(
            title,
            "A classifier on the encoder of its teacher, or of a student of that.",
            parameters,
            settings=settings | ({} if start == "teacher" else {"layers": layers}),
            metrics=metrics,
            split=VALIDATION_PART,
        )

    return Task(
        classifier_of(encoder, labels, seed),
        tokenizer,
        loaders,
        weights,
        len(labels),
        loss_weights,
        VALIDATIONS,
        steps,
        warmup_steps(steps),
        card,
    )
