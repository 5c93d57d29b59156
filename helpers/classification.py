"""Fine-tuning a classifier, and distilling the task from one classifier into another. Knows nothing of masked words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import datasets
import numpy as np
import torch
from catalyst.core.callback import Callback
from catalyst.core.logger import ILogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from helpers.callbacks import TASK_LOSSES, ConfusionCallback, KLDivLossCallback, LabelLossCallback, weighted_sum
from helpers.catalyst_today.engine import Engine
from helpers.catalyst_today.history import History, SilentLogger
from helpers.data import lengths, row_loader
from helpers.models import load_checked, read_config
from helpers.models.minilm_l3 import load_minilm_l3
from helpers.runner import ClassifierRunner
from helpers.training import fit


def _named(config, labels: Sequence[str]) -> None:
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def classifier_of(model: PreTrainedModel, labels: Sequence[str], seed: int) -> PreTrainedModel:
    """Put a new classification head on the encoder of a masked-LM model, or on an encoder by itself.

    Args:
        model: of `models.FAMILIES`; it is left as it is.
        labels: the names of the classes, in the order of their numbers.
        seed: of the head's random weights.

    Returns:
        The sequence classifier of its kind in eval mode, sharing no memory.
    """
    config = copy.deepcopy(model.config)
    _named(config, labels)
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_config(config)
    # Not strict: BERT's classifier has a pooler, which a masked-LM model lacks; it is part of the new head.
    unknown = classifier.base_model.load_state_dict(model.base_model.state_dict(), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the classifier of {type(model).__name__} has no place for {unknown}.")
    return classifier.eval()


def load_baseline(name_or_path: str, labels: Sequence[str], seed: int, max_length: int | None = None):
    """A classifier on any encoder that `transformers` loads, and its own tokenizer.

    Args:
        name_or_path: ``"minilm-l3"`` (the packaged paraphrase-MiniLM-L3-v2, its sha256 checked), a name on the Hugging
            Face hub, or a local folder.
        labels: the names of the classes.
        seed: of the head's random weights.
        max_length: how many tokens the model has to take.

    Raises:
        FileNotFoundError, ImportError, ValueError: what `load_minilm_l3`, or `models.read_config` and
            `models.load_checked`, find.
    """
    if name_or_path == "minilm-l3":
        encoder, tokenizer = load_minilm_l3(max_length)
        return classifier_of(encoder, labels, seed), tokenizer
    what = f"BASELINE {str(name_or_path)!r}"
    config = read_config(name_or_path, what)
    _named(config, labels)
    torch.manual_seed(seed)
    options = {"max_length": max_length, "ignore_mismatched_sizes": True}  # of a head with other classes
    kind = AutoModelForSequenceClassification
    classifier, tokenizer, _ = load_checked(kind, name_or_path, config, what, **options)
    classifier.config.pad_token_id = tokenizer.pad_token_id  # GPT-2's does not say it
    return classifier, tokenizer


def train_classifier(
    classifier: PreTrainedModel,
    loaders: dict[str, DataLoader],
    *,
    seed: int,
    loss_weights: dict[str, float] | None = None,
    temperature: float = 1.0,
    class_weights: Tensor | None = None,
    name: str | None = None,
    loggers: Mapping[str, ILogger] | None = None,
    **options,
) -> History:
    """Train a classifier in place: on labels, on a teacher's logits, or on a mix of both.

    It ends with the weights after the last step, where the schedule has come to its end.

    Args:
        classifier: takes ``input_ids`` and ``attention_mask`` and gives an output with ``logits`` (batch, classes).
        loaders: dict batches under ``"train"`` and ``"valid"``, both with ``t_logits`` where a loss needs them.
        loss_weights: from the names in `callbacks.TASK_LOSSES` to the weights of the sum; by default labels alone.
        temperature: of the KL loss.
        class_weights: see `callbacks.LabelLossCallback`.
        seed, name, loggers, options: see `training.fit`. Nothing is printed, unless another ``"console"`` is given.

    Returns:
        The history; its validations have ``accuracy`` and ``macro_f1``.

    Raises:
        ValueError: see `callbacks.weighted_sum`.
    """
    loss_weights = loss_weights or {"labels": 1.0}
    measures = task_measures(loss_weights, classifier.config.num_labels, temperature, class_weights)
    settings = {"loss_weights": loss_weights, "temperature": temperature}
    settings |= {"class_weights": None if class_weights is None else class_weights.tolist()}
    settings |= options.get("settings") or {}
    options |= {"seed": seed, "settings": settings, "loggers": {"console": SilentLogger(), **(loggers or {})}}
    name = name or f"classifier, seed {seed}"
    return fit(ClassifierRunner(), classifier, measures, loaders, name=name, keep="last", **options)


def task_measures(
    loss_weights: dict[str, float], classes: int, temperature: float, class_weights: Tensor | None
) -> dict[str, Callback]:
    """The losses that have a weight, their sum as ``loss``, and accuracy and macro F1. See `train_classifier`."""
    losses = {name: make() for name, make in TASK_LOSSES.items()} | {"kl": KLDivLossCallback(temperature=temperature)}
    losses["labels"] = LabelLossCallback(class_weights=class_weights)
    return {**weighted_sum(loss_weights, losses), "confusion": ConfusionCallback(classes)}


@torch.no_grad()
def predict(
    classifier: PreTrainedModel,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    engine: Engine,
) -> Tensor:
    """The classifier's logits on `data.encode`'s rows, in their order: (rows, classes) float32 on the CPU."""
    classifier.to(engine.device).eval()
    shortest_first, logits = np.argsort(lengths(rows), kind="stable"), []
    for batch in row_loader(rows.select(shortest_first), tokenizer, batch_size):
        inputs = {key: batch[key].to(engine.device) for key in ("input_ids", "attention_mask")}
        with engine.autocast():
            logits.append(classifier(**inputs).logits.float().cpu())
    classifier.cpu()
    return torch.cat(logits)[np.argsort(shortest_first)]


@dataclass
class Contender:
    """What fine-tuning gave: one classifier a seed, at the learning rate that was best on validation.

    Attributes:
        tokenizer: the classifiers' own.
        searched: from each learning rate to its validation accuracy, the mean over the seeds that it was tried with.
        learning_rate: the one chosen.
        classifiers: on the CPU in eval mode, one a seed.
        histories: of their training, one a seed.
    """

    tokenizer: PreTrainedTokenizerBase
    searched: dict[float, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    classifiers: list[PreTrainedModel] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)


def search_and_train(
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[[int], PreTrainedModel],
    train: Callable[[PreTrainedModel, float, int], History],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    search_seeds: int = 1,
) -> Contender:
    """Train with each learning rate and the first seeds; with the one that validates best, train with all seeds.

    Args:
        tokenizer: the classifiers'.
        make: from a seed to a new classifier.
        train: trains a classifier in place, given the learning rate and the seed.
        learning_rates: to try; of equally good ones the first is taken.
        seeds: one classifier for each.
        search_seeds: how many of them each rate is tried with; the mean of their last validations decides.
    """

    def trained(rate: float, seed: int) -> tuple[PreTrainedModel, History]:
        classifier = make(seed)
        return classifier, train(classifier, rate, seed)

    found, best = Contender(tokenizer), []
    for rate in learning_rates:
        runs = [trained(rate, seed) for seed in seeds[:search_seeds]]
        found.searched[rate] = fmean(history.validations[-1]["accuracy"] for _, history in runs)
        if not best or found.searched[rate] > found.searched[found.learning_rate]:
            found.learning_rate, best = rate, runs
    best += [trained(found.learning_rate, seed) for seed in seeds[search_seeds:]]
    found.classifiers = [classifier for classifier, _ in best]
    found.histories = [history for _, history in best]
    return found
