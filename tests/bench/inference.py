"""Milliseconds a text of teacher and student, in turn: ``python tests/bench/inference.py '{"work": {...}, ...}'``.

One masked position a text, float32, no gradients: what `pipeline("fill-mask")` asks of a model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from statistics import median

import torch

from blocks import synchronize
from contenders import DEVICE
from helpers.batches import IGNORED
from helpers.models import MaskedPositionLM
from worker import built


def main(job: dict) -> list[dict]:
    teacher, student, tokenizer = built(job["work"])
    models = {"teacher_ms": teacher, "student_ms": student}
    models = {name: MaskedPositionLM(model).to(DEVICE).eval() for name, model in models.items()}
    rows = []
    for batch, length in job["shapes"]:
        ids = torch.randint(len(tokenizer), (batch, length), device=DEVICE)
        labels = torch.full_like(ids, IGNORED)
        labels[:, length // 2] = 1
        seconds = {name: [] for name in models}
        for _ in range(25):
            for name, model in models.items():
                synchronize()
                start = time.perf_counter()
                with torch.inference_mode():
                    model(ids, torch.ones_like(ids), labels)
                synchronize()
                seconds[name].append(time.perf_counter() - start)
        times = {name: 1000 * median(values[5:]) / batch for name, values in seconds.items()}
        rows.append({"work": job["work"]["name"], "batch": batch, "length": length, **times})
    return rows


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(main(json.loads(sys.argv[1]))), file=answers)
