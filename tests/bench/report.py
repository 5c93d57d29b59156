"""Write the benchmark's record into the repository: `make bench-report`.

The record of the last `make bench` becomes tests/bench/record.json; docs/benchmark.md gets its summary and tables, and
notebooks/images/cost.png the picture. Without a new record, the committed one is written again.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml
from matplotlib import pyplot as plt

from helpers.catalyst_today.saving import write_json
from helpers.runs.records import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import results

BENCH = ROOT / "artifacts" / "bench" / "metrics.json"
RECORD = Path(__file__).with_name("record.json")
PLAN = yaml.safe_load(Path(__file__).with_name("full.yaml").read_text(encoding="utf-8"))
PAGE = ROOT / "docs" / "benchmark.md"
PICTURE = ROOT / "notebooks" / "images" / "cost.png"

WAYS = {
    "masked_after": "all logits, the masked ones picked out after",
    "textbrewer": "TextBrewer's `GeneralDistiller`",
    "article": "the article's step (KL at every attended position)",
    "ours": "**this repository**",
}
CONTENDERS = ("masked_after", "textbrewer", "article", "ours_fp32", "masked_after_bf16", "article_bf16", "ours")
"""In the order of the tables: first those in float32."""
AXES = {
    "length": "tokens in a row",
    "batch": "rows in a batch",
    "vocabulary": "tokens in the vocabulary",
    "masked": "share of the tokens that is masked",
}


def type_of(machine: dict) -> str:
    """In which type of number this repository computes on a machine, unless it is told another."""
    return machine["precision"].split()[0]


def way_and_type(contender: str, machine: dict) -> tuple[str, str]:
    """What a contender's row is called, and the type of number that it computes in."""
    way = contender.removesuffix("_bf16").removesuffix("_fp32")
    if contender == "ours":
        return WAYS[way], type_of(machine)
    return WAYS[way], "bfloat16" if contender.endswith("_bf16") else "float32"


def in_words(work: str) -> str:
    """The name of a work or shape, its sizes spelled out: 32 x 64 is 32 rows x 64 tokens."""
    work = re.sub(r", ([\d,]+) tokens$", r", a vocabulary of \1", work)
    return re.sub(r"\b1 rows", "1 row", re.sub(r"(\d+) x (\d+)", r"\1 rows x \2 tokens", work))


def by_work(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Work to contender to row, both in the order of the tables."""
    works = {row["work"]: {} for row in rows}
    for name in CONTENDERS:
        for row in rows:
            if row["contender"] == name:
                works[row["work"]][name] = row
    return works


def times_as_fast(name: str, rows: dict[str, dict], machine: dict) -> tuple[float, float, float] | None:
    """How many times as fast this repository is in the same type of number: (by the medians, least, most).

    Least and most are over the rounds, in each of which both were measured. None: it was not measured in that type.
    """
    wanted = way_and_type(name, machine)[1]
    ours = [other for other in ("ours_fp32", "ours") if other in rows and way_and_type(other, machine)[1] == wanted]
    if not ours:
        return None
    theirs, ours = rows[name], rows[ours[0]]
    rounds = [a / b for a, b in zip(theirs["seconds_of_blocks"], ours["seconds_of_blocks"], strict=True)]
    return theirs["seconds_per_step"] / ours["seconds_per_step"], min(rounds), max(rounds)


def speed_table(rows: dict[str, dict], machine: dict) -> str:
    """A row for each contender of one work."""
    lines = []
    for name, row in rows.items():
        way, number = way_and_type(name, machine)
        if way == WAYS["ours"]:
            faster = ""
        elif (times := times_as_fast(name, rows, machine)) is None:
            faster = f"no {number} of ours to compare with"
        else:
            faster = "{:.1f} ({:.1f} to {:.1f})".format(*times)
        seconds, groups = row["seconds_per_step"], row["seconds_of_blocks"]
        lines.append(
            [
                way,
                number,
                f"{seconds:.2f} ({min(groups):.2f} to {max(groups):.2f})",
                f"{row['tokens_per_second']:,.0f}",
                faster,
                f"{row['peak_memory_mb']:,.0f} MB",
            ]
        )
    head = ["", "computes in", "seconds a step", "tokens a second", "ours: times as fast", "peak memory"]
    return results.rows(head, *lines)


def speed_part(rows: list[dict], record: dict, machine: dict) -> list[str]:
    works, lines = by_work(rows), []
    measured = [name for name in CONTENDERS if any(name in of for of in works.values())]
    for work, of in works.items():
        lines += [f"### {in_words(work)}", speed_table(of, machine)]
        if missing := [", ".join(way_and_type(name, machine)) for name in measured if name not in of]:
            lines += [f"Not measured at this size: {'; '.join(missing)}."]
    apart = max(max(row["seconds_of_blocks"]) / min(row["seconds_of_blocks"]) for row in rows)
    ours = [row for row in rows if row["contender"] == "ours"]
    return [
        *lines,
        f"Within one row the slowest group takes up to {apart:.1f} times as long as the fastest.",
        results.rows(
            [f"this repository, {type_of(machine)}", *(in_words(row["work"]) for row in ours)],
            ["matrix products, share of a step's time", *(f"{row['matrix_share']:.0%}" for row in ours)],
            ["waiting for data, share of a step's time", *(f"{row['waiting_share']:.1%}" for row in ours)],
        ),
    ]


def quality_part(rows: list[dict], record: dict, machine: dict) -> list[str]:
    minutes, before = PLAN["quality"]["minutes"], record["machines"]["rows"]
    speeds = by_work(record["rows"])[rows[0]["work"]]
    trained = [row["contender"] for row in rows]
    others = {name: round(60 * minutes / row["seconds_per_step"]) for name, row in speeds.items()}
    untrained = [
        f"{', '.join(way_and_type(name, before))}: {steps:,}" for name, steps in others.items() if name not in trained
    ]
    lines = []
    for row in rows:
        (way, run_in), counted_in = way_and_type(row["contender"], machine), way_and_type(row["contender"], before)[1]
        seconds, counted = row["seconds"] / row["steps"], speeds[row["contender"]]["seconds_per_step"]
        lines.append(
            [
                way,
                f"{row['steps']:,}",
                f"{counted_in}, {counted:.2f} s",
                f"{run_in}, {seconds:.2f} s",
                f"{60 * minutes / seconds:.0f}",
                f"{row['masked_accuracy']:.1%}",
                f"{row['perplexity']:.1f}",
                f"{row['kl_to_teacher']:.3f}",
            ]
        )
    head = ["", "steps", "a step when counted", "a step in this run", f"steps that fit into {minutes} minutes here"]
    lines = [
        f"Each way trains a student ({in_words(rows[0]['work'])}) for as many steps as it makes in {minutes} minutes "
        f"at the speeds above. One random seed; {rows[0]['masked_tokens']:,} tokens to predict, which all count (one "
        "in ten is visible). The steps were "
        "counted on the machine of the tables above. The runs were made on the machine named here, at other speeds and "
        "partly in another type of number. So the minutes are equal on the first machine, not on this one.",
        results.rows([*head, "accuracy over all predicted tokens", "perplexity", "KL to the teacher"], *lines),
    ]
    if untrained:
        lines += [
            "These were not trained for the table. By the same rule they would have made so many steps: "
            f"{'; '.join(untrained)}."
        ]
    return lines


def growth_part(rows: list[dict], record: dict, machine: dict) -> list[str]:
    alternative = "Seconds a step and peak memory against length, batch, vocabulary and masked share"
    lines = [
        f"![{alternative}, for this repository and for a way that computes all logits]"
        f"(../notebooks/images/{PICTURE.name})"
    ]
    if type_of(machine) == "float32":  # as in the other way, so that the two can be compared
        ranges = []
        for axis, label in AXES.items():
            pairs = [[row for row in rows if row["axis"] == axis and row["contender"] == name] for name in DRAWN]
            times = [theirs["seconds_per_step"] / ours["seconds_per_step"] for theirs, ours in zip(*pairs, strict=True)]
            ranges.append(f"{min(times):.1f} to {max(times):.1f} along *{label}*")
        lines += [
            "Both compute in float32. A step of this repository is so many times as fast, from the least to the most "
            f"in a column: {'; '.join(ranges)}."
        ]
    return lines


def reading_part(rows: list[dict], record: dict, machine: dict) -> list[str]:
    return [
        "From a CSV file to blocks. A block is a row of a batch. *First*: the texts are read and tokenized. *Cached*: "
        "a second run finds what the first one left. The memory is the most that the process held at once, without the "
        "pages of the files that it reads: the system takes those back whenever it needs them.",
        results.rows(
            ["", "texts a second", "peak memory"],
            *(
                [
                    f"{row['rows']:,} texts, {row['times']}",
                    f"{row['rows_per_second']:,.0f}",
                    f"{row['peak_anonymous_mb']:,.0f} MB",
                ]
                for row in rows
            ),
        ),
    ]


def inference_part(rows: list[dict], record: dict, machine: dict) -> list[str]:
    return [
        "A forward pass in float32, with the masked-LM head at every position. That head is as large in the student as "
        "in the teacher, so the two times differ less than the numbers of layers. A classifier has no such head: "
        "notebook 06 measures classifiers.",
        results.rows(
            ["milliseconds a text", "teacher", "student"],
            *(
                [
                    in_words(f"{row['work']}, {row['batch']} x {row['length']}"),
                    f"{row['teacher_ms']:.1f}",
                    f"{row['student_ms']:.1f} ({row['teacher_ms'] / row['student_ms']:.1f} times as fast)",
                ]
                for row in rows
            ),
        ),
    ]


PARTS = {
    "rows": ("Speed and memory of a training step", speed_part),
    "quality": (f"The student after {PLAN['quality']['minutes']} minutes", quality_part),
    "growth": ("How the cost of a step grows", growth_part),
    "reading": ("Reading a corpus", reading_part),
    "inference": ("Using the student", inference_part),
}


def section(record: dict) -> str:
    """The tables: the parts that the record has, and what each was measured on."""
    lines = []
    for key, (heading, part) in PARTS.items():
        if rows := record.get(key):
            machine = record["machines"][key]
            cores = f", {machine['cores']} cores" if "cores" in machine else ""
            measured_on = f"Measured on: {machine['device']}{cores}, torch {machine['torch']}, {machine['precision']}."
            lines += [f"## {heading}", measured_on, *part(rows, record, machine)]
    return "\n\n".join(lines)


def summary(record: dict) -> str:
    """Against each other way: how many times as fast this repository is, from the least to the most of the works."""
    if "rows" not in record:
        return "The speed of a step is not measured."
    machine, times = record["machines"]["rows"], {}
    for rows in by_work(record["rows"]).values():
        for name in rows:
            way, number = way_and_type(name, machine)
            if way != WAYS["ours"] and (found := times_as_fast(name, rows, machine)):
                times.setdefault(way, {}).setdefault(number, []).append(found[0])
    lines = []
    for way, of in times.items():
        ranges = [f"{min(found):.1f} to {max(found):.1f} times as fast in {number}" for number, found in of.items()]
        lines.append(f"- {way}: {', '.join(ranges)}")
    return "\n".join(lines)


PLACES = {"bench-summary": summary, "bench": section}
"""What the page holds between ``<!-- name -->`` and ``<!-- /name -->``."""


def written(page: str, record: dict) -> str:
    """The page with what the record says. ValueError: a place for it is missing."""
    texts = {name: f"\n{text(record)}\n\n" for name, text in PLACES.items()}
    return results.filled(page, PAGE.name, texts)


DRAWN = ("masked_after", "ours")


def draw(rows: list[dict], machine: dict) -> plt.Figure:
    """Seconds a step and peak memory along each axis, this repository beside `masked_after`."""
    figure, panels = plt.subplots(2, len(AXES), figsize=(14, 6), sharex="col", sharey="row", layout="constrained")
    for (axis, label), column in zip(AXES.items(), panels.T, strict=True):
        for name in DRAWN:
            own = [row for row in rows if row["axis"] == axis and row["contender"] == name]
            values, text = [row["value"] for row in own], ", ".join(way_and_type(name, machine)).replace("**", "")
            column[0].plot(values, [row["seconds_per_step"] for row in own], "o-", label=text)
            column[1].plot(values, [row["peak_memory_mb"] / 1000 for row in own], "o-", label=text)
        for panel in column:
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
            panel.set_xticks(values, [f"{value:,}" for value in values])
            panel.set_xticks([], minor=True)
        column[1].set_xlabel(label)
    panels[0, 0].set_ylabel("seconds a step")
    panels[1, 0].set_ylabel("peak memory above\nthe models, GB")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(
        "How the cost of a step grows: MiniLM 6 to 3 layers, 32 rows of 64 tokens, vocabulary 30,522, 15 % masked; "
        "each column varies one of these"
    )
    return figure


def main() -> None:
    record = json.loads((BENCH if BENCH.exists() else RECORD).read_text(encoding="utf-8"))
    page = written(PAGE.read_text(encoding="utf-8"), record)
    figure = draw(record["growth"], record["machines"]["growth"]) if record.get("growth") else None
    write_json(RECORD, record)
    PAGE.write_text(page, encoding="utf-8")
    if figure is not None:
        figure.savefig(PICTURE, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
