"""What labels mean, however they are spelled, and how many texts a class needs. Knows nothing of files."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
MISSING |= {"N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"}
"""The spellings that pandas reads as missing, and its own NaT. A class may be called ``none``, but not ``None``."""
SEPARATOR = re.compile(r"[,;|/+&]")


def spelled(label: Any) -> str:
    """A label as text: letters composed, blanks around it left out, one blank between words."""
    return " ".join(unicodedata.normalize("NFC", "" if label is None else str(label)).split())


def meaning(label: Any) -> str | Decimal | None:
    """What a label stands for: None for a missing one; a number for 1, ``"1.0"`` and ``" 1"`` alike; else its text."""
    text = spelled(label)
    if text in MISSING:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return number if number.is_finite() else text


def _shortened(text: str) -> str:
    """The first 60 characters of a text in quotes, with an ellipsis where more follow."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _missing_kind(label: Any) -> str:
    """How a missing label is spelled."""
    return "null or NaN" if label is None else repr(text) if (text := spelled(label)) else "empty"


def _several(label: Any, known: set) -> bool:
    """True of a list, and of a text such as ``a,b`` where the pieces are labels of other texts."""
    if isinstance(label, list):
        return True
    text = spelled(label)
    pieces = {meaning(piece.strip(" '\"")) for piece in SEPARATOR.split(text.strip("[]"))} - {None}
    is_list = text.startswith("[") and text.endswith("]")
    return len(pieces) > 1 and (is_list or pieces <= known)


def classes(labels: Sequence[Any], texts: Sequence[str], name: str, field: str | int) -> tuple[list[str], list[int]]:
    """Find the classes of labels of any type, and in every process in the same order.

    Labels of one meaning (`meaning`) are one class, called by its shortest spelling; where a class has several, they
    are printed with their counts.

    Args:
        labels: one for each text.
        texts: for the messages.
        name: of the file, for the messages.
        field: the column of the labels, for the messages.

    Returns:
        The names of the classes, numbers in their order, words in the alphabet's; and the number of each label's class.

    Raises:
        ValueError: labels are missing, a text has several, or there are fewer than two classes.
    """
    found = [meaning(label) for label in labels]
    if missing := [number for number, each in enumerate(found) if each is None]:
        kinds = ", ".join(sorted({_missing_kind(labels[number]) for number in missing}))
        raise ValueError(
            f"{name}: {len(missing):,} of {len(labels):,} texts have no label in column {field!r} ({kinds}), the first "
            f"of them {_shortened(texts[missing[0]])}. Label them, or leave these rows out; in pandas: "
            f"df.dropna(subset=[{field!r}])."
        )
    known = set(found)
    if several := [number for number, each in enumerate(labels) if _several(each, known)]:
        raise ValueError(
            f"{name}: {len(several):,} of {len(labels):,} texts have several labels in column {field!r}, the first of "
            f"them {labels[several[0]]!r}. A text belongs to one class here: keep one label of each text."
        )
    spellings: dict[str | Decimal, Counter] = {}
    for label, each in zip(labels, found, strict=True):
        spellings.setdefault(each, Counter())[spelled(label)] += 1
    names = {each: min(counts, key=lambda text: (len(text), text)) for each, counts in spellings.items()}
    are_numbers = all(isinstance(each, Decimal) for each in names)
    order = sorted(names) if are_numbers else sorted(names, key=names.get)
    if len(order) < 2:
        raise ValueError(
            f"{name}: every text has the label {list(names.values())} in column {field!r}. To tell classes "
            "apart, there have to be two."
        )
    for counts in (spellings[each] for each in order if len(spellings[each]) > 1):
        print(f"{name}: one class, spelled {', '.join(f'{text!r} ({counts[text]:,})' for text in sorted(counts))}.")
    numbers = {each: number for number, each in enumerate(order)}
    return [names[each] for each in order], [numbers[each] for each in found]


def check_classes(
    names: Sequence[str], labels: Sequence[int], unread: Sequence[int], left: Sequence[int], parts: int
) -> None:
    """Check that each class has a text for each part; print what the corpus took, where it is half of a class.

    Args:
        names: of the classes, in the order of their numbers.
        labels: class numbers of all labelled texts.
        unread: of those among them that do not stand in the corpus.
        left: of those among these that repeat no other text.
        parts: how many there are.

    Raises:
        ValueError: a class has too few texts left; the message says where the others went.
    """
    counts = (
        np.bincount(np.asarray(each, dtype=int), minlength=len(names)).tolist() for each in (labels, unread, left)
    )
    for name, total, new, kept in zip(names, *counts, strict=True):
        gone = f"{total - new:,} of its {total:,} texts stand in CORPUS"
        if kept < parts:
            remedy = "Take another CORPUS." if total - new > new - kept else "Is LABEL_FIELD the right column?"
            raise ValueError(
                f"the label {name!r} has {kept} different text(s) for {parts} parts: each part needs one. {gone}, "
                f"{new - kept:,} nearly repeat others. {remedy}"
            )
        if 2 * new <= total:
            print(f"Label {name!r}: {gone}.")
