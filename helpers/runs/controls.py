"""Records of many runs that differ in one thing each: what a run leaves, and the table of a record."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd

from helpers.evaluation import bootstrap_accuracies, interval

PERCENT = "{:.1f} ({:.1f} to {:.1f})"
CHANGE = "{:+.1f} ({:+.1f} to {:+.1f})"
RESAMPLES = 2_000


def packed(bits: np.ndarray) -> str:
    """(tokens,) bool as text, six tokens a letter: base64 without a slash, so that it never looks like a path."""
    return base64.urlsafe_b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, tokens: int) -> np.ndarray:
    """The (tokens,) bool that `packed` was given. ValueError: the text is of another number of tokens."""
    found = np.frombuffer(base64.urlsafe_b64decode(text), dtype=np.uint8)
    if len(found) != -(-tokens // 8):
        raise ValueError(f"{8 * len(found)} packed tokens, and {tokens} were scored: the record is damaged.")
    return np.unpackbits(found, count=tokens).astype(bool)


def by_label(record: dict[str, Any]) -> dict[str, list[str]]:
    """From each row's label to the keys of its runs, one a seed, in the order of the record."""
    found: dict[str, list[str]] = {}
    for key, entry in record["entries"].items():
        found.setdefault(entry["label"], []).append(key)
    return found


def table(record: dict[str, Any], against: str) -> pd.DataFrame:
    """A row for each label of a record, with 95 % intervals over tokens and seeds.

    The tokens of a resample are the same for all rows, so a difference is paired (see `bootstrap_accuracies`). A row of
    one run has an interval over tokens alone.

    Args:
        record: of a part of the controls, whole or as far as it has come.
        against: the label of the row that the others are compared with.

    Returns:
        By label: ``runs``; ``accuracy, %``, ``at [MASK], %`` and, where the models were fine-tuned, ``on the task, %``
        with their intervals, and the ``difference`` of each to the row `against`, in points; the means over the runs of
        ``perplexity``, ``KL``, ``top-5 overlap`` and ``minutes``.

    Raises:
        ValueError: no row is called `against`.
    """
    rows = by_label(record)
    if against not in rows:
        raise ValueError(f"no row is called {against!r}; there are {', '.join(map(repr, rows))}.")
    tokens, entries = record["scored_masked_tokens"], record["entries"]
    correct = {
        label: np.stack([unpacked(entries[key]["correct"], tokens) for key in keys]) for label, keys in rows.items()
    }
    at_mask = unpacked(record["at_mask"], tokens)
    scored = {"accuracy, %": correct, "at [MASK], %": {label: own[:, at_mask] for label, own in correct.items()}}
    if texts := record.get("tested_texts"):
        scored["on the task, %"] = {
            label: np.stack([unpacked(entries[key]["task"]["correct"], texts) for key in keys])
            for label, keys in rows.items()
        }
    found: dict[str, dict[str, Any]] = {label: {"runs": len(keys)} for label, keys in rows.items()}
    for column, ones in scored.items():
        right = {label: 100 * own for label, own in ones.items()}
        drawn = bootstrap_accuracies(right, RESAMPLES)
        for label, own in right.items():
            apart = own.mean() - right[against].mean()
            found[label][column] = PERCENT.format(own.mean(), *interval(drawn[label]))
            change = CHANGE.format(apart, *interval(drawn[label] - drawn[against]))
            found[label][f"difference, {column}"] = "" if label == against else change
    shown = {"perplexity": "perplexity", "kl_to_teacher": "KL", "top5_overlap": "top-5 overlap"}
    for label, keys in rows.items():
        for key, column in shown.items():
            found[label][column] = np.mean([entries[own]["scores"][key] for own in keys])
        found[label]["minutes"] = np.mean([record["timings"][own]["seconds"] for own in keys]) / 60
    return pd.DataFrame.from_dict(found, orient="index")
