"""Write the benchmark's record into the repository: `make bench-report`.

The record of the last `make bench` becomes tests/bench/record.json. docs/benchmark.md is made anew from page.md, README
gets its lines, and notebooks/images/cost.png is drawn. Every sentence with a measured number is made here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from matplotlib import pyplot as plt

from classifiers import FINE_TUNING, PREDICTING
from classifiers import OBJECTIVES as CLASSIFIERS_OBJECTIVES
from contenders import CONTENDERS, OBJECTIVES
from helpers.catalyst_today.saving import write_json
from helpers.runs.records import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import results

BENCH = ROOT / "artifacts" / "bench" / "metrics.json"
RECORD = Path(__file__).with_name("record.json")
TEMPLATE = Path(__file__).with_name("page.md")
PAGE = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"
PICTURE = ROOT / "notebooks" / "images" / "cost.png"

NOT_MEASURED = "Not measured yet."
SAID = OBJECTIVES | CLASSIFIERS_OBJECTIVES
OURS = {"masked": "ours", "attended": "ours_attended", "labels": "ours", "logits": "ours"}
"""From an objective to our contender under it."""
LABELS = {
    objective: {name: each.label for name, each in kind.items()}
    for kind in (CONTENDERS, FINE_TUNING, PREDICTING)
    for objective in {each.objective for each in kind.values()}
}
AXES = {
    "length": "tokens in a row",
    "batch": "rows in a batch",
    "vocabulary": "tokens in the vocabulary",
    "masked": "share of the tokens that is masked",
}


def label(row: dict) -> str:
    """What a row's contender is called in the tables."""
    return LABELS[row["objective"]][row["contender"]]


def in_words(work: str) -> str:
    """The name of a work, its sizes spelled out: 32 x 64 is 32 rows x 64 tokens."""
    work = re.sub(r", ([\d,]+) tokens$", r", a vocabulary of \1", work)
    return re.sub(r"(\d+) x (\d+)", r"\1 rows x \2 tokens", work)


def in_part(record: dict, part: str) -> list[dict]:
    return [row for row in record.get("rows", []) if row["part"] == part]


def comparisons(rows: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    """The rows of each work and objective, which alone may be compared, those of one precision one after another."""
    found = {}
    for row in rows:
        found.setdefault((row["work"], row["objective"]), []).append(row)
    return found


def rates(row: dict) -> list[float]:
    """Texts, or rows of a batch, a second, in each of the blocks."""
    return [block["texts"] / block["seconds"] for block in row["blocks"]]


def step_seconds(row: dict) -> list[float]:
    """Seconds a step, in each of the blocks."""
    return [block["seconds"] / row["steps_in_a_block"] for block in row["blocks"]]


def ours_beside(row: dict, rows: list[dict]) -> dict | None:
    """Our row of the same work, objective and precision; None if it is not there, or this is it."""
    same = ("work", "objective", "precision")
    for other in rows:
        if other["contender"] == OURS[row["objective"]] and all(other[key] == row[key] for key in same):
            return None if other is row else other
    return None


def times_as_fast(ours: dict, theirs: dict) -> tuple[float, float, float]:
    """How many times as fast ours is: by the medians, and the least and the most over the rounds."""
    rounds = [own / other for own, other in zip(rates(ours), rates(theirs), strict=True)]
    return median(rates(ours)) / median(rates(theirs)), min(rounds), max(rounds)


def with_range(values: list[float], form: str) -> str:
    """The median, and in brackets the least and the most."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def span(values: Iterable[float], form: str = ".1f") -> str:
    """From the least to the most; one number, where both are printed alike."""
    values = sorted(values)
    low, high = f"{values[0]:{form}}", f"{values[-1]:{form}}"
    return low if low == high else f"{low} to {high}"


def table(rows: list[dict], first: str, key: str) -> str:
    """A row for each contender of one comparison; `key`: ``"steps"`` or ``"texts"``, what its speed is said in."""
    speed = ["seconds a step", "tokens a second"] if key == "steps" else ["texts a second", "tokens a second"]
    lines = [[first, "computes in", *speed, "ours: times as fast", "peak memory", "ours: share of that memory"]]
    for row in rows:
        ours = ours_beside(row, rows)
        lines.append(
            [
                label(row),
                row["precision"],
                with_range(step_seconds(row), ".3f") if key == "steps" else with_range(rates(row), ",.0f"),
                f"{row['tokens_per_second']:,.0f}",
                "{:.1f} ({:.1f} to {:.1f})".format(*times_as_fast(ours, row)) if ours else "",
                f"{row['peak_memory_mb']:,.0f} MB",
                f"{ours['peak_memory_mb'] / row['peak_memory_mb']:.2f}" if ours else "",
            ]
        )
    return results.rows(*lines)


def measured_on(record: dict, part: str) -> str:
    machine = record["machines"][part]
    if "cores" not in machine:
        return f"Measured on: {machine['device']}, torch {machine['torch']}."
    flags = ", ".join(machine["bfloat16"])
    bfloat16 = f"instructions for bfloat16: {flags}" if flags else "no instructions for bfloat16"
    return f"Measured on: {machine['device']}, {machine['cores']} cores, {bfloat16}, torch {machine['torch']}."


def of_blocks(rows: list[dict]) -> str:
    """On how many blocks and steps the rows rest."""
    blocks = span([len(row["blocks"]) for row in rows], "d")
    return f"Each row rests on {blocks} blocks of {span([row['steps_in_a_block'] for row in rows], 'd')} steps."


def speed(record: dict) -> str:
    rows = in_part(record, "speed")
    if not rows:
        return NOT_MEASURED
    lines, work_before = [measured_on(record, "speed"), of_blocks(rows)], None
    for (work, objective), compared in comparisons(rows).items():
        if work != work_before:
            lines.append(f"### {in_words(work)}")
        lines.append(table(compared, f"loss: {OBJECTIVES[objective]}", "steps"))
        work_before = work
    shares = [["**this repository**", "computes in", "matrix products", "waiting for data"]]
    for row in rows:
        if row["contender"] == "ours":
            waiting = sum(block["waiting"] for block in row["blocks"]) / sum(
                block["seconds"] for block in row["blocks"]
            )
            shares.append([in_words(row["work"]), row["precision"], f"{row['matrix_share']:.0%}", f"{waiting:.1%}"])
    lines += [
        "### What a step's time goes into",
        "Shares of a step's time. *Matrix products*: we time each matrix product of a step by itself, add these times "
        "up, and divide by the time of the step. At 100% a step would take no longer than its matrix products. The "
        "rest goes into what is read and written once: attention's softmax, dropout, normalization, the optimizer.",
        results.rows(*shares),
    ]
    return "\n\n".join(lines)


def tables(record: dict, part: str, key: str, heading: Callable[[str, str], str]) -> list[str]:
    """What a part was measured on, and a table for each work and objective, under the heading of these two."""
    rows = in_part(record, part)
    found = [table(compared, heading(*of), key) for of, compared in comparisons(rows).items()]
    return [measured_on(record, part), of_blocks(rows), *found]


def changes(record: dict) -> str:
    if not in_part(record, "changes"):
        return NOT_MEASURED
    lines = [
        "What does each of these bring by itself? In each row our step is changed in one thing; *ours* is the step "
        "without the change. What a change costs need not add up with the others.",
        *tables(record, "changes", "steps", lambda work, _: f"our step, changed; {in_words(work)}"),
    ]
    return "\n\n".join(lines)


def classifiers(record: dict) -> str:
    if not in_part(record, "classifiers"):
        return NOT_MEASURED
    works = {work["name"]: work for work in record["plans"]["classifiers"]["works"]}
    sizes = {(work["texts"], work["batch"], work["length"]) for work in works.values()}
    said = "; ".join(
        f"{texts:,} texts, {batch} in a batch, at most {length} tokens each" for texts, batch, length in sizes
    )
    lines = [
        "What notebook 06 does: a classifier of the packaged Rotten Tomatoes sentences is fine-tuned, and answers. "
        f"Beside it the Hugging Face `Trainer`, on the same texts: {said}. Both start from texts in tokens. The "
        "`Trainer` writes no log and no checkpoint. It takes the texts as they come, and pads each batch to its "
        "longest text. Our batches hold texts of about one length; the `Trainer` can do that for fine-tuning, too.",
        *tables(record, "classifiers", "texts", lambda work, kind: f"{work}: {CLASSIFIERS_OBJECTIVES[kind]}"),
    ]
    return "\n\n".join(lines)


def quality(record: dict) -> str:
    rows = record.get("quality")
    if not rows:
        return NOT_MEASURED
    own = record["plans"]["quality"]
    lines = [
        [
            "",
            "loss",
            "steps",
            "seconds that they took",
            "accuracy over all predicted tokens",
            "perplexity",
            "KL to the teacher",
        ]
    ]
    for row in rows:
        trained = row["contender"] != "extracted"
        name = label(row) if trained else "the student before"
        lines.append(
            [
                name,
                OBJECTIVES[row["objective"]] if trained else "",
                f"{row['steps']:,}",
                f"{row['seconds']:.0f}",
                f"{row['masked_accuracy']:.1%}",
                f"{row['perplexity']:.1f}",
                f"{row['kl_to_teacher']:.3f}",
            ]
        )
    said = (
        f"Each way trains the student of {in_words(own['work']['name'])} in {own['precision']} for as many steps as "
        f"it makes in {own['minutes']} minutes, by the speed of a block made just before. The seconds that the run "
        f"took show how well that was met. One random seed; {rows[0]['masked_tokens']:,} tokens to predict, which all "
        "count (one in ten is visible), scored in float32."
    )
    return "\n\n".join([measured_on(record, "quality"), said, results.rows(*lines)])


def growth(record: dict) -> str:
    rows = record.get("growth")
    if not rows:
        return NOT_MEASURED
    blocks = span([len(row["blocks"]) for row in rows], "d")
    picture = "Seconds a step and peak memory against length, batch, vocabulary and masked share, for this repository"
    return "\n\n".join(
        [
            measured_on(record, "growth"),
            f"![{picture}](../notebooks/images/{PICTURE.name})",
            f"Our step in {rows[0]['precision']}. Each point is a median over {blocks} blocks of "
            f"{span([row['steps_in_a_block'] for row in rows], 'd')} steps.",
        ]
    )


def reading(record: dict) -> str:
    rows = record.get("reading")
    if not rows:
        return NOT_MEASURED
    lines = [
        [
            f"{row['rows']:,} texts, {row['times']}",
            f"{row['rows_per_second']:,.0f}",
            f"{row['peak_anonymous_mb']:,.0f} MB",
        ]
        for row in rows
    ]
    return "\n\n".join(
        [
            measured_on(record, "reading"),
            "From a CSV file to blocks. A block is a row of a batch. *First*: the texts are read and tokenized. "
            "*Cached*: a second run finds what the first one left. The memory is the most that the process held at "
            "once, without the pages of the files that it reads: the system takes those back whenever it needs them.",
            results.rows(["", "texts a second", "peak memory"], *lines),
        ]
    )


def loss(record: dict) -> str:
    own = record["loss"]
    names = {"kl": "KL", "mlm": "masked LM", "cosine": "cosine of the last hidden states"}
    weights = " + ".join(f"{weight:g} {names[name]}" for name, weight in own["weights"].items())
    return f"{weights}, with temperature T = {own['temperature']:g}: the defaults of notebook 03."


def turns(record: dict) -> str:
    if "speed" not in record["plans"]:
        return f"- **The turns.** {NOT_MEASURED}"
    own = record["plans"]["speed"]
    return (
        "- **The turns.** Each way runs in its own process. All ways of one loss and one type of number are started "
        f"together and take two steps first. Then, in each of {own['rounds']} rounds, every way makes a block of "
        f"steps, in turn. A block has as many steps as fit into {own['block_seconds']:g} seconds, at least "
        f"{own['least_steps']}."
    )


def ratios(record: dict, part: str) -> dict[tuple[str, str], dict[str, list[tuple[float, float]]]]:
    """From (objective, contender) to precision to (times as fast, share of the memory) of ours, one for each work."""
    found, rows = {}, in_part(record, part)
    for row in rows:
        if ours := ours_beside(row, rows):
            faster, share = times_as_fast(ours, row)[0], ours["peak_memory_mb"] / row["peak_memory_mb"]
            of_contender = found.setdefault((row["objective"], row["contender"]), {})
            of_contender.setdefault(row["precision"], []).append((faster, share))
    return found


def in_precisions(of_contender: dict[str, list[tuple[float, float]]]) -> str:
    """``1.6 to 2.6 times as fast in float32, 1.7 times as fast in bfloat16``"""
    spans = {name: span(faster for faster, _ in found) for name, found in of_contender.items()}
    return ", ".join(f"{faster} times as fast in {name}" for name, faster in spans.items())


def shares(of_contender: dict[str, list[tuple[float, float]]]) -> str:
    return span([share for found in of_contender.values() for _, share in found], ".2f")


def in_short(record: dict) -> str:
    rows = in_part(record, "speed")
    if not rows:
        return "The speed of a step is not measured yet."
    sizes = len({row["work"] for row in rows})
    machine = record["machines"]["speed"]
    where = f"On {machine['cores']} cores of a processor" if "cores" in machine else f"On a GPU ({machine['device']})"
    return (
        f"{where}, we timed a distillation step of this repository beside other ways to write it. The list says how "
        f"many times as fast our step is, from the least to the most of {sizes} sizes of model and batch. Not every "
        "way was run at every size."
    )


def summary(record: dict) -> str:
    """Against each other way: how many times as fast ours is, from the least to the most of the works."""
    lines = []
    for (objective, name), of in ratios(record, "speed").items():
        after = "; here our side is our pieces under its loss, and both take the KL at every attended position"
        after = after if objective == "attended" else ""
        lines.append(f"- {CONTENDERS[name].label}: {in_precisions(of)}, with {shares(of)} of its memory{after}")
    return "\n".join(lines) or NOT_MEASURED


def gpu(record: dict) -> str:
    """Whether a GPU was measured."""
    cards = sorted({machine["device"] for machine in record["machines"].values() if "cores" not in machine})
    return f"Measured on a GPU: {', '.join(cards)}." if cards else "No GPU was measured."


def readme(record: dict) -> str:
    """README's lines, five at most."""
    steps, lines = ratios(record, "speed"), []
    names = {
        "masked_after": "a loop that computes all logits and then picks out the masked ones",
        "huggingface": "the step of Hugging Face's distiller with `--restrict_ce_to_mask`, which we wrote anew",
        "textbrewer_outside": "TextBrewer's",
    }
    for name, said in names.items():
        if of := steps.get(("masked", name)):
            sizes = max(len(found) for found in of.values())
            where = "one size" if sizes == 1 else f"{sizes} sizes"
            lines.append(
                f"- A distillation step, beside {said}, at {where} of model and batch: {in_precisions(of)}, with "
                f"{shares(of)} of the memory."
            )
    faster, memory = {}, {}
    for (work, _), rows in comparisons(in_part(record, "classifiers")).items():
        for ours in (row for row in rows if row["contender"] == "ours"):
            theirs = [row for row in rows if ours_beside(row, rows) is ours]
            times, beside = min((times_as_fast(ours, row)[0], row["peak_memory_mb"]) for row in theirs)
            faster.setdefault(work, []).append(f"{times:.1f} times in {ours['precision']}")
            memory.setdefault(work, []).append(ours["peak_memory_mb"] / beside)
    if faster:
        said = "; ".join(
            f"{work}: {', '.join(times)}, with {span(memory[work], '.2f')} of its memory"
            for work, times in faster.items()
        )
        lines.append(
            "- Texts a second, beside Hugging Face's `Trainer` in its fastest measured way (when it predicts, it "
            f"takes texts as they come; we sort them by length): {said}."
        )
    return "\n".join([*lines, f"- Each ratio is within one loss and one type of number. {gpu(record)}"])


PLACES = (in_short, summary, gpu, loss, turns, speed, changes, classifiers, quality, growth, reading)


def page(record: dict) -> str:
    """docs/benchmark.md, of the template. ValueError: the template has not exactly one place for each text."""
    template, texts = TEMPLATE.read_text(encoding="utf-8"), {each.__name__: each(record) for each in PLACES}
    if sorted(re.findall(r"\{\{(\w+)\}\}", template)) != sorted(texts):
        raise ValueError(f"{TEMPLATE.name} needs one place for each of {', '.join(sorted(texts))}, and no other.")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], template)


def readme_with(text: str, record: dict) -> str:
    """The README with its lines. ValueError: it has no place for them."""
    return results.filled(text, README.name, {"bench": f"\n{readme(record)}\n\n"})


def draw(rows: list[dict]) -> plt.Figure:
    """Seconds a step and peak memory along each axis."""
    figure, panels = plt.subplots(2, len(AXES), figsize=(14, 6), sharex="col", sharey="row", layout="constrained")
    for (axis, said), column in zip(AXES.items(), panels.T, strict=True):
        own = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["value"])
        values = [row["value"] for row in own]
        column[0].plot(values, [row["seconds_per_step"] for row in own], "o-")
        column[1].plot(values, [row["peak_memory_mb"] / 1000 for row in own], "o-")
        for panel in column:
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3, which="both")
            panel.set_xticks(values, [f"{value:,}" for value in values])
            panel.set_xticks([], minor=True)
        column[1].set_xlabel(said)
    panels[0, 0].set_ylabel("seconds a step")
    panels[1, 0].set_ylabel("peak memory above\nthe models, GB")
    figure.suptitle(
        f"How the cost of our step grows, in {rows[0]['precision']}: MiniLM 6 to 3 layers, 32 rows of 64 tokens, "
        "vocabulary 30,522, 15% masked; each column varies one of these"
    )
    return figure


def main() -> None:
    record = json.loads((BENCH if BENCH.exists() else RECORD).read_text(encoding="utf-8"))
    made, lines = page(record), readme_with(README.read_text(encoding="utf-8"), record)
    figure = draw(record["growth"]) if record.get("growth") else None
    write_json(RECORD, {key: value for key, value in record.items() if key != "begun"})
    PAGE.write_text(made, encoding="utf-8")
    README.write_text(lines, encoding="utf-8")
    if figure is not None:
        figure.savefig(PICTURE, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
