"""What each part of the controls runs. How a run is made is in control_runs.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from helpers.runs.experiment import HEAD, HeadRecipe

TASK = ("LABELLED_CORPUS", "LABELLED_TEXT_FIELD", "LABEL_FIELD", "PART_SIZES", "TRANSFER_TEXTS")
TASK += ("FINE_TUNING_BATCH_SIZE", "FINE_TUNING_EPOCHS", "FINE_TUNING_LEARNING_RATES")
"""The parameters of notebook 06 that a run takes which is fine-tuned on its task."""
FIVE_TWO_ONE = {"kl": 5 / 8, "mlm": 2 / 8, "cosine": 1 / 8}
"""DistilBERT's weights: the default mix."""
TRIED = HeadRecipe(learning_rate=1e-3, token_frequencies=True)
"""Another way to train the teacher's head, which the part `recipe` compares with `HEAD`."""


@dataclass(frozen=True)
class Run:
    """One run, and its row in the table: rows of one label differ in their seed alone.

    Attributes:
        label: of the row.
        trains: "student"; "nothing" for the student before its first step; "head" for the teacher.
        seed: of order, masks and dropout, and of layers that start at random.
        parameters: what differs from those that all runs share.
        weights: what the student gets of its teacher; see `models.extract_student`.
        everywhere: True where the KL loss is taken at every attended position.
        recipe: how the teacher's head is trained.
        task: True where the model is then fine-tuned on notebook 06's task.
    """

    label: str
    trains: str = "student"
    seed: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: str = "teacher"
    everywhere: bool = False
    recipe: HeadRecipe = HEAD
    task: bool = False

    @property
    def key(self) -> str:
        """Its name in a record."""
        return f"{self.label}, seed {self.seed}" if self.trains == "student" else self.label

    @property
    def settings(self) -> dict[str, Any]:
        """All but the label, as JSON has it."""
        return {name: value for name, value in asdict(self).items() if name != "label"}


def number_of_layers(base: dict[str, Any]) -> int:
    layers = base["LAYERS"]
    return len(layers) if isinstance(layers, list) else int(layers.split(":")[1])


def seeded(base: dict[str, Any], rows: list[Callable[..., Run]]) -> list[Run]:
    """Each row with the first seed, then each with the next: a part that was ended has all rows."""
    return [row(seed=seed) for seed in base["SEEDS"] for row in rows]


def as_long(base: dict[str, Any]) -> int:
    """Steps of masked LM alone that take about as long as `MAX_STEPS` with the teacher.

    A step costs three passes through what learns (forward, and twice that backward); a teacher of
    twice the layers costs two thirds of that again, which masked LM alone has for more steps.
    """
    return round(base["MAX_STEPS"] * 5 / 3)


def references() -> list[Run]:
    """The rows of every table: the teacher, and the student before its first step."""
    return [Run("teacher", "head"), Run("extracted", "nothing")]


def mixed(label: str, weights: dict[str, float], **parameters) -> Callable[..., Run]:
    return partial(Run, label, parameters={"LOSS_WEIGHTS": weights, **parameters})


def recipe(base: dict[str, Any]) -> list[Run]:
    """The teacher's head: its bias, rate and steps; then the student's layers, steps and rate.

    Few runs: each of them is compared with another that differs in one or two things.
    """
    own, steps, number = base["TEACHER_STEPS"], base["MAX_STEPS"], number_of_layers(base)

    def head(steps: int, recipe: HeadRecipe) -> Run:
        start = "frequencies" if recipe.token_frequencies else "zero"
        label = f"head: bias from {start}, rate {recipe.learning_rate:g}, {steps} steps"
        return Run(label, "head", parameters={"TEACHER_STEPS": steps}, recipe=recipe)

    def student(which: str, steps: int, rate: float) -> Run:
        values = {"LAYERS": f"{which}:{number}", "MAX_STEPS": steps, "LEARNING_RATE": rate}
        return Run(f"student: {which} layers, rate {rate:g}, {steps} steps", parameters=values)

    heads = [head(own, HEAD), head(own, TRIED), head(own // 2, TRIED)]
    students = [student("first", steps // 2, rate) for rate in (2.5e-4, 5e-4, 1e-3, 2e-3)]
    students += [student("spread", steps // 2, rate) for rate in (5e-4, 1e-3)]
    return [*heads, *students, student("spread", steps, 5e-4)]


def teacher(base: dict[str, Any]) -> list[Run]:
    """A head of eight times the steps, and with it the rows that tell most."""
    strong, number = {"TEACHER_STEPS": 8 * base["TEACHER_STEPS"]}, number_of_layers(base)
    chosen = {which: {**strong, "LAYERS": f"{which}:{number}"} for which in ("spread", "first")}
    before = [
        Run(f"extracted, {which}", "nothing", parameters=own) for which, own in chosen.items()
    ]
    longer = {**chosen["spread"], "MAX_STEPS": as_long(base)}
    rows = [
        mixed("spread layers, default mix", FIVE_TWO_ONE, **chosen["spread"]),
        mixed("spread layers, masked LM alone, 5/3 of the steps", {"mlm": 1.0}, **longer),
        mixed("first layers, default mix", FIVE_TWO_ONE, **chosen["first"]),
    ]
    return [Run("teacher", "head", parameters=strong), *before, *seeded(base, rows)]


def losses(base: dict[str, Any]) -> list[Run]:
    """Mixes of losses, temperatures, and the positions of the KL loss."""
    less = {name: 8 / 9 * weight for name, weight in FIVE_TWO_ONE.items()}
    new = ("relation", "attention", "hidden")
    rows = [
        mixed("masked LM alone", {"mlm": 1.0}),
        mixed("masked LM alone, 5/3 of the steps", {"mlm": 1.0}, MAX_STEPS=as_long(base)),
        mixed("default mix", FIVE_TWO_ONE),
        mixed("KL alone", {"kl": 1.0}),
        *(mixed(f"{name} alone", {name: 1.0}) for name in new),
        *(mixed(f"default mix + {name}", {**less, name: 1 / 9}) for name in new),
        mixed("KL : masked LM : cosine = 1 : 1 : 1", dict.fromkeys(FIVE_TWO_ONE, 1 / 3)),
        mixed("KL : masked LM : cosine = 2 : 5 : 1", {"kl": 2 / 8, "mlm": 5 / 8, "cosine": 1 / 8}),
        *(mixed(f"default mix, T = {t:g}", FIVE_TWO_ONE, TEMPERATURE=t) for t in (2.0, 4.0)),
        partial(mixed("default mix, KL at every position", FIVE_TWO_ONE), everywhere=True),
    ]
    return [*references(), *seeded(base, rows)]


def layers(base: dict[str, Any]) -> list[Run]:
    """The first, spread or last layers, or random ones under the teacher's embeddings.

    All are then fine-tuned on the task.
    """
    number = number_of_layers(base)
    chosen = {which: {"LAYERS": f"{which}:{number}"} for which in ("first", "spread", "last")}
    options = {"task": True}
    before = [
        Run(f"extracted, {which}", "nothing", parameters=own, **options)
        for which, own in chosen.items()
    ]
    rows = [
        partial(Run, f"{which} layers", parameters=own, **options) for which, own in chosen.items()
    ]
    random = {"parameters": chosen["first"], "weights": "embeddings", **options}
    rows.append(partial(Run, "random layers", **random))
    return [Run("teacher", "head", **options), *before, *seeded(base, rows)]


def length(base: dict[str, Any]) -> list[Run]:
    """The default mix and masked LM alone, for a quarter of the steps to four times as many."""
    steps, mixes = base["MAX_STEPS"], {"default mix": FIVE_TWO_ONE, "masked LM alone": {"mlm": 1.0}}

    def rows(each: int) -> list[Callable[..., Run]]:
        return [mixed(f"{name}, {each} steps", mix, MAX_STEPS=each) for name, mix in mixes.items()]

    longest = [row() for row in rows(4 * steps)]
    return [*references(), *seeded(base, [*rows(steps // 4), *rows(steps)]), *longest]


PARTS = {part.__name__: part for part in (recipe, teacher, losses, layers, length)}
