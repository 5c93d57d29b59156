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
    id_counts,
    masked_lm_loaders,
    masked_targets,
    renumbered,
    token_counts,
    token_ids,
    token_lengths,
)
from helpers.data.texts import bundled_reviews, drop_repeats, read_labelled, read_texts, with_label_names
from helpers.files.sources import files_of, source_name
from helpers.files.table import without_bars
from helpers.files.tokenizer_checks import check_known
