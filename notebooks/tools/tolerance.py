"""Whether two tiny runs show the same, but for what another processor's arithmetic changes.

Tried with two threads instead of one and with AVX2 instead of AVX-512: losses then differ by six
millionths of themselves at most, no score does, and no text but where it tells rounding itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

RELATIVE = 1e-4
"""Of losses: far above what arithmetic does, far below what a change of the code does."""
FLIPS = 1
"""How many tokens or texts may be taken for another one, of the fewest that a score counts."""
ROUNDING = 1e-4
"""Below it, a difference that should be zero is rounding."""

RULES = (  # the first whose pattern is found in a number's path in the record
    (r"^parameters\.|\.varied\.", "exact", "what a run was given has no rounding"),
    (r"largest_\w*difference", "rounding", "nothing but rounding: another one on any processor"),
    (r"accuracy|overlap|macro_f1|share_kept|searched|differences", "flips", "right or wrong"),
    (r"perplexity|loss|cross.entropy|\bmlm\b|kl|KL|cosine|mse", "relative", "rounded sums"),
    (r"", "exact", "counts, shapes, learning rates and texts come from no rounded sum"),
)
"""Pattern, how numbers there are compared, and why."""


class Difference(NamedTuple):
    """Something that two runs show differently: where, and what."""

    where: str
    committed: object
    now: object

    def __str__(self) -> str:
        committed, now = (
            f"{value:.6g}" if isinstance(value, float) else str(value) for value in self[1:]
        )
        return f"{self.where}: {committed} committed, {now} now"


def leaves(value, path: str = "") -> dict[str, object]:
    """The numbers and texts in nested dicts and lists, by their paths."""
    if isinstance(value, dict) and value:
        pairs = [(f"{path}.{key}".strip("."), each) for key, each in value.items()]
    elif isinstance(value, list) and value:
        pairs = [(f"{path}[{number}]", each) for number, each in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for where, each in pairs for name, leaf in leaves(each, where).items()}


def scored(record: dict) -> int:
    """The fewest tokens or texts that a score of this record counts."""
    parts = record.get("parts", {})
    counts = [record.get(key) for key in ("valid_masked_tokens", "scored_masked_tokens")]
    counts += [parts.get(key) for key in ("valid", "test")]
    return min((count for count in counts if count), default=1)


def record_differences(committed: dict, now: dict) -> tuple[list[Difference], float]:
    """What differs by more than `RULES` allow, and how far a score has moved that they let pass."""
    old, new = leaves(committed), leaves(now)
    found, largest_flip = [], 0.0
    for path in [*old, *(path for path in new if path not in old)]:
        before, after = old.get(path, "nothing"), new.get(path, "nothing")
        if before == after and type(before) is type(after):
            continue
        kind = next(kind for pattern, kind, _ in RULES if re.search(pattern, path))
        if not all(type(each) in (int, float) for each in (before, after)):
            kind = "exact"
        apart = 0.0 if kind == "exact" else abs(before - after)
        allowed = {
            "exact": False,
            "rounding": kind == "rounding" and max(abs(before), abs(after)) < ROUNDING,
            "flips": apart <= FLIPS / scored(committed) * (1 + 1e-9),
            "relative": kind == "relative" and apart <= RELATIVE * abs(before),
        }
        if not allowed[kind]:
            found.append(Difference(path, before, after))
        elif kind == "flips":
            largest_flip = max(largest_flip, apart)
    return found, largest_flip


NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.\d+(?:e[-+]\d+)?(?![\w.]*\w)|\b\de[-+]\d\d\b")
"""A decimal in a text; versions, such as 2.13.0, names and whole numbers are none."""


def text_difference(where: str, committed: str, now: str, flip: float) -> Difference | None:
    """The first place where two texts differ by more than the last printed digit of a decimal.

    Args:
        flip: how far a score of the record has moved; a decimal may move as far, a percentage by a
            hundred times that.
    """
    old, new = NUMBER.findall(committed), NUMBER.findall(now)
    words, new_words = NUMBER.split(committed), NUMBER.split(now)
    if words != new_words:
        pairs = zip([*committed.split(), ""], [*now.split(), ""], strict=False)
        before, after = next(pair for pair in pairs if not same_decimal(*pair, "", flip))
        return Difference(where, repr(before), repr(after))
    for before, after, following in zip(old, new, words[1:], strict=True):
        if not same_decimal(before, after, following, flip):
            return Difference(where, before, after)
    return None


def same_decimal(before: str, after: str, following: str, flip: float) -> bool:
    if before == after:
        return True
    if not (NUMBER.fullmatch(before) and NUMBER.fullmatch(after)):
        return False
    one, other = (float(each.replace(",", "")) for each in (before, after))
    if "." not in before and "." not in after:
        return max(abs(one), abs(other)) < ROUNDING
    digits = [len(re.match(r"\d*", each.partition(".")[2])[0]) for each in (before, after)]
    allowed = 10.0 ** -min(digits) + flip * (100 if following.startswith("%") else 1)
    return abs(one - other) <= max(allowed, RELATIVE * abs(one)) * (1 + 1e-9)


def differences(committed: dict, now: dict) -> Iterator[Difference]:
    """What differs between two tiny runs, each with ``record`` and ``outputs`` (text by cell)."""
    found, flip = record_differences(committed["record"], now["record"])
    yield from found
    old, new = committed["outputs"], now["outputs"]
    for cell in [*old, *(cell for cell in new if cell not in old)]:
        pair = old.get(cell, "nothing"), new.get(cell, "nothing")
        if difference := text_difference(f"the text of cell {cell}", *pair, flip):
            yield difference
