"""Write the benchmark's record into the repository: `make bench-report`.

The record of the last `make bench` becomes tests/bench/record.json; README.md gets its tables, and
notebooks/images/cost.png the picture.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from matplotlib import pyplot as plt

from helpers.catalyst_today.saving import write_json
from helpers.runs.records import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import results

BENCH = ROOT / "artifacts" / "bench" / "metrics.json"
RECORD = Path(__file__).with_name("record.json")
README = ROOT / "README.md"
PICTURE = ROOT / "notebooks" / "images" / "cost.png"
BETWEEN = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)

SAME = {
    "masked_after": "logits everywhere, the masked picked out after, float32",
    "masked_after_bf16": "the same, bfloat16",
    "textbrewer": "TextBrewer's GeneralDistiller, float32",
    "ours_fp32": "**this repository**, float32",
    "ours": "**this repository**",
}
ARTICLE = {
    "article": "the article's step, float32",
    "article_bf16": "the same, bfloat16",
    "ours": "**this repository**",
}
AXES = {
    "length": "tokens in a row",
    "batch": "rows in a batch",
    "vocabulary": "tokens in the vocabulary",
    "masked": "share of the tokens that is masked",
}


def speed_table(rows: list[dict], names: dict[str, str]) -> str:
    """Contenders by works: real tokens a second, how many times that ours makes, and the peak memory."""
    works = list(dict.fromkeys(row["work"] for row in rows))
    of = {(row["work"], row["contender"]): row for row in rows}

    def cell(work: str, name: str) -> str:
        if (work, name) not in of:
            return "not measured"
        row, ours = of[work, name], of[work, "ours"]
        ratio = ours["tokens_per_second"] / row["tokens_per_second"]
        times = "" if name == "ours" else f" ({ratio:.1f} times)"
        return f"{row['tokens_per_second']:,.0f}{times}; {row['peak_memory_mb']:,.0f} MB"

    lines = [[label, *(cell(work, name) for work in works)] for name, label in names.items()]
    return results.rows(["", *works], *lines)


def shares_table(rows: list[dict]) -> str:
    ours = [row for row in rows if row["contender"] == "ours"]
    return results.rows(
        ["this repository", *(row["work"] for row in ours)],
        ["share of the matrix rate", *(f"{row['matrix_share']:.0%}" for row in ours)],
        ["time spent waiting for data", *(f"{row['waiting_share']:.1%}" for row in ours)],
    )


def quality_table(rows: list[dict]) -> str:
    names = {**ARTICLE, **SAME}
    return results.rows(
        ["", "steps", "masked-token accuracy", "perplexity", "KL to the teacher"],
        *(
            [
                names[row["contender"]],
                f"{row['steps']:,}",
                f"{row['masked_accuracy']:.1%}",
                f"{row['perplexity']:.1f}",
                f"{row['kl_to_teacher']:.3f}",
            ]
            for row in rows
        ),
    )


def reading_table(rows: list[dict]) -> str:
    return results.rows(
        ["CSV to blocks", "rows a second", "peak of anonymous memory"],
        *(
            [
                f"{row['rows']:,} rows, {row['times']}",
                f"{row['rows_per_second']:,.0f}",
                f"{row['peak_anonymous_mb']:,.0f} MB",
            ]
            for row in rows
        ),
    )


def inference_table(rows: list[dict]) -> str:
    return results.rows(
        ["milliseconds a text, float32", "teacher", "student"],
        *(
            [
                f"{row['work']}, {row['batch']} x {row['length']}",
                f"{row['teacher_ms']:.1f}",
                f"{row['student_ms']:.1f} ({row['teacher_ms'] / row['student_ms']:.1f} times as fast)",
            ]
            for row in rows
        ),
    )


def measured_on(machine: dict) -> str:
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"Measured on: {machine['device']}{cores}, torch {machine['torch']}, {machine['precision']}."


def section(record: dict) -> str:
    """What stands in the README between the two marks: the parts that the record has, and what each was measured on."""
    alternative = "Seconds a step and peak memory against length, batch, vocabulary and masked share"
    parts = {
        "rows": lambda rows: [
            "The same objective: masked LM, KL at the masked positions, cosine. Tokens a second, not counting padding; "
            "in brackets, how many times as many this repository makes; peak memory above models and optimizer.",
            speed_table(rows, SAME),
            "The article's objective, whose KL is taken at every attended position:",
            speed_table(rows, ARTICLE),
            shares_table(rows),
        ],
        "quality": lambda rows: [
            "What each student is worth after as many steps as it makes in the same three minutes at the speeds above "
            f"({rows[0]['work']}, one seed), however long they took on this machine:",
            quality_table(rows),
        ],
        "growth": lambda rows: [
            f"![{alternative}, beside a way that computes all logits](notebooks/images/{PICTURE.name})"
        ],
        "reading": lambda rows: [reading_table(rows)],
        "inference": lambda rows: [
            "A forward pass with the masked-LM head at every position. Teacher and student have that head in one size; "
            "a classifier is without it, and notebook 06's students take about half of their teacher's time.",
            inference_table(rows),
        ],
    }
    lines, before = [], None
    for key, text in parts.items():
        if not (rows := record.get(key)):
            continue
        if record["machines"][key] != before:
            before = record["machines"][key]
            lines += [measured_on(before)]
        lines += text(rows)
    return "\n" + "\n\n".join(lines) + "\n\n"


def draw(rows: list[dict]) -> plt.Figure:
    """Seconds a step and peak memory along each axis, this repository beside `masked_after`."""
    figure, panels = plt.subplots(2, len(AXES), figsize=(14, 6), sharex="col", sharey="row", layout="constrained")
    for (axis, label), column in zip(AXES.items(), panels.T, strict=True):
        for name, text in (("masked_after", "masked picked out after, float32"), ("ours", "this repository")):
            own = [row for row in rows if row["axis"] == axis and row["contender"] == name]
            values = [row["value"] for row in own]
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
    panels[0, 0].legend()
    figure.suptitle(
        "How the cost of a step grows: MiniLM 6 to 3 layers, 32 rows of 64 tokens, 15 % masked, but for one"
    )
    return figure


def main() -> None:
    if not BENCH.exists():
        sys.exit(f"There is no {BENCH.relative_to(ROOT)}: make bench writes it.")
    record = json.loads(BENCH.read_text(encoding="utf-8"))
    text = section(record)
    figure = draw(record["growth"]) if record.get("growth") else None
    readme, found = BETWEEN.subn(lambda _: text, README.read_text(encoding="utf-8"))
    if found != 1:
        sys.exit("README.md has no place for the tables: <!-- bench --> and <!-- /bench --> on lines of their own.")
    write_json(RECORD, record)
    README.write_text(readme, encoding="utf-8")
    if figure is not None:
        figure.savefig(PICTURE, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
