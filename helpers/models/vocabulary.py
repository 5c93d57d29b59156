"""Fewer rows in the vocabulary: those that a corpus uses, chosen before a teacher is distilled."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.data import token_counts, token_ids
from helpers.files.trimmed_tokenizer import indispensable, merge_parts, read_tokenizer, with_tokens
from helpers.models.families import family_of


def rows_to_cover(counts: np.ndarray, share: float) -> int:
    """How many rows of the vocabulary make up that share of a corpus' tokens.

    Args:
        counts: (rows,) int, how often each is used; see `data.token_counts`.
        share: from 0 to 1.
    """
    running = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(running, share * running[-1] * (1 - 1e-12))) + 1


def trim_vocabulary(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: datasets.Dataset, size: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a teacher and a tokenizer of fewer rows, those that the texts use most (Abdaoui et al. 2020, section 3).

    A text whose tokens all stay is read as before, and gets the teacher's logits at the rows that stay. Other words are
    read in shorter pieces. All special tokens stay, ASCII, and every character that the texts use, so that no word of
    theirs becomes [UNK] that was none.

    Args:
        teacher: a masked-LM model of `families.FAMILIES`; it is left as it is.
        tokenizer: its own: WordPiece, byte-level BPE (a token stays with all those that it is merged from) or Unigram.
        texts: a dataset with a column ``text``.
        size: how many rows stay.

    Returns:
        (teacher in eval mode, sharing no memory; tokenizer).

    Raises:
        ValueError: the tokenizer cannot be trimmed, or has fewer tokens than `size`, or more than that cannot be
            spared.
    """
    said, ids = read_tokenizer(tokenizer), tokenizer.get_vocab()
    if not 1 <= size <= len(ids):
        raise ValueError(
            f"VOCABULARY is {size:,}, but the tokenizer has {len(ids):,} tokens: set it to fewer, or to None."
        )
    counts = token_counts(texts, tokenizer)
    needed, parts = _needed(tokenizer, said, counts), merge_parts(said)
    if teacher.config.pad_token_id is not None:
        needed.add(teacher.config.pad_token_id)
    order = sorted(ids.values(), key=lambda row: (-counts[row], row))
    while True:
        rows = _in_order(_choose(order, size, _with_parts(needed, parts), parts), tokenizer.pad_token_id)
        trimmed = with_tokens(tokenizer, rows)
        if not (lost := _lost(texts, tokenizer, trimmed)):
            return keep_rows(teacher, rows), trimmed
        needed |= lost


def least_rows(texts: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows cannot be spared, whatever the size: special tokens, ASCII, the characters of the texts."""
    said = read_tokenizer(tokenizer)
    return len(_needed(tokenizer, said, token_counts(texts, tokenizer)))


def _needed(tokenizer: PreTrainedTokenizerBase, said: dict, counts: np.ndarray) -> set[int]:
    used = {token for token, number in tokenizer.get_vocab().items() if counts[number]}
    return _with_parts(indispensable(tokenizer, said, used), merge_parts(said))


def describe_trimming(texts: datasets.Dataset, tokenizer, trimmed) -> dict[str, dict]:
    """What trimming costs the texts.

    Returns:
        ``rows``: from 0.99, 0.999 and 1 to the rows of `tokenizer` that make up that share of the tokens; ``before``
        and ``after``: the mean ``tokens`` of a text, and the share of ``unknown`` ones among them.
    """
    found = {}
    for name, each in (("before", tokenizer), ("after", trimmed)):
        counts = token_counts(texts, each)
        unknown = 0 if each.unk_token_id is None else counts[each.unk_token_id]
        found[name] = {"tokens": counts.sum() / len(texts), "unknown": unknown / counts.sum()}
        if each is tokenizer:
            found["rows"] = {share: rows_to_cover(counts, share) for share in (0.99, 0.999, 1.0)}
    return found


def _with_parts(rows: set[int], parts: dict[int, set[int]]) -> set[int]:
    """Some rows and, again and again, the parts that they are merged from."""
    found, new = set(), set(rows)
    while new:
        found |= new
        new = set().union(*(parts.get(row, ()) for row in new)) - found
    return found


def _choose(order: list[int], size: int, kept: set[int], parts: dict[int, set[int]]) -> set[int]:
    """Fill up `kept` to `size` rows in the given order, each with its parts."""
    if len(kept) > size:
        raise ValueError(
            f"VOCABULARY is {size:,}, but special tokens, ASCII and the characters of the texts need {len(kept):,} "
            f"rows. Set it to {len(kept):,} or more."
        )
    while len(kept) < size:  # a row whose parts found no room may find it once some of them are there
        for row in order:
            new = _with_parts({row}, parts) - kept
            if len(kept) + len(new) <= size:
                kept |= new
    return kept


def _in_order(rows: set[int], pad: int) -> list[int]:
    """Rows in their old order, except that padding keeps its number: RoBERTa counts positions from behind it."""
    ordered = sorted(rows - {pad})
    ordered.insert(pad, pad)
    return ordered


def _lost(texts: datasets.Dataset, tokenizer, trimmed) -> set[int]:
    """The rows of the words that have become [UNK] and were none."""
    lost, unknown = set(), trimmed.unk_token_id
    found = token_ids(texts, trimmed).with_format("numpy")
    which = [i for i, row in enumerate(found["input_ids"]) if (row == unknown).any()] if unknown is not None else []
    for text in texts.select(which)["text"]:
        before, after = (each(text, add_special_tokens=False, verbose=False) for each in (tokenizer, trimmed))
        pieces = list(zip(before.word_ids(), before["input_ids"], strict=True))
        was_unknown = {word for word, row in pieces if row == tokenizer.unk_token_id}
        is_unknown = {
            word for word, row in zip(after.word_ids(), after["input_ids"], strict=True) if row == unknown
        } - was_unknown
        lost |= {row for word, row in pieces if word in is_unknown}
    return lost


def keep_rows(model: PreTrainedModel, rows: Sequence[int]) -> PreTrainedModel:
    """A masked-LM model of these rows of the vocabulary alone, in this order.

    Args:
        model: with word embeddings (vocabulary, hidden) and an output matrix of the same shape; left as it is.
        rows: the old numbers of the rows that stay.

    Returns:
        A new model in eval mode, sharing no memory.
    """
    config, numbers = copy.deepcopy(model.config), {old: number for number, old in enumerate(rows)}
    config.vocab_size = len(rows)
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, numbers.get(value))
    state, bias, trimmed = model.state_dict(), family_of(model).bias, type(model)(config)
    by_row = {
        each.data_ptr()
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
        for each in part.parameters()
    }
    for name, weight in state.items():
        if weight.data_ptr() in by_row or name == bias:
            state[name] = weight[list(rows)]
    trimmed.load_state_dict(state)
    return trimmed.eval()
