"""Measure what distilling costs: `make bench`, or `make bench PARTS="speed reading"` for some of it.

What to measure is in full.yaml. Each part is written to artifacts/bench/metrics.json as soon as it is done; parts that
are not run stay there as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import median

import torch
import yaml

from helpers.catalyst_today.engine import PRECISION_NAMES, default_precision
from helpers.catalyst_today.saving import write_json
from helpers.runs.experiment import ensure_teacher
from helpers.runs.records import ROOT

HERE = Path(__file__).resolve().parent
BENCH = ROOT / "artifacts" / "bench"


class Contender:
    """A worker process: see worker.py."""

    logs = BENCH / "logs"

    def __init__(self, name: str, work: dict, **job):
        self.name = name
        self.log = self.logs / f"{work['name']} {name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), json.dumps({"contender": name, "work": work, **job})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
            )
        self.answer()  # once it is built

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


def race(work: dict, names: list[str], rounds: int, block_seconds: float, product_seconds: float) -> list[dict]:
    """A row for each contender: all are started and warmed up, then each makes a block of steps in turn."""
    contenders = []
    for name in names:
        contender = Contender(name, work, product_seconds=product_seconds)
        contender.block(1)
        step = contender.block(1)["seconds"]
        contender.steps = max(1, round(block_seconds / step))
        contenders.append(contender)
    blocks = {name: [] for name in names}
    for _ in range(rounds):
        for contender in contenders:
            blocks[contender.name].append(contender.block(contender.steps))
    rows = []
    for contender in contenders:
        result, own = contender.finish(), blocks[contender.name]
        seconds = median(block["seconds"] / block["steps"] for block in own)
        rows.append(
            {
                "work": work["name"],
                "contender": contender.name,
                "tokens_per_second": median(block["tokens"] / block["seconds"] for block in own),
                "peak_memory_mb": result["peak_memory_mb"],
                "seconds_per_step": seconds,
                "matrix_share": result["matrix_seconds"] / seconds,
                "gflop_per_second": result["matrix_flop"] / seconds / 1e9,
                "waiting_share": sum(block["waiting"] for block in own) / sum(block["seconds"] for block in own),
                "seconds_of_blocks": [round(block["seconds"] / block["steps"], 4) for block in own],
            }
        )
        print(
            "  {work:36} {contender:18} {tokens_per_second:8.0f} tokens/s {peak_memory_mb:7.0f} MB"
            " {matrix_share:5.0%} of the matrix rate {waiting_share:5.1%} waiting".format(**rows[-1]),
            flush=True,
        )
    return rows


LIMITS = ("rounds", "block_seconds", "product_seconds")


def speed(own: dict, record: dict, teacher: str) -> list[dict]:
    """The two tables: every contender on every work."""
    rows = []
    for work in own["works"]:
        names = work.get("contenders", own["contenders"])
        rows += race({"teacher": teacher, **work}, names, *(own[key] for key in LIMITS))
    return rows


def growth(own: dict, record: dict, teacher: str) -> list[dict]:
    """How the cost grows along each axis, the others at their base."""
    rows = []

    def measure(name: str, **change) -> list[dict]:
        work = {"teacher": teacher, "name": name, **own["base"], **change}
        return race(work, own["contenders"], *(own[key] for key in LIMITS))

    base = measure("base")
    for axis, values in own["axes"].items():
        for value in values:
            new = base if own["base"][axis] == value else measure(f"{axis} {value}", **{axis: value})
            rows += [{**row, "axis": axis, "value": value} for row in new]
    return rows


def quality(own: dict, record: dict, teacher: str) -> list[dict]:
    """What each contender reaches in equal minutes: as many steps as it makes in them, by the speed measured before."""
    work = {"teacher": teacher, **own["work"]}
    if "rows" not in record:
        sys.exit("The part quality counts steps by the part speed: run that first.")
    speeds = {row["contender"]: row for row in record["rows"] if row["work"] == work["name"]}
    rows = []
    for name in own["contenders"]:
        steps = max(1, round(60 * own["minutes"] / speeds[name]["seconds_per_step"]))
        contender = Contender(name, work, steps=steps)
        seconds = contender.block(steps)["seconds"]
        result = contender.finish()
        rows.append({"work": work["name"], "contender": name, "steps": steps, "seconds": seconds, **result})
        print(
            f"  {name:18} {steps:5} steps in {seconds:4.0f} s: masked-token accuracy {result['masked_accuracy']:.1%},"
            f" KL to the teacher {result['kl_to_teacher']:.3f}",
            flush=True,
        )
    return rows


def answer_of(script: str, *arguments: str):
    """What a script beside this one prints, from JSON."""
    command = [sys.executable, str(HERE / script), *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)


def reading(own: dict, record: dict, teacher: str) -> list[dict]:
    """Rows a second from CSV to blocks, the first time and from the cache, and the most memory that takes."""
    rows = []
    for count in own["rows"]:
        with tempfile.TemporaryDirectory() as folder:
            steps = ("writes the CSV", "reads it", "finds it read")
            runs = [answer_of("reading.py", str(count), folder, teacher) for _ in steps]
        for times, run in zip(("first", "cached"), runs[1:], strict=True):
            rows.append({"times": times, **run, "rows_per_second": run["rows"] / run["seconds"]})
            print(
                "  {rows:9,} rows, {times}: {rows_per_second:7.0f} rows/s, {peak_anonymous_mb:.0f} MB".format(
                    **rows[-1]
                )
            )
    return rows


def inference(own: dict, record: dict, teacher: str) -> list[dict]:
    """Milliseconds a text of teacher and student."""
    rows = []
    for work in own["works"]:
        job = {"work": {"teacher": teacher, **work}, "shapes": list(product(own["batches"], own["lengths"]))}
        rows += answer_of("inference.py", json.dumps(job))
    for row in rows:
        print(
            "  {work:24} {batch:3} x {length:3}: teacher {teacher_ms:7.2f} ms, student {student_ms:7.2f} ms".format(
                **row
            )
        )
    return rows


PARTS = {part.__name__: part for part in (speed, quality, growth, reading, inference)}
KEYS = {"speed": "rows"}
"""Under which key of the record a part stands, if not under its own name."""


def machine() -> dict:
    """What the figures were measured on."""
    software = {"torch": torch.__version__, "precision": PRECISION_NAMES[default_precision()[0]]}
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), **software}
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"device": model, "cores": os.cpu_count(), **software}


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
    Contender.logs = arguments.record.parent / "logs"
    for name, part in PARTS.items():
        if not arguments.parts or name in arguments.parts:
            print(f"{name}: {part.__doc__}", flush=True)
            key = KEYS.get(name, name)
            record[key] = part(plan[name], record, folder)
            record["machines"] = {**record.get("machines", {}), key: machine()}
            write_json(arguments.record, record)


if __name__ == "__main__":
    main()
