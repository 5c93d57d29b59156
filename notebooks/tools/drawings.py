"""The drawings that the notebooks' texts show: drawn to notebooks/images, embedded as attachments.

`make notebooks` calls this; by itself: `python notebooks/tools/drawings.py`. A text cell names one
as `![what it shows](attachment:name.png)`. As an attachment it is there on Colab too, where a
notebook comes without the files beside it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
import nbformat
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from helpers.plots import NEUTRAL, STUDENT, TEACHER, arrow, box

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"!\[([^\]]+)\]\(attachment:(\w+)\.png\)")
PICKED, RANDOM, SOFT, LOST = "#3d7a4a", "#7b4ab0", "#e9e9e9", "#a32020"
TOUR = {
    "00": "by hand",
    "01": "batches",
    "02": "student",
    "03": "runner",
    "04": "losses",
    "05": "launch",
    "06": "the task",
    "07": "a small file",
    "08": "verdicts",
}
SIDE_TRACK = "05"


def canvas(width: float, height: float, scale: float = 0.75) -> Axes:
    """An empty drawing, one unit being the same in both directions."""
    _, ax = plt.subplots(figsize=(scale * width, scale * height))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_aspect("equal")
    ax.axis("off")
    ax.set_position((0, 0, 1, 1))
    return ax


def label(ax: Axes, x: float, y: float, text: str, color: str = "black", **style) -> None:
    style = {"ha": "center", "va": "center", "color": color} | style
    ax.text(x, y, text, **style)


def frame(ax: Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    """A large empty box with its name in the upper left corner."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": "white", "ec": NEUTRAL, "lw": 1.2}
    ax.add_patch(FancyBboxPatch((x, y), width, height, **style))
    label(ax, x + 0.2, y + height - 0.32, text, NEUTRAL, ha="left", weight="bold")


def small_bars(ax: Axes, x: float, y: float, values: dict[str, float], color: str) -> None:
    """Probabilities of words as bars from left to right, without a scale."""
    for i, (word, value) in enumerate(values.items()):
        bottom = y - 0.42 * i
        ax.barh(bottom, 3.2 * value, 0.3, left=x, color=color)
        label(ax, x - 0.12, bottom, word, ha="right", fontsize=10)


def idea() -> Axes:
    ax = canvas(14, 6.9)
    box(ax, 4.2, 0.1, 5.6, 0.8, "It is a very [MASK] film.", NEUTRAL)
    box(ax, 1.2, 1.8, 4.4, 1.5, "teacher\nlarge, already trained,\nstays as it is", TEACHER)
    box(ax, 8.4, 2.0, 4.4, 1.1, "student\nsmall, learns", STUDENT)
    arrow(ax, (6.2, 0.9), (3.6, 1.78))
    arrow(ax, (7.8, 0.9), (10.4, 1.98))
    teacher = {"good": 0.62, "great": 0.42, "bad": 0.3, "film": 0.06}
    student = {"good": 0.36, "great": 0.12, "bad": 0.2, "film": 0.3}
    for x, values, color in ((2.4, teacher, TEACHER), (9.6, student, STUDENT)):
        small_bars(ax, x, 5.4, values, color)
        arrow(ax, (x + 1, 3.3 if color == TEACHER else 3.1), (x + 1, 3.85))
    label(ax, 3.4, 6.25, "the teacher's probabilities", TEACHER, weight="bold")
    label(ax, 10.6, 6.25, "the student's probabilities", STUDENT, weight="bold")
    ax.annotate("", (8.3, 4.8), (5.4, 4.8), arrowprops={"arrowstyle": "<|-|>", "lw": 1.6})
    label(ax, 6.85, 5.2, "loss: how far apart?", weight="bold")
    label(ax, 6.85, 6.25, "(the bars are invented)", NEUTRAL, style="italic")
    style = {"arrowstyle": "-|>", "lw": 1.4, "ls": "--", "color": STUDENT}
    ax.annotate("", (8.35, 2.6), (6.85, 4.6), arrowprops=style)
    label(ax, 7.9, 3.75, "gradient", STUDENT, ha="left", style="italic")
    return ax


def tour(here: str) -> Axes:
    """The notebooks in a row, with 05 as a side track below it; `here` is filled."""
    ax = canvas(2 * len(TOUR), 2.3, 0.55)
    row, aside = 1.2, 0.05
    for i, (number, name) in enumerate(TOUR.items()):
        color = STUDENT if number == here else NEUTRAL
        y = aside if number == SIDE_TRACK else row
        box(ax, 2 * i + 0.1, y, 1.6, 0.95, f"{number}\n{name}", color, filled=number == here)
        if number == SIDE_TRACK:
            arrow(ax, (2 * i - 0.28, row + 0.2), (2 * i + 0.08, aside + 0.75), NEUTRAL)
        elif i:
            start = 2 * i - 0.28 - 2 * (list(TOUR)[i - 1] == SIDE_TRACK)
            arrow(ax, (start, row + 0.5), (2 * i + 0.08, row + 0.5), NEUTRAL)
    return ax


def blocks() -> Axes:
    ax = canvas(16.2, 8)
    colors = ["#c98a5e", "#6fa3b5", "#a58bc4"]
    texts = [("text 1", 3), ("text 2", 7), ("text 3", 5)]
    x = 0.4
    label(ax, 0.4, 7.55, "1. The texts, as tokens", ha="left", weight="bold")
    sequence = []
    for (name, count), color in zip(texts, colors, strict=True):
        box(ax, x, 6.45, 0.85 * count, 0.7, name, color)
        x += 0.85 * count + 0.6
        sequence += [color] * count + ["sep"]

    def cell(x: float, y: float, kind: str) -> None:
        names = {"sep": "SEP", "cls": "CLS"}
        if kind in names:
            box(ax, x, y, 0.8, 0.7, "", NEUTRAL, filled=False)
            label(ax, x + 0.4, y + 0.35, names[kind], fontsize=8)
        else:
            box(ax, x, y, 0.8, 0.7, "", kind)

    label(ax, 0.4, 5.85, "2. Laid end to end, [SEP] after each", ha="left", weight="bold")
    for i, kind in enumerate(sequence[:15]):
        cell(0.4 + 0.95 * i, 4.75, kind)
    label(ax, 0.4 + 0.95 * 15.3, 5.1, "…", fontsize=16)
    for cut in (5, 10, 15):
        ax.plot([0.325 + 0.95 * cut] * 2, [4.5, 5.65], color="black", lw=2, ls="--")
    third = "3. Cut into blocks: [CLS] before, [SEP] after. A block is one row of a batch"
    label(ax, 0.4, 4.1, third, ha="left", weight="bold")
    for row, start in enumerate((0, 5, 10)):
        for i, kind in enumerate(["cls", *sequence[start : start + 5], "sep"]):
            cell(0.6 + 0.95 * i, 2.75 - 0.95 * row, kind)
    style = {"boxstyle": "round,pad=0,rounding_size=0.12", "fc": "none", "ec": "black", "lw": 1.6}
    ax.add_patch(FancyBboxPatch((0.4, 0.65), 7.1, 3.05, **style))
    label(ax, 7.75, 3.1, "← a block", ha="left")
    arrow(ax, (7.55, 2.2), (12.4, 2.2))
    label(ax, 7.75, 1.55, "the frame: a batch,\nhere of three blocks", ha="left")
    box(ax, 12.5, 1.7, 2.7, 1, "one step", STUDENT)
    label(ax, 13.85, 1.1, "reads one batch and\nchanges the weights once", fontsize=9)
    return ax


def masking() -> Axes:
    words = ["[CLS]", "the", "plot", "was", "thin", ",", "the", "actors", "shone", "[SEP]"]
    fates = {2: "[MASK]", 4: "green", 7: "actors"}
    colors = {2: NEUTRAL, 4: RANDOM, 7: PICKED}
    notes = {2: "80 %:\nhidden", 4: "10 %:\na random token", 7: "10 %:\nkept as it is"}
    ax = canvas(17, 5.2, 0.68)
    rows = {
        3.7: "the text",
        2.3: "what the model reads\n(input_ids)",
        0.9: "what it has to predict\n(labels)",
    }
    for y, name in rows.items():
        label(ax, 3.0, y + 0.35, name, ha="right", weight="bold")
    for i, word in enumerate(words):
        x, picked = 3.3 + 1.36 * i, i in fates
        box(ax, x, 3.7, 1.22, 0.7, word, NEUTRAL, filled=False)
        read, target = fates.get(i, word), word if picked else "-100"
        color = colors.get(i, NEUTRAL)
        box(ax, x, 2.3, 1.22, 0.7, read, color, filled=picked)
        box(ax, x, 0.9, 1.22, 0.7, target, color if picked else SOFT, filled=picked)
        if picked:
            arrow(ax, (x + 0.61, 3.68), (x + 0.61, 3.04), color)
            arrow(ax, (x + 0.61, 2.28), (x + 0.61, 1.64), color)
            label(ax, x + 0.61, 0.4, notes[i], color, fontsize=9)
    rule = "15 % of the tokens are picked at random; [CLS] and [SEP] never are"
    label(ax, 10, 4.85, rule)
    return ax


def extraction() -> Axes:
    ax = canvas(14, 7.4, 0.62)
    label(ax, 3.2, 7.05, "teacher: BERT, 6 layers", TEACHER, weight="bold")
    label(ax, 10.8, 7.05, "student: DistilBERT, 3 layers", STUDENT, weight="bold")
    names = ["embeddings", *(f"layer {i}" for i in range(6)), "masked-LM head"]
    kept = {0: 0, 1: 1, 3: 2, 6: 3, 7: 4}  # from the teacher's row to the student's
    for row, name in enumerate(names):
        box(ax, 1.2, 0.1 + 0.85 * row, 4, 0.65, name, TEACHER, filled=row in kept)
    places = [0.1, 1.65, 3.0, 4.35, 6.05]
    own = ["embeddings", "layer 0", "layer 1", "layer 2", "masked-LM head"]
    for place, name in zip(places, own, strict=True):
        box(ax, 8.8, place, 4, 0.65, name, STUDENT)
    for old, new in kept.items():
        arrow(ax, (5.25, 0.42 + 0.85 * old), (8.75, places[new] + 0.32), NEUTRAL)
    label(ax, 7, 5.6, "copied", NEUTRAL, style="italic")
    return ax


def token_type() -> Axes:
    ax = canvas(15, 5.4, 0.66)
    for x, name, color, parts in (
        (0.3, "BERT adds three vectors", TEACHER, ["word", "position", "type 0"]),
        (8.3, "DistilBERT adds two", STUDENT, ["word", "position + type 0"]),
    ):
        label(ax, x + 3.2, 5.05, name, color, weight="bold")
        width = 6.4 / len(parts)
        for i, part in enumerate(parts):
            box(ax, x + width * i + 0.1, 3.4, width - 0.2, 0.8, part, color, filled=False)
            arrow(ax, (x + width * (i + 0.5), 3.38), (x + 3.2, 2.45), NEUTRAL)
        box(ax, x + 2.75, 1.75, 0.9, 0.7, "+", NEUTRAL)
        arrow(ax, (x + 3.2, 1.73), (x + 3.2, 1.1), NEUTRAL)
        box(ax, x + 1.4, 0.3, 3.6, 0.78, "LayerNorm, layers …", color)
    label(ax, 7.5, 3.8, "=", fontsize=22)
    label(ax, 7.5, 2.3, "the same sum", NEUTRAL, style="italic", fontsize=9)
    return ax


def losses() -> Axes:
    """Where each loss of the distillation is taken; the tour's case, six layers to three."""
    ax = canvas(15.2, 6, 0.68)
    box(ax, 3.9, 0.1, 4.4, 0.7, "masked tokens, a dict batch", NEUTRAL)
    models = (1, "teacher: 6 layers\nfrozen", TEACHER), (7.2, "student: 3 layers\ntrained", STUDENT)
    for x, name, color in models:
        box(ax, x, 1.6, 4, 1.1, name, color)
        box(ax, x, 3.4, 4, 0.7, "last hidden states", color, filled=False)
        box(ax, x, 4.9, 4, 0.7, "logits at picked positions", color, filled=False)
        arrow(ax, (6.1, 0.8), (x + 2, 1.58))
        arrow(ax, (x + 2, 2.7), (x + 2, 3.38))
        arrow(ax, (x + 2, 4.1), (x + 2, 4.88))
    both = {"arrowstyle": "<|-|>", "color": "black", "lw": 1.4}
    for y, name in ((3.75, "cosine"), (5.25, "KL")):
        ax.annotate("", (7.18, y), (5.02, y), arrowprops=both)
        label(ax, 6.1, y + 0.28, name, weight="bold")
    box(ax, 12.5, 4.9, 2.5, 0.7, "original tokens", NEUTRAL)
    ax.annotate("", (12.48, 5.25), (11.22, 5.25), arrowprops=both)
    label(ax, 11.85, 5.53, "mlm", weight="bold")
    return ax


def hooks() -> Axes:
    ax = canvas(16, 9.6, 0.7)
    frame(ax, 0.2, 0.2, 15.6, 9.2, "runner.train(...): one experiment")
    frame(ax, 0.7, 0.5, 14.6, 8.2, "for each epoch")
    label(ax, 4.2, 8.38, "on_epoch_start … on_epoch_end", NEUTRAL, ha="left", fontsize=9)
    frame(ax, 1.2, 0.8, 13.6, 7.2, "for each loader: first train, then valid")
    label(ax, 7.6, 7.68, "on_loader_start … on_loader_end", NEUTRAL, ha="left", fontsize=9)
    frame(ax, 1.7, 1.1, 12.6, 6.2, "for each batch")
    box(ax, 2.2, 5.3, 3.3, 1.0, "on_batch_start\nof every callback", NEUTRAL, filled=False)
    box(ax, 6.4, 5.3, 3.3, 1.0, "handle_batch\nof the runner", STUDENT)
    box(ax, 10.6, 5.3, 3.3, 1.0, "on_batch_end\nof every callback", TEACHER)
    arrow(ax, (5.5, 5.8), (6.35, 5.8))
    arrow(ax, (9.7, 5.8), (10.55, 5.8))
    label(ax, 3.85, 4.95, "self.batch:\nids, mask, labels", NEUTRAL, fontsize=9)
    label(ax, 8.05, 4.95, "writes logits and hidden\nstates into self.batch", STUDENT, fontsize=9)
    label(ax, 12.25, 4.95, "reads self.batch, writes\nbatch_metrics", TEACHER, fontsize=9)
    label(
        ax,
        2.2,
        4.05,
        "The callbacks of on_batch_end, in the order of their numbers:",
        TEACHER,
        ha="left",
    )
    steps = {
        "losses\n(10)": "write kl,\nmlm, cosine",
        "their sum\n(20)": "writes loss",
        "backward\n(30)": "loss.backward()",
        "clipping\n(31)": "gradients",
        "optimizer\n(40)": "weights",
        "schedule\n(50)": "learning rate",
    }
    for i, (name, touched) in enumerate(steps.items()):
        only_train = i > 1
        box(ax, 2.2 + 1.97 * i, 2.5, 1.75, 1.1, name, TEACHER, filled=not only_train)
        label(ax, 3.07 + 1.97 * i, 2.1, touched, NEUTRAL, fontsize=9)
        if i:
            arrow(ax, (1.99 + 1.97 * i, 3.05), (2.17 + 1.97 * i, 3.05), TEACHER)
    ax.annotate("", (13.8, 1.75), (6.1, 1.75), arrowprops={"arrowstyle": "|-|", "color": NEUTRAL})
    label(ax, 9.95, 1.42, "only in the train loader", NEUTRAL, fontsize=9)
    return ax


def positions() -> Axes:
    ax = canvas(15, 4.6, 0.66)
    picked = {(0, 2), (0, 6), (1, 4)}
    label(ax, 3.1, 4.2, "last hidden states:\na vector at every position", NEUTRAL)
    for row in range(2):
        for column in range(8):
            found = (row, column) in picked
            color, place = PICKED if found else NEUTRAL, (0.3 + 0.7 * column, 2.3 - 0.9 * row)
            box(ax, *place, 0.58, 0.7, "", color, filled=found)
    arrow(ax, (6.1, 2.2), (7.1, 2.2))
    label(ax, 8.1, 4.2, "the picked\npositions", PICKED)
    for i in range(3):
        box(ax, 7.8, 2.8 - 0.85 * i, 0.58, 0.7, "", PICKED)
    arrow(ax, (8.7, 2.2), (9.6, 2.2))
    box(ax, 9.7, 1.75, 1.5, 0.9, "head", STUDENT)
    arrow(ax, (11.25, 2.2), (12.1, 2.2))
    label(ax, 13.4, 4.2, "logits: one for each\nword of the vocabulary", NEUTRAL)
    for i in range(3):
        box(ax, 12.2, 2.8 - 0.85 * i, 2.5, 0.7, "", PICKED, filled=False)
        label(ax, 13.45, 3.15 - 0.85 * i, "30,522 numbers", fontsize=9)
    label(ax, 3.1, 0.7, "(batch, length, hidden)", fontsize=10, family="monospace")
    label(ax, 8.1, 0.7, "(picked, hidden)", fontsize=10, family="monospace")
    label(ax, 13.4, 0.7, "(picked, vocabulary)", fontsize=10, family="monospace")
    return ax


def seven_losses() -> Axes:
    """Which tensors of teacher and student each loss compares; six layers to three."""
    ax = canvas(16.4, 11.4, 0.6)
    box(ax, 5.6, 0.1, 4.4, 0.65, "masked tokens, a dict batch", NEUTRAL)
    pairs, both = {1: 0, 3: 1, 5: 2}, {"arrowstyle": "<|-|>", "color": "black", "lw": 1.3}

    def compare(left: float, right: float, y: float, name: str) -> None:
        ax.annotate("", (right, y), (left, y), arrowprops=both)
        label(ax, (left + right) / 2, y + 0.22, name, weight="bold", fontsize=11)

    for x, color, side in ((0.6, TEACHER, 3.2), (9.8, STUDENT, 0.1)):
        own = range(6) if color == TEACHER else pairs
        heights = [1.35 + 1.2 * row for row in own]
        for number, y in enumerate(heights):
            box(ax, x, y, 4.6, 0.72, f"layer {number}", color)
            if number:
                arrow(ax, (x + 2.3, heights[number - 1] + 0.72), (x + 2.3, y), color)
            if color == STUDENT or number in pairs:
                box(ax, x + side, y + 0.12, 1.3, 0.48, "q  k  v", color, filled=False)
                if y < 7:  # above the last layer stands a box instead
                    ax.plot(x + 2.3, y + 0.96, "o", color=color, markersize=7)
        arrow(ax, (x + 2.3, 8.07), (x + 2.3, 8.6), color)
        box(ax, x, 8.6, 4.6, 0.72, "last hidden states", color, filled=False)
        arrow(ax, (x + 2.3, 9.32), (x + 2.3, 9.85), color)
        box(ax, x, 9.85, 4.6, 0.72, "logits, picked positions", color, filled=False)
    arrow(ax, (7.0, 0.75), (2.9, 1.33), NEUTRAL)
    arrow(ax, (8.6, 0.75), (12.1, 2.53), NEUTRAL)
    for row in pairs:
        name = "attention, relation" if row == 5 else "attention"
        compare(5.22, 9.78, 1.71 + 1.2 * row, name)
        if row < 5:
            compare(3.0, 12.0, 2.31 + 1.2 * row, "hidden")
    compare(5.22, 9.78, 8.88, "cosine, hidden")
    compare(5.22, 9.78, 10.13, "kl, mse")
    box(ax, 15.15, 9.72, 1.2, 0.98, "original\ntokens", NEUTRAL)
    compare(14.42, 15.13, 10.13, "mlm")
    label(ax, 2.9, 11.0, "teacher", TEACHER, weight="bold")
    label(ax, 12.1, 11.0, "student", STUDENT, weight="bold")
    return ax


def table_of_cells(
    ax: Axes, x: float, y: float, rows: int, columns: int, color: str, **style
) -> None:
    """Small squares; (x, y) is the lower left corner."""
    for row in range(rows):
        for column in range(columns):
            corner = x + 0.4 * column, y + 0.4 * row
            ax.add_patch(Rectangle(corner, 0.4, 0.4, ec="white", lw=1.5, fc=color, **style))


def relations() -> Axes:
    """What the relation loss and the attention loss compare, for one text of three tokens."""
    ax = canvas(16.4, 6.9, 0.68)
    names = {
        0.2: ("relation", "queries with queries\n(and keys with keys, values with values)"),
        8.6: ("attention", "queries with keys,\none head with the same head"),
    }
    for x, (name, what) in names.items():
        label(ax, x, 6.55, name, ha="left", weight="bold", fontsize=12)
        label(ax, x + 2.1, 6.55, what, NEUTRAL, ha="left", fontsize=9)
        wide = {"relation": (4, 2), "attention": (2, 2)}[name]
        for y, color, width in ((3.9, TEACHER, wide[0]), (0.7, STUDENT, wide[1])):
            end = x + 1.3 + 0.4 * width
            table_of_cells(ax, x + 0.5, y, 3, width, color)
            label(ax, x + 0.5 + 0.2 * width, y + 1.5, "Q", color, weight="bold")
            label(ax, x + 0.9 + 0.4 * width, y + 0.6, "×", fontsize=14)
            table_of_cells(ax, end, y + 0.6 - 0.2 * width, width, 3, color, alpha=0.75)
            other = "Qᵀ" if name == "relation" else "Kᵀ"
            label(ax, end + 0.6, y + 0.9 + 0.2 * width, other, color, weight="bold")
            arrow(ax, (end + 1.35, y + 0.6), (x + 6.0, y + 0.6))
            if name == "relation":
                label(ax, (end + 1.35 + x + 6.0) / 2, y + 0.85, "softmax", fontsize=9)
            table_of_cells(ax, x + 6.1, y, 3, 3, color, alpha=0.55)
            label(ax, x + 0.35, y + 0.6, "tokens", NEUTRAL, rotation=90, fontsize=9)
        label(ax, x + 0.5, 5.95, "teacher", TEACHER, ha="left", weight="bold")
        label(ax, x + 0.5, 2.75, "student", STUDENT, ha="left", weight="bold")
        ends = {"arrowstyle": "<|-|>", "color": "black", "lw": 1.4}
        ax.annotate("", (x + 6.7, 3.85), (x + 6.7, 1.95), arrowprops=ends)
        how = "KL of\neach row" if name == "relation" else "squared\ndifference\nof each cell"
        label(ax, x + 6.5, 2.9, how, ha="right", weight="bold", fontsize=10)
        label(ax, x + 6.7, 5.35, "tokens × tokens", NEUTRAL, fontsize=9)
        label(ax, x + 6.7, 0.4, "tokens × tokens", NEUTRAL, fontsize=9)
    ax.plot([8.25, 8.25], [0.3, 6.6], color=NEUTRAL, lw=0.8, ls=":")
    return ax


def equal_minutes() -> Axes:
    """Three steps with the teacher take as long as five without; six layers to three."""
    ax = canvas(17, 4.6, 0.64)
    rows = {
        2.6: ("with the teacher:\n3 steps", 3, [(6, TEACHER), (3, STUDENT), (6, STUDENT)]),
        0.9: ("masked LM alone:\n5 steps", 5, [(3, STUDENT), (6, STUDENT)]),
    }
    for y, (name, steps, passes) in rows.items():
        label(ax, 2.9, y + 0.45, name, ha="right", weight="bold")
        x = 3.2
        for step in range(steps):
            start = x
            for number, (layers, color) in enumerate(passes):
                backward = number == len(passes) - 1
                box(ax, x + 0.04, y, 0.3 * layers - 0.08, 0.9, str(layers), color)
                ax.patches[-1].set_alpha(0.6 if backward else 1)
                x += 0.3 * layers
            ends = {"arrowstyle": "|-|,widthA=0.25,widthB=0.25", "color": NEUTRAL}
            ax.annotate("", (x - 0.04, y - 0.18), (start + 0.04, y - 0.18), arrowprops=ends)
            label(ax, (start + x) / 2, y - 0.42, f"step {step + 1}", NEUTRAL, fontsize=9)
    for x, name, color, alpha in (
        (3.2, "teacher, forward", TEACHER, 1),
        (7.4, "student, forward", STUDENT, 1),
        (11.6, "student, backward", STUDENT, 0.6),
    ):
        box(ax, x, 4.0, 0.5, 0.4, "", color)
        ax.patches[-1].set_alpha(alpha)
        label(ax, x + 0.65, 4.2, name, ha="left")
    label(ax, 16.85, 4.2, "time →", NEUTRAL, ha="right", style="italic")
    return ax


def many_processes() -> Axes:
    """One step of two processes: each has its rows; the gradients are averaged in between."""
    ax = canvas(17.4, 6.3, 0.66)
    label(ax, 1.25, 5.2, "one batch", NEUTRAL, weight="bold")
    for i, y in enumerate((4.2, 3.5, 1.6, 0.9)):
        box(ax, 0.3, y, 1.9, 0.5, f"block {i + 1}", NEUTRAL)
    headings = {4.65: "forward: its own loss", 8.15: "backward: its gradient"}
    headings |= {11.6: "exchange", 15.15: "optimizer: the same step"}
    for x, text in headings.items():
        label(ax, x, 5.85, text, NEUTRAL, style="italic")
    for number, y in enumerate((3.6, 1.0)):
        frame(ax, 2.75, y - 0.45, 14.4, 2.1, "")
        label(ax, 2.95, y + 1.38, f"process {number}", NEUTRAL, ha="left", weight="bold")
        arrow(ax, (2.25, y + 0.5), (2.98, y + 0.5))
        box(ax, 3.05, y + 0.55, 3.2, 0.6, "teacher, frozen", TEACHER)
        box(ax, 3.05, y - 0.15, 3.2, 0.6, "student, a copy", STUDENT)
        arrow(ax, (6.3, y + 0.5), (7.0, y + 0.5))
        box(ax, 7.05, y + 0.1, 2.2, 0.8, f"$g_{number}$", STUDENT, filled=False)
        box(ax, 13.55, y - 0.15, 3.2, 1.3, "student, still\nthe same copy", STUDENT)
        arrow(ax, (12.75, y + 0.5), (13.5, y + 0.5))
    box(ax, 10.45, 0.75, 2.3, 4.15, "mean of the\ngradients\n\n$(g_0 + g_1)\\,/\\,2$", NEUTRAL)
    for y in (4.1, 1.5):
        arrow(ax, (9.3, y), (10.4, y))
    return ax


def wrapper() -> Axes:
    """Two models in one prepared module, and the two ways to call it."""
    ax = canvas(14.6, 4.5, 0.68)
    frame(ax, 6.0, 0.3, 8.4, 3.9, "prepared: averages gradients, sets the number format")
    box(ax, 10.4, 2.2, 3.4, 0.95, "teacher", TEACHER)
    box(ax, 10.4, 0.7, 3.4, 0.95, "student", STUDENT)
    box(ax, 6.0, 2.1, 2.1, 1.1, "its forward\npass", NEUTRAL)
    arrow(ax, (8.15, 2.75), (10.35, 2.75), STUDENT)
    arrow(ax, (8.15, 2.45), (10.35, 1.45), STUDENT)
    calls = {2.65: ("model(…)", STUDENT), 1.05: ('model.module["student"](…)', LOST)}
    for y, (text, color) in calls.items():
        label(ax, 4.0, y, text, color, ha="right", family="monospace", fontsize=10)
    arrow(ax, (4.15, 2.65), (5.95, 2.65), STUDENT)
    style = {"arrowstyle": "-|>", "lw": 1.6, "ls": "--", "color": LOST}
    ax.annotate("", (10.35, 1.05), (4.15, 1.05), arrowprops=style)
    label(ax, 7.6, 0.7, "past all of it", LOST, style="italic", fontsize=10)
    return ax


def killed() -> Axes:
    """A run of four epochs that is killed in the second, and started again."""
    ax = canvas(17, 5.1, 0.66)
    label(ax, 0.2, 4.1, "first start", ha="left", weight="bold")
    label(ax, 0.2, 1.55, "same command\nonce more", ha="left", weight="bold")
    box(ax, 3.4, 3.7, 2.9, 0.8, "epoch 1", STUDENT)
    box(ax, 6.6, 3.7, 1.7, 0.8, "epoch 2", LOST, filled=False)
    label(ax, 8.75, 4.1, "✗", LOST, fontsize=20)
    label(ax, 9.2, 4.1, "SIGKILL: this part is lost", LOST, ha="left")
    box(ax, 5.4, 2.45, 2.1, 0.7, "state.pt", NEUTRAL)
    arrow(ax, (6.3, 3.68), (6.4, 3.2), NEUTRAL)
    arrow(ax, (6.5, 2.43), (6.62, 2.02), NEUTRAL)
    for i in range(3):
        box(ax, 6.6 + 3.2 * i, 1.2, 2.9, 0.8, f"epoch {i + 2}", STUDENT)
    for i in range(4):
        x = 6.3 + 3.2 * i
        ax.plot([x, x], [0.75, 1.0], color=NEUTRAL, lw=1.2)
    label(ax, 11.1, 0.45, "after each epoch the state is written again", NEUTRAL, style="italic")
    return ax


def encoders() -> Axes:
    """Where each contender of notebook 06 takes its encoder from."""
    ax = canvas(16, 8.2, 0.66)
    box(ax, 0.3, 4.3, 3.4, 1.5, "teacher\nall layers, trained\nin notebook 02", TEACHER)
    box(ax, 5.9, 4.3, 3.4, 1.5, "extracted\nsome of its layers,\nnothing after that", STUDENT)
    box(ax, 12.1, 6.1, 3.6, 1.5, "distilled\nthe student\nof notebook 03", STUDENT)
    box(ax, 12.1, 2.9, 3.6, 1.5, "mlm_only\nmasked LM alone,\nas many steps", STUDENT)
    box(ax, 5.9, 0.4, 3.4, 1.5, "random\nthe same shape,\nrandom weights", STUDENT, filled=False)
    box(ax, 12.1, 0.4, 3.6, 1.5, "baseline\na published student,\nmade by others", NEUTRAL)
    arrow(ax, (3.75, 5.05), (5.85, 5.05))
    label(ax, 4.8, 5.35, "copied", style="italic")
    arrow(ax, (9.35, 5.35), (12.05, 6.55))
    label(ax, 11.3, 5.3, "trained on reviews: learns\nfrom teacher and text", fontsize=9)
    arrow(ax, (9.35, 4.75), (12.05, 3.85))
    label(ax, 10.2, 3.75, "trained on the same\nreviews: learns from\nthe text alone", fontsize=9)
    style = {"arrowstyle": "-|>", "lw": 1.4, "ls": "--", "color": TEACHER}
    style |= {"connectionstyle": "angle,angleA=90,angleB=180,rad=6"}
    ax.annotate("", (12.05, 7.2), (2.0, 5.85), arrowprops=style)
    label(ax, 6.9, 7.5, "its outputs are the target", TEACHER, style="italic")
    label(ax, 2.0, 1.15, "no weight and no output\nof the teacher", NEUTRAL, style="italic")
    return ax


def lessons() -> Axes:
    """What a contender of notebook 06 learns the task from; the numbers are those of its text."""
    ax = canvas(16.4, 7.6, 0.66)
    frame(ax, 0.2, 0.2, 5.6, 7.2, "lesson 1: the labels")
    frame(ax, 6.2, 0.2, 10, 7.2, "lesson 2: the teachers' logits")
    both = {"arrowstyle": "<|-|>", "color": "black", "lw": 1.4}
    box(ax, 0.6, 0.7, 2.2, 1.1, "a labelled\ntext", NEUTRAL)
    box(ax, 0.6, 2.7, 2.2, 1.1, "any\ncontender", STUDENT)
    arrow(ax, (1.7, 1.85), (1.7, 2.65))
    box(ax, 0.6, 4.7, 2.2, 1.1, "its logits\n(1, 0)", STUDENT, filled=False)
    arrow(ax, (1.7, 3.85), (1.7, 4.65))
    box(ax, 3.4, 4.7, 2.2, 1.1, "label:\nnegative", PICKED)
    ax.annotate("", (3.37, 5.25), (2.83, 5.25), arrowprops=both)
    label(ax, 3.1, 6.3, "cross-entropy", weight="bold")
    box(ax, 8.8, 0.7, 5.2, 1.1, "any text, with or without a label", NEUTRAL)
    box(ax, 6.5, 2.7, 2.2, 1.1, "a student", STUDENT)
    box(ax, 6.5, 4.7, 2.2, 1.1, "its logits\n(1, 0)", STUDENT, filled=False)
    arrow(ax, (9.4, 1.85), (7.7, 2.65))
    arrow(ax, (7.6, 3.85), (7.6, 4.65))
    for i, given in enumerate(("(2, -1)", "(1, 0)", "(3, -2)")):
        x = 9.6 + 2.2 * i
        box(ax, x, 2.7, 2, 1.1, f"teacher,\nseed {i}", TEACHER)
        arrow(ax, (11.4 + 0.6 * i, 1.85), (x + 1, 2.65))
        label(ax, x + 1, 4.15, given, TEACHER)
        arrow(ax, (x + 1, 4.35), (12.2 + 0.6 * i, 4.72), TEACHER)
    box(ax, 11.2, 4.75, 3.2, 1.0, "their mean (2, -1)", TEACHER, filled=False)
    ax.annotate("", (11.17, 5.25), (8.73, 5.25), arrowprops=both)
    label(ax, 9.95, 6.3, "mean squared difference", weight="bold")
    label(ax, 13.8, 6.3, "no label needed", NEUTRAL, style="italic")
    return ax


def resampling() -> Axes:
    """The paired bootstrap of notebook 06 on its ten texts: the first two of its draws."""
    ax = canvas(16, 8.4, 0.66)
    right = {"teacher": [1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "student": [1, 1, 1, 1, 1, 0, 0, 1, 0, 0]}
    colors = {"teacher": TEACHER, "student": STUDENT}

    def rows(texts: list[int], top: float, name: str) -> None:
        label(ax, 0.2, top + 0.3, name, ha="left", weight="bold")
        for column, text in enumerate(texts):
            box(ax, 4.1 + 0.85 * column, top, 0.75, 0.6, str(text), NEUTRAL, filled=False)
            for line, (who, marks) in enumerate(right.items()):
                place = (4.475 + 0.85 * column, top - 0.35 - 0.55 * line)
                sign = "\u2713" if marks[text] else "\u2717"
                label(ax, *place, sign, colors[who] if marks[text] else "#9a9a9a", fontsize=13)
        shares = {who: sum(marks[text] for text in texts) for who, marks in right.items()}
        for line, (who, count) in enumerate(shares.items()):
            y = top - 0.35 - 0.55 * line
            label(ax, 3.9, y, who, colors[who], ha="right")
            label(ax, 12.8, y, f"{10 * count} %", colors[who], ha="left")
        apart = 10 * (shares["student"] - shares["teacher"])
        label(ax, 14.0, top - 0.62, f"{apart:+} points".replace("-", "\u2212"), ha="left")

    generator = np.random.default_rng(0)
    rows(list(range(10)), 7.1, "the ten test texts")
    for number, top in enumerate((4.6, 2.5)):
        drawn = sorted(generator.integers(10, size=10).tolist())
        rows(drawn, top, f"draw {number + 1}")
    arrow(ax, (8.3, 5.9), (8.3, 5.35))
    label(ax, 8.6, 5.62, "draw ten of them, with replacement", NEUTRAL, ha="left", style="italic")
    rest = "… 10,000 draws. The middle 95 % of their differences are the interval"
    label(ax, 8.3, 0.6, rest, weight="bold")
    return ax


DRAWINGS: dict[str, Callable[[], Axes]] = {
    each.__name__: each
    for each in (
        *(idea, blocks, masking, extraction, token_type, losses, hooks, positions),
        *(seven_losses, relations, equal_minutes, many_processes, wrapper, killed),
        *(encoders, lessons, resampling),
    )
} | {f"tour_{number}": lambda number=number: tour(number) for number in TOUR}
"""By the name of the file."""


def draw(name: str, target: Path) -> None:
    """Draw one to a PNG file."""
    ax = DRAWINGS[name]()
    ax.figure.savefig(target, dpi=130, facecolor="white", metadata={"Software": None})
    plt.close(ax.figure)


def embedded(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the drawings that its texts name, from the folder.

    Raises:
        KeyError: a text names a drawing that there is not.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.pop("attachments", None)
            if found := NAMED.findall(cell.source):
                files = [folder / f"{name}.png" for _, name in found]
                cell.attachments = {
                    file.name: {"image/png": base64.b64encode(file.read_bytes()).decode()}
                    for file in files
                }
    return notebook


def write() -> None:
    folder = ROOT / "notebooks" / "images"
    for name in DRAWINGS:
        draw(name, folder / f"{name}.png")
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        nbformat.write(embedded(nbformat.read(path, as_version=4), folder), path)


if __name__ == "__main__":
    write()
