"""Write what notebooks and records have into README.md and docs/results.md: `make results`."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from statistics import mean, stdev
import nbformat
from matplotlib import pyplot as plt
from helpers import plots
from helpers.runs import controls

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": ("gain",),
    "docs/results.md": (
        *("masked-lm", "recipe", "layers", "losses", "teacher", "sentiment", "comparisons"),
        *("runs", "long-task", "long-comparisons", "second-task", "second-comparisons", "shapes"),
    ),
}
"""Which page has a place for what."""
CUTS = ROOT / "tests" / "bench" / "cuts.json"
TASK_RUNS = ROOT / "tests" / "bench" / "task_runs.json"
OTHER_RUNS = {
    "another processor": "the search gave 1e-4 to `extracted_task`",
    "last edition": "another processor; 1e-4 to `extracted_task` and `extracted`",
    "the first layers": "one rate; the first layers in place of the spread ones",
}
"""Of the runs in that file those that differ, and in what; the first edition repeats the first."""
COMPARED = {
    "distilled_task, against extracted": "both distillations, against copied layers (97.5%)",
    "extracted_task, against extracted": "the task, on copied layers",
    "distilled_task, against distilled": "the task, on the distilled start",
    "distilled, against extracted": "the distilled start, on labels",
}
"""The comparisons that every run has made."""
CONTROLS = {
    "losses": "default mix",
    "teacher": "spread layers, default mix",
    "layers": "spread layers",
}
"""The parts of the controls that the pages show, beside `recipe`, and the row to compare with."""
IMAGES = ROOT / "notebooks" / "images"
GUESSES = "Bars for three sentences"
"""How the text alternative of notebook 03's picture begins that README shows."""
ORDER = ("distilled_task", "extracted_task", "extracted_task_one", "teacher", "distilled")
ORDER += ("mlm_only", "extracted", "random", "baseline", "extracted_hard", "extracted_longer")
"""The contenders in the order of notebook 06's pictures; its record has them by the alphabet."""
WAYS = ("one at a time", "32 at a time")


def rows(*lines: list[str]) -> str:
    """A Markdown table, its head first."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def best_first(record: dict) -> list[tuple[str, dict]]:
    """The contenders of notebook 06's record, by test accuracy."""
    return sorted(record["contenders"].items(), key=lambda each: -mean(each[1]["test_accuracy"]))


def spread(values: list[float]) -> str:
    return f"{mean(values):.1%} ± {stdev(values):.1%}"


def share(name: str, values: dict) -> str:
    """What a contender keeps of the teacher's accuracy, with its interval."""
    low, kept, high = values["share_kept"]
    return "" if name == "teacher" else f"{kept:.1%} ({low:.1%} to {high:.1%})"


def table(record: dict, timings: dict) -> str:
    """A row for each contender."""
    head = ["", "test accuracy", "macro F1", "of the teacher's accuracy", "million parameters"]
    lines = [[*head, "ms a text, one at a time", WAYS[1]]]
    for name, values in best_first(record):
        f1 = values["test_macro_f1"]
        line = [
            f"`{name}`",
            spread(values["test_accuracy"]),
            f"{mean(f1):.3f} ± {stdev(f1):.3f}",
            share(name, values),
            f"{values['parameters'] / 1e6:.1f}",
        ]
        lines += [line + [f"{timings['milliseconds'][name][way]:.1f}" for way in WAYS]]
    return rows(*lines)


def gain(record: dict, timings: dict) -> str:
    """README's first figures: the teacher, and students with and without distillation."""
    names = {
        "teacher": "teacher, 6 layers",
        "extracted_task": "student, 3 layers: the task distilled",
        "distilled_task": "student: hidden words distilled, then the task",
        "extracted": "student: layers copied, then taught by the labels",
        "baseline": "a public student of the same size, taught by the labels",
    }
    share_head = "share of the teacher's accuracy (95% interval)"
    head = ["", "in notebook 06", "test accuracy", share_head, "million parameters"]
    head.append("ms a sentence, two CPU cores")
    lines = [head]
    for name, shown in names.items():
        values = record["contenders"][name]
        size, took = values["parameters"] / 1e6, timings["milliseconds"][name][WAYS[0]]
        accuracy = f"{mean(values['test_accuracy']):.1%}"
        kept = share(name, values)
        lines.append([shown, f"`{name}`", accuracy, kept, f"{size:.1f}", f"{took:.1f}"])
    return f"\n{rows(*lines)}\n\n"


def masked_lm_table(record: dict) -> str:
    """Notebook 03's teacher, its student before and after, and the control if there is one."""
    lines = [["", "accuracy at [MASK]", "accuracy over all predicted tokens", "perplexity"]]
    lines[0] += ["top-5 overlap with the teacher"]
    overlaps = {
        "teacher": 1.0,
        "extracted": record["top5_overlap_before"],
        "student": record["top5_overlap_after"],
    }
    if record["parameters"]["CONTROL"]:
        overlaps["control"] = record["control_top5_overlap"]
    names = {
        "extracted": "student, extracted",
        "student": "student, distilled",
        "control": "the same, by masked LM alone (the control)",
    }
    for name, overlap in overlaps.items():
        shares = [record[f"{name}_{key}"] for key in ("accuracy_at_mask", "masked_accuracy")]
        shown = [f"{share:.1%}" for share in shares]
        shown += [f"{record[f'{name}_perplexity']:.1f}", f"{overlap:.2f}"]
        lines.append([names.get(name, name), *shown])
    return rows(*lines)


def task(record: dict, timings: dict) -> str:
    """Notebook 06's contenders."""
    parts = record["parts"]
    said = (
        f"{parts['train']:,} labelled texts to train on, {parts['test']:,} to test with, "
        f"{len(record['parameters']['SEEDS'])} seeds: mean ± standard deviation; in brackets, 95% "
        "intervals of a paired bootstrap over texts and seeds. In the picture, bars reach from the "
        "lowest to the highest seed."
    )
    picture = "![Test accuracy against milliseconds a text](../notebooks/images/sentiment_cost.png)"
    return "\n" + "\n\n".join([said, table(record, timings), picture]) + "\n\n"


def long_task(record: dict) -> str:
    """The contenders of a long record of notebook 06, and the rates that their searches chose."""
    parts = record["parts"]
    said = (
        f"{parts['train']:,} labelled texts to train on, {parts['test']:,} to test with, "
        f"{parts['transfer']:,} without labels, {len(record['parameters']['SEEDS'])} seeds."
    )
    lines = [["", "test accuracy", "of the teacher's accuracy", "learning rate"]]
    for name, values in best_first(record):
        kept, rate = share(name, values), f"{values['learning_rate']:g}"
        lines.append([f"`{name}`", spread(values["test_accuracy"]), kept, rate])
    return f"\n{said}\n\n{rows(*lines)}\n\n"


def points(found: dict) -> list[float]:
    """A difference and the ends of its interval, in percentage points."""
    return [100 * found[key] for key in ("difference", "low", "high")]


def comparisons(record: dict) -> str:
    """Notebook 06's comparisons, the main ones first."""
    head = ["the first one, against the second", "difference in percentage points", "interval"]
    lines = [[*head, "level", "the first one is"]]
    for label, found in sorted(record["differences"].items(), key=lambda each: -each[1]["level"]):
        own, low, high = points(found)
        said = "higher" if low > 0 else "lower" if high < 0 else "not shown to differ"
        names = ", against ".join(f"`{name}`" for name in label.split(", against "))
        difference, between = f"{own:+.1f}", f"{low:+.1f} to {high:+.1f}"
        lines.append([names, difference, between, f"{found['level']:.1%}", said])
    return f"\n{rows(*lines)}\n\n"


def runs(record: dict, others: dict) -> str:
    """The gains in this run of notebook 06 and in the others, in percentage points."""
    lines = [["run", *COMPARED.values()]]
    found = {"this page: one rate, 2e-4": record["differences"]}
    found |= {shown: others[name]["differences"] for name, shown in OTHER_RUNS.items()}
    for shown, differences in found.items():
        line = [shown]
        for label in COMPARED:
            line.append("{:.1f} ({:.1f} to {:.1f})".format(*points(differences[label])))
        lines.append(line)
    return f"\n{rows(*lines)}\n\n"


def recipe(record: dict) -> str:
    """The search for the default recipe: the teacher's heads, then the students."""
    columns = {"accuracy at [MASK], %": "at [MASK], %", "accuracy, %": "accuracy, %"}
    head = ["what is trained", *columns, "perplexity", "KL to its teacher", "top-5 overlap"]
    lines = [head]
    shown = controls.table(record, next(iter(controls.by_label(record))))
    for label, row in shown.iterrows():
        line = [label, *(row[own] for own in columns.values()), f"{row['perplexity']:.1f}"]
        near = [f"{row['KL']:.3f}", f"{row['top-5 overlap']:.2f}"]
        lines.append(line + (near if label.startswith("student") else ["", ""]))
    return f"\n{rows(*lines)}\n\n"


def control(record: dict, against: str) -> str:
    """A part of the controls, each row against one of them."""
    shown = controls.table(record, against)
    columns = {"at [MASK], %": "accuracy at [MASK], %"}
    columns["difference, at [MASK], %"] = f"difference to *{against}*, points"
    if "on the task, %" in shown:
        columns["on the task, %"] = "test accuracy on the task, %"
        columns["difference, on the task, %"] = "difference, points"
    head = ["", "seeds", *columns.values(), "perplexity", "KL to the teacher", "top-5 overlap"]
    lines = [head]
    for label, row in shown.iterrows():
        lines.append([label, str(row["runs"]), *(row[own] for own in columns)])
        lines[-1] += [f"{row['perplexity']:.1f}", f"{row['KL']:.3f}", f"{row['top-5 overlap']:.3f}"]
    return f"\n{rows(*lines)}\n\n"


def shapes(record: dict) -> str:
    """Students of other shapes, as tests/bench/cuts.py has distilled them."""

    def over_seeds(runs: list[dict], key: str, form: str) -> str:
        values = [run["after"][key] for run in runs]
        return f"{mean(values):{form}} ± {stdev(values):{form}}"

    head = ["student", "million parameters", "ms", "accuracy at [MASK] before", "after equal steps"]
    lines = [[*head, "after equal time", "perplexity after equal steps", "after equal time"]]
    for name, values in record.items():
        steps = values["equal steps"]
        times = values.get("equal seconds", steps)  # the first one sets the time
        line = [name, f"{values['parameters'] / 1e6:.1f}", f"{values['layers_ms']:.0f}"]
        line.append(f"{values['before']['accuracy_at_mask']:.1%}")
        for key, form in (("accuracy_at_mask", ".1%"), ("perplexity", ".1f")):
            line += [over_seeds(runs, key, form) for runs in (steps, times)]
        lines.append(line)
    return f"\n{rows(*lines)}\n\n"


def metadata(stem: str) -> dict:
    """Of a committed notebook: its record, and its timings."""
    return nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).metadata


def record_of(part: str) -> dict:
    """The record of a part of the controls."""
    file = ROOT / "notebooks" / "records" / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def sections() -> dict[str, str]:
    """What stands on a page between `<!-- name -->` and `<!-- /name -->`."""
    student, sentiment = metadata("03_runner"), metadata("06_sentiment_evaluation")
    return {
        "gain": gain(sentiment["record"], sentiment["timings"]),
        "masked-lm": f"\n{masked_lm_table(student['record'])}\n\n",
        "recipe": recipe(record_of("recipe")),
        **{part: control(record_of(part), against) for part, against in CONTROLS.items()},
        "sentiment": task(sentiment["record"], sentiment["timings"]),
        "comparisons": comparisons(sentiment["record"]),
        "runs": runs(sentiment["record"], json.loads(TASK_RUNS.read_text(encoding="utf-8"))),
        "long-task": long_task(record_of("long_task")),
        "long-comparisons": comparisons(record_of("long_task")),
        "second-task": long_task(record_of("second_task")),
        "second-comparisons": comparisons(record_of("second_task")),
        "shapes": shapes(json.loads(CUTS.read_text(encoding="utf-8"))["distilled"]),
    }


def between(name: str) -> re.Pattern:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def filled(page: str, file: str, texts: dict[str, str]) -> str:
    """The page, which is that file's, with each text between the marks of its name.

    Raises:
        ValueError: the page has not exactly one place for one of them.
    """
    for name, text in texts.items():
        page, found = between(name).subn(lambda _, text=text: text, page)
        if found != 1:
            marks = f"<!-- {name} --> and <!-- /{name} --> once, on lines of their own"
            raise ValueError(f"{file} needs {marks}.")
    return page


def cost(record: dict, timings: dict) -> plt.Figure:
    """Test accuracy against milliseconds a text."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
    for ax, way in zip(axes, WAYS, strict=True):
        points = {}
        for name in sorted(record["contenders"], key=ORDER.index):  # so that colours are the same
            percent = [100 * share for share in record["contenders"][name]["test_accuracy"]]
            points[name] = (timings["milliseconds"][name][way], percent)
        title = f"Test accuracy against time, texts {way}"
        plots.points_with_ranges(points, title, "milliseconds a text", "accuracy, %", ax)
    return figure


def picture(notebook: nbformat.NotebookNode, alt: str) -> tuple[str, str]:
    """The picture whose text alternative begins so: the whole alternative, and a PNG in base64."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    found = {
        output.metadata["image/png"]["alt"]: output.data["image/png"]
        for output in outputs
        if "image/png" in output.get("data", {})
    }
    (name,) = [each for each in found if each.startswith(alt)]
    return name, found[name]


def main() -> None:
    texts = sections()
    for file, names in PAGES.items():
        page = (ROOT / file).read_text(encoding="utf-8")
        page = filled(page, file, {name: texts[name] for name in names})
        (ROOT / file).write_text(page, encoding="utf-8")
    sentiment = metadata("06_sentiment_evaluation")
    figure = cost(sentiment["record"], sentiment["timings"])
    figure.savefig(IMAGES / "sentiment_cost.png", dpi=100, facecolor="white")
    runner = nbformat.read(ROOT / "notebooks" / "03_runner.ipynb", as_version=4)
    (IMAGES / "guesses.png").write_bytes(base64.b64decode(picture(runner, GUESSES)[1]))


if __name__ == "__main__":
    main()
