"""Measure what distilling costs: `make bench`, or `make bench PARTS="speed reading"` for some of it.

What to measure is in full.yaml. Every piece of a part is written to artifacts/bench/metrics.json as soon as it is done.
A part that was stopped goes on there when it is run again with the same plan, code and machine. Other parts stay as
they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import torch
import yaml

import classifiers
import contenders
from helpers.catalyst_today.provenance import git
from helpers.catalyst_today.saving import write_json
from helpers.runs.experiment import ensure_teacher
from helpers.runs.records import ROOT

HERE = Path(__file__).resolve().parent
BENCH = ROOT / "artifacts" / "bench"
KINDS = {
    "distilling": contenders.CONTENDERS,
    "fine-tuning": classifiers.FINE_TUNING,
    "predicting": classifiers.PREDICTING,
}
"""From what a work does to its contenders."""


def kind(work: dict) -> dict[str, contenders.Contender]:
    return KINDS[work.get("does", "distilling")]


class Worker:
    """A contender's process: see worker.py."""

    logs = BENCH / "logs"

    def __init__(self, name: str, precision: str, work: dict, **job):
        self.name = name
        self.log = self.logs / f"{work['name']} {name} {precision}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        job |= {"contender": name, "precision": precision, "work": work}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )

    def tell(self, steps: int) -> None:
        # Of one that has died, `answer` says so.
        with suppress(BrokenPipeError):
            print(steps, file=self.process.stdin, flush=True)

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            sys.exit(f"{self.name} ended with {code} (-9: killed, perhaps for want of memory). Its log: {self.log}")
        return json.loads(line)

    def block(self, steps: int) -> dict:
        """Have it make so many steps; return what they took, as `blocks.Blocks` tells it."""
        self.tell(steps)
        return self.answer()

    def finish(self) -> dict:
        """Have it end; return what it says of the whole run."""
        self.tell(0)
        result = self.answer()
        self.process.wait()
        return result


def warmed_up(worker: Worker, block_seconds: float, least_steps: int) -> None:
    """Let it make its first two steps; set ``worker.steps`` of a block."""
    _, second = (worker.block(1)["seconds"] for _ in range(2))
    worker.steps = max(least_steps, round(block_seconds / second))


def race(work: dict, names: list[str], precision: str, turns: dict) -> list[dict]:
    """A row for each contender, all of one objective and precision.

    They start together; then one after another warms up; then each makes a block of steps in turn, `rounds` times.
    """
    workers = [Worker(name, precision, work, product_seconds=turns["product_seconds"]) for name in names]
    for worker in workers:
        worker.answer()  # it is built
    for worker in workers:
        warmed_up(worker, turns["block_seconds"], turns["least_steps"])
    blocks = {name: [] for name in names}
    for _ in range(turns["rounds"]):
        for worker in workers:
            blocks[worker.name].append(worker.block(worker.steps))
    rows = []
    for worker in workers:
        result, own = worker.finish(), blocks[worker.name]
        seconds = median(block["seconds"] / block["steps"] for block in own)
        row = {
            "work": work["name"],
            "objective": kind(work)[worker.name].objective,
            "contender": worker.name,
            "precision": precision,
            "tokens_per_second": median(block["tokens"] / block["seconds"] for block in own),
            "texts_per_second": median(block["texts"] / block["seconds"] for block in own),
            "peak_memory_mb": result["peak_memory_mb"],
            "seconds_per_step": seconds,
            "steps_in_a_block": worker.steps,
            "blocks": [
                {key: round(block[key], 4) for key in ("seconds", "tokens", "texts", "waiting")} for block in own
            ],
        }
        if "matrix_seconds" in result:
            row |= {"matrix_share": result["matrix_seconds"] / seconds}
            row |= {"gflop_per_second": result["matrix_flop"] / seconds / 1e9}
        rows.append(row)
        print(
            "  {work:34} {contender:22} {precision:8} {seconds_per_step:7.3f} s/step {tokens_per_second:8.0f} tokens/s"
            " {texts_per_second:7.1f} texts/s {peak_memory_mb:7.0f} MB".format(**row),
            flush=True,
        )
    return rows


Pieces = dict[str, Callable[[], list[dict]]]
"""From the name of a piece of a part to what measures its rows."""


def races(own: dict, teacher: str) -> Pieces:
    """One for each work, objective and precision."""
    pieces = {}
    for work in own["works"]:
        given = {"teacher": teacher, **{key: value for key, value in work.items() if key != "contenders"}}
        objectives = {}
        for name in work["contenders"]:
            objectives.setdefault(kind(work)[name].objective, []).append(name)
        for objective, names in objectives.items():
            for precision in own["precisions"]:
                pieces[f"{work['name']}, {objective}, {precision}"] = partial(race, given, names, precision, own)
    return pieces


def speed(own: dict, teacher: str) -> Pieces:
    """A step of distillation: the contenders, work by work."""
    return races(own, teacher)


def changes(own: dict, teacher: str) -> Pieces:
    """Our step with one thing of it changed."""
    return races(own, teacher)


def classifying(own: dict, teacher: str) -> Pieces:
    """Fine-tuning and predicting."""
    return races(own, teacher)


def quality(own: dict, teacher: str) -> Pieces:
    """What each contender reaches in equal minutes: as many steps as it makes in them, by a block made before."""
    work = {"teacher": teacher, **own["work"]}

    def measure(name: str) -> list[dict]:
        row = {"work": work["name"], "contender": name, "precision": own["precision"], "steps": 0, "seconds": 0.0}
        if name == "extracted":
            worker = Worker(name, own["precision"], work, steps=0)
            worker.answer()
            return [{**row, **worker.answer()}]
        worker = Worker(name, own["precision"], work, product_seconds=0)
        worker.answer()
        warmed_up(worker, block_seconds=5, least_steps=2)
        block = worker.block(worker.steps)
        worker.finish()
        steps = max(1, round(60 * own["minutes"] / (block["seconds"] / block["steps"])))
        worker = Worker(name, own["precision"], work, steps=steps)
        worker.answer()
        seconds = worker.block(steps)["seconds"]
        row |= {"objective": contenders.CONTENDERS[name].objective, "steps": steps, "seconds": seconds}
        row |= worker.finish()
        print(
            "  {contender:18} {steps:5} steps in {seconds:4.0f} s: masked-token accuracy {masked_accuracy:.1%},"
            " KL to the teacher {kl_to_teacher:.3f}".format(**row),
            flush=True,
        )
        return [row]

    return {name: partial(measure, name) for name in ["extracted", *own["contenders"]]}


def growth(own: dict, teacher: str) -> Pieces:
    """How the cost of our step grows along each axis, the others at their base."""

    def measure(name: str, **change) -> list[dict]:
        work = {"teacher": teacher, "name": name, **own["base"], **change}
        ((row),) = race(work, ["ours"], own["precision"], own)
        places = change or own["base"]  # the base lies on every axis
        return [{**row, "axis": axis, "value": value} for axis, value in places.items() if axis in own["axes"]]

    found = {"base": partial(measure, "base")}
    for axis, values in own["axes"].items():
        for value in values:
            if value != own["base"][axis]:
                found[f"{axis} {value}"] = partial(measure, f"{axis} {value}", **{axis: value})
    return found


def reading(own: dict, teacher: str) -> Pieces:
    """Rows a second from CSV to blocks, the first time and from the cache, and the most memory that takes."""

    def run(count: int, folder: str) -> dict:
        command = [sys.executable, str(HERE / "reading.py"), str(count), folder, teacher]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)

    def measure(count: int) -> list[dict]:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            run(count, folder)  # writes the CSV
            for times in ("first", "cached"):
                found = run(count, folder)
                rows.append({"times": times, **found, "rows_per_second": found["rows"] / found["seconds"]})
        for row in rows:
            line = "  {rows:9,} rows, {times}: {rows_per_second:7.0f} rows/s, {peak_anonymous_mb:.0f} MB"
            print(line.format(**row), flush=True)
        return rows

    return {f"{count} rows": partial(measure, count) for count in own["rows"]}


PARTS = {
    "speed": speed,
    "changes": changes,
    "classifiers": classifying,
    "quality": quality,
    "growth": growth,
    "reading": reading,
}
IN_ROWS = ("speed", "changes", "classifiers")
"""Whose rows stand together under ``rows``, each with its ``part``; other parts stand under their own names."""


def machine() -> dict:
    """What the figures were measured on."""
    software = {"torch": torch.__version__}
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), **software}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    name = found.get("model name", platform.machine())
    return {"device": name, "cores": os.cpu_count(), "bfloat16": flags, **software}


def code() -> str:
    """The commit, and a hash of what the code that is measured differs in from it."""
    changed = git("diff", "HEAD", "--", "helpers", "tests/bench/*.py")
    digest = hashlib.sha256(changed.encode()).hexdigest()[:10]
    return git("rev-parse", "HEAD").strip() + (f", changed: {digest}" if changed else "")


def measured(name: str, plan: dict, teacher: str, record: dict, save: Callable[[], None]) -> None:
    """Measure a part and put it into the record, piece by piece; go on with one that was begun."""
    own = plan[name]
    made_from = {"plan": own, "machine": machine(), "code": code()}
    begun = record.setdefault("begun", {}).get(name, {})
    if begun.get("made_from") != made_from:
        begun = record["begun"][name] = {"made_from": made_from, "rows": {}}
    for piece, measure in PARTS[name](own, teacher).items():
        if piece not in begun["rows"]:
            begun["rows"][piece] = measure()
            save()
    rows = [row for of_piece in begun["rows"].values() for row in of_piece]
    if name in IN_ROWS:
        others = [row for row in record.get("rows", []) if row["part"] != name]
        record["rows"] = others + [{"part": name, **row} for row in rows]
    else:
        record[name] = rows
    for key, table in (("plan", "plans"), ("machine", "machines"), ("code", "codes")):
        record.setdefault(table, {})[name] = made_from[key]
    recipe = {"temperature": contenders.TEMPERATURE, "weights": contenders.WEIGHTS}
    record["loss"] = recipe | {"learning_rate": contenders.LEARNING_RATE}
    del record["begun"][name]
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--plan", type=Path, default=HERE / "full.yaml")
    parser.add_argument("--record", type=Path, default=BENCH / "metrics.json")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        parser.error("peak memory is read from Linux's /proc: run this on Linux.")
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"no part called {', '.join(unknown)}: there are {', '.join(PARTS)}.")
    plan = yaml.safe_load(arguments.plan.read_text(encoding="utf-8"))
    record = json.loads(arguments.record.read_text(encoding="utf-8")) if arguments.record.exists() else {}
    folder = str(ensure_teacher(plan["teacher"]).folder) if "TEACHER" in plan["teacher"] else plan["teacher"]["folder"]
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    Worker.logs = arguments.record.parent / "logs"
    for name, part in PARTS.items():
        if not arguments.parts or name in arguments.parts:
            print(f"{name}: {part.__doc__}", flush=True)
            measured(name, plan, folder, record, lambda: write_json(arguments.record, record))


if __name__ == "__main__":
    main()
