"""What a model of the controls is worth, fine-tuned on the labelled texts of notebook 06."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any
import numpy as np
from helpers.catalyst_today.engine import Engine
from helpers.classification import classifier_of, predict, search_and_train, train_classifier
from helpers.data import balanced_weights, encode
from helpers.runs.controls import packed
from helpers.runs.experiment import VALIDATIONS, cut_at
from helpers.runs.task import parted, task_loaders

PARTING = ("CORPUS", "TEXT_FIELD", "LABELLED_CORPUS", "LABELLED_TEXT_FIELD", "LABEL_FIELD")
PARTING += ("PART_SIZES", "TRANSFER_TEXTS")
"""The parameters that `parted` reads."""


@lru_cache
def parts_of(parameters: str) -> dict:
    """`parted`, which takes a while, once for all runs; the parameters as JSON."""
    return parted(json.loads(parameters))


def task_entry(
    model, tokenizer, parameters: dict[str, Any], engine: Engine
) -> tuple[dict[str, Any], int]:
    """Fine-tune a copy on the labels, at the rate that validates best, and test it.

    Returns:
        ``test_accuracy``, ``searched`` (from each learning rate to its accuracy on validation) and
        ``correct`` (packed, a test text each); and the number of test texts.
    """
    # Sorted, the test part is the first one that is drawn: the split is another than notebook 06's.
    of_parts = {name: value for name, value in parameters.items() if name in PARTING}
    parts, most = parts_of(json.dumps(of_parts, sort_keys=True)), parameters["MAX_LENGTH"]
    own, labels = cut_at(tokenizer, most), parts["train"].features["label"].names
    rows = {name: encode(parts[name], own, most) for name in ("train", "valid", "test")}
    balanced = balanced_weights(parts["train"]["label"], len(labels))
    size, passes = parameters["FINE_TUNING_BATCH_SIZE"], parameters["FINE_TUNING_EPOCHS"]

    def train(classifier, rate: float, seed: int):
        loaders = task_loaders(rows["train"], rows["valid"], own, size, passes, seed)
        options = {"epochs": VALIDATIONS, "learning_rate": rate, "seed": seed, "engine": engine}
        return train_classifier(classifier, loaders, **options, class_weights=balanced)

    def make(seed: int):
        return classifier_of(model, labels, seed)

    rates, seeds = parameters["FINE_TUNING_LEARNING_RATES"], [parameters["SEED"]]
    found = search_and_train(own, make, train, rates, seeds)
    logits = predict(found.classifiers[0], rows["test"], own, batch_size=size, engine=engine)
    right = logits.argmax(-1).numpy() == np.array(parts["test"]["label"])
    searched = {f"{rate:g}": accuracy for rate, accuracy in found.searched.items()}
    entry = {"test_accuracy": float(right.mean()), "searched": searched, "correct": packed(right)}
    return entry, len(right)
