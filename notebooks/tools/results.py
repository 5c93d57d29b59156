"""Write what notebook 06 measured into README.md: `make results`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import mean, stdev
import nbformat
from matplotlib import pyplot as plt
from helpers import plots

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "06_sentiment_evaluation.ipynb"
README = ROOT / "README.md"
IMAGES = ROOT / "notebooks" / "images"
BETWEEN = re.compile(r"(?<=<!-- sentiment -->\n).*?(?=<!-- /sentiment -->)", re.DOTALL)
WAYS = ("one at a time", "32 at a time")


def rows(*lines: list[str]) -> str:
    """A Markdown table, its head first."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(record: dict, timings: dict) -> str:
    """A row for each contender."""
    head = ["", "test accuracy", "macro F1", "of the teacher's accuracy", "million parameters"]
    lines = [[*head, "ms a text, one at a time", WAYS[1]]]
    for name, values in record["contenders"].items():
        low, kept, high = values["share_kept"]
        accuracy, f1 = values["test_accuracy"], values["test_macro_f1"]
        line = [
            f"`{name}`",
            f"{mean(accuracy):.1%} ± {stdev(accuracy):.1%}",
            f"{mean(f1):.3f} ± {stdev(f1):.3f}",
            "" if name == "teacher" else f"{kept:.1%} ({low:.1%} to {high:.1%})",
            f"{values['parameters'] / 1e6:.1f}",
        ]
        lines += [line + [f"{timings['milliseconds'][name][way]:.1f}" for way in WAYS]]
    return rows(*lines)


def section(record: dict, timings: dict) -> str:
    """What stands in the README between the two marks."""
    parts = record["parts"]
    said = (
        f"{parts['train']:,} labelled texts to train on, {parts['test']:,} to test with, "
        f"{len(record['parameters']['SEEDS'])} seeds: mean ± standard deviation; in brackets, 95 % "
        "intervals of a paired bootstrap over texts and seeds."
    )
    pictures = [
        "![Validation accuracy by step, for each contender](notebooks/images/sentiment_curves.png)",
        "![Test accuracy against milliseconds a text](notebooks/images/sentiment_cost.png)",
    ]
    return "\n" + "\n\n".join([said, table(record, timings), *pictures]) + "\n\n"


def curves(record: dict) -> plt.Figure:
    """Validation accuracy by step: those taught by labels, and those taught by the teachers."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4), sharey=True, layout="constrained")
    groups = {False: "on labels", True: "on the teachers' logits"}
    for ax, (is_task, title) in zip(axes, groups.items(), strict=True):
        runs = {
            name: [(values["valid_steps"], accuracy) for accuracy in values["valid_accuracy"]]
            for name, values in record["contenders"].items()
            if name.endswith("_task") == is_task
        }
        plots.seed_curves(runs, f"Validation accuracy, {title}; EMA, alpha = 0.7", ax, 0.7)
    return figure


def cost(record: dict, timings: dict) -> plt.Figure:
    """Test accuracy against milliseconds a text."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
    for ax, way in zip(axes, WAYS, strict=True):
        points = {}
        for name, values in record["contenders"].items():
            percent = [100 * share for share in values["test_accuracy"]]
            points[name] = (timings["milliseconds"][name][way], percent)
        title = f"Test accuracy against time, texts {way}"
        plots.points_with_ranges(points, title, "milliseconds a text", "accuracy, %", ax)
    return figure


def main() -> None:
    metadata = nbformat.read(NOTEBOOK, as_version=4).metadata
    record, timings = metadata["record"], metadata["timings"]
    text = section(record, timings)
    readme, found = BETWEEN.subn(lambda _: text, README.read_text(encoding="utf-8"))
    if found != 1:
        marks = "<!-- sentiment --> and <!-- /sentiment --> on lines of their own"
        sys.exit(f"README.md has no place for the results: {marks}.")
    README.write_text(readme, encoding="utf-8")
    figures = {"sentiment_curves": curves(record), "sentiment_cost": cost(record, timings)}
    for name, figure in figures.items():
        figure.savefig(IMAGES / f"{name}.png", dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
