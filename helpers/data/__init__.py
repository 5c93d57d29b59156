"""Texts in, labelled or not; dict batches out. Knows nothing of models and nothing of Catalyst."""

from helpers.data.labelled import (
    LabelCollator,
    LengthGroupedShuffle,
    balanced_weights,
    encode,
    label_loaders,
    lengths,
    near_repeats,
    part,
    row_loader,
    sentences,
    with_teacher_logits,
    words,
)
from helpers.data.masked import (
    IGNORED,
    EndlessShuffle,
    MaskingCollator,
    masked_lm_loaders,
    masked_targets,
    token_lengths,
)
from helpers.data.texts import bundled_reviews, drop_repeats, read_labelled, read_texts, with_label_names, without_bars

__all__ = [
    "IGNORED",
    "EndlessShuffle",
    "LabelCollator",
    "LengthGroupedShuffle",
    "MaskingCollator",
    "balanced_weights",
    "bundled_reviews",
    "drop_repeats",
    "encode",
    "label_loaders",
    "lengths",
    "masked_lm_loaders",
    "masked_targets",
    "near_repeats",
    "part",
    "read_labelled",
    "read_texts",
    "row_loader",
    "sentences",
    "token_lengths",
    "with_label_names",
    "with_teacher_logits",
    "without_bars",
    "words",
]
