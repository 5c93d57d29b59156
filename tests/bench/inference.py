"""Milliseconds a text of teacher and student, in turn: ``python tests/bench/inference.py '{"work": {...}, ...}'``.

Float32, no gradients, logits at every position: what `pipeline("fill-mask")` asks of a model.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch

from blocks import answers_alone, synchronize
from contenders import DEVICE
from worker import built


def main(job: dict) -> list[dict]:
    teacher, student, tokenizer = built(job["work"])
    models = {"teacher_ms": teacher, "student_ms": student}
    models = {name: model.to(DEVICE).eval() for name, model in models.items()}
    rows = []
    for batch, length in job["shapes"]:
        ids = torch.randint(len(tokenizer), (batch, length), device=DEVICE)
        seconds = {name: [] for name in models}
        for _ in range(25):
            for name, model in models.items():
                synchronize()
                start = time.perf_counter()
                with torch.inference_mode():
                    model(input_ids=ids, attention_mask=torch.ones_like(ids))
                synchronize()
                seconds[name].append(time.perf_counter() - start)
        times = {name: 1000 * median(values[5:]) / batch for name, values in seconds.items()}
        rows.append({"work": job["work"]["name"], "batch": batch, "length": length, **times})
    return rows


if __name__ == "__main__":
    answers = answers_alone()
    print(json.dumps(main(json.loads(sys.argv[1]))), file=answers)
