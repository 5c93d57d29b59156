"""Measure how fast distilling, reading and inference are: `make bench`, or some parts of it by name.

Writes what it measures to artifacts/bench/metrics.json, each part as soon as it is done; parts that are not run are
kept as they are there.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from helpers.experiment import ensure_teacher
from helpers.records import ROOT, write_json

HERE = Path(__file__).resolve().parent
RECORD = ROOT / "artifacts" / "bench" / "metrics.json"
CONTENDERS = ["article", "article_bf16", "textbrewer", "masked_after", "masked_after_bf16", "ours_fp32", "ours"]
BLOCK_SECONDS = 4.0


class Contender:
    """A worker process, and the answers that it gave."""

    def __init__(self, name: str, work: dict, **job):
        self.name = name
        log = ROOT / "artifacts" / "bench" / "logs" / f"{work['name']}-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), json.dumps({"contender": name, "work": work, **job})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
        )
        self.blocks = []

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            sys.exit(f"{self.name} ended with {self.process.returncode}; see {self.log.relative_to(ROOT)}.")
        return json.loads(line)

    def block(self, steps: int) -> dict:
        print(steps, file=self.process.stdin, flush=True)
        return self.answer()

    def finish(self) -> dict:
        print(0, file=self.process.stdin, flush=True)
        result = self.answer()
        self.process.wait()
        return result


def race(work: dict, names: list[str], rounds: int) -> list[dict]:
    """The contenders' rows: started all, warmed up, then a block of each in turn, `rounds` times."""
    contenders = [Contender(name, work) for name in names]
    for contender in contenders:
        contender.answer()  # it is built
        contender.block(2)
        step = contender.block(1)["seconds"]
        contender.steps = max(1, round(BLOCK_SECONDS / step))
    for _ in range(rounds):
        for contender in contenders:
            contender.blocks.append(contender.block(contender.steps))
    rows = []
    for contender in contenders:
        result, blocks = contender.finish(), contender.blocks
        seconds = median(block["seconds"] / block["steps"] for block in blocks)
        row = {
            "work": work["name"],
            "contender": contender.name,
            "tokens_per_second": median(block["tokens"] / block["seconds"] for block in blocks),
            "peak_memory_mb": result["peak_memory_mb"],
            "seconds_per_step": seconds,
            "matrix_share": result["matrix_seconds"] / seconds,
            "gflop_per_second": result["matrix_flop"] / seconds / 1e9,
            "waiting_share": sum(block["waiting"] for block in blocks) / sum(block["seconds"] for block in blocks),
            "blocks": [[block["steps"], block["seconds"], block["tokens"]] for block in blocks],
        }
        rows.append(row)
        print(
            f"  {work['name']:28} {contender.name:18} {row['tokens_per_second']:8.0f} tokens/s"
            f" {row['peak_memory_mb']:8.0f} MB {row['matrix_share']:6.0%} of the matrix rate"
            f" {row['waiting_share']:6.1%} waiting",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    name, batch, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    teacher = sys.argv[4]
    work = {"name": name, "teacher": teacher, "layers": 3, "batch": batch, "length": length}
    if sys.argv[5:] and sys.argv[5]: work["vocabulary"] = int(sys.argv[5])
    race(work, sys.argv[6].split(",") if len(sys.argv)>6 else CONTENDERS, 3)
