"""The texts that the parameters name, and how a run reads them."""

from __future__ import annotations

import copy
import math
from typing import Any

import datasets
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from helpers.data import bundled_reviews, masked_lm_loaders, read_labelled, read_texts, without_bars
from helpers.runs.records import texts_from_root

VALIDATIONS = 4
"""How often a run validates at least: this many mini-epochs share out its steps."""
EPOCH_STEPS = 500
"""The most steps in a mini-epoch, after which a run is saved: no more than these, and a minute's, are ever lost."""


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


def cut_at(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that cuts texts at that many tokens where it is told to truncate, as a classifier's rows.

    Saved beside the classifier, it makes ``pipeline(..., truncation=True)`` read what the classifier was scored on.
    """
    own = copy.deepcopy(tokenizer)
    own.model_max_length = max_length
    return own
