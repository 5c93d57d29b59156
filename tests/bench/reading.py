"""A CSV of many rows to blocks: ``python tests/bench/reading.py ROWS FOLDER TEACHER`` prints one line of JSON.

FOLDER keeps the CSV and the cache between two calls: the first reads, the second finds what it made.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import threading
import time
from pathlib import Path

folder = Path(sys.argv[2]).resolve()
os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")  # before datasets is imported

import numpy as np  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from blocks import answers_alone, memory_kb  # noqa: E402
from helpers.data import bundled_reviews, masked_lm_loaders, read_texts  # noqa: E402


def write_csv(file: Path, rows: int) -> None:
    """So many different rows of real text: two of the bundled snippets each, in an order drawn from a seed."""
    snippets = bundled_reviews("rotten_tomatoes")["text"][:]
    pairs = np.random.default_rng(0).choice(len(snippets) ** 2, rows, replace=False)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "text"])
        for number, (first, second) in enumerate(zip(*divmod(pairs, len(snippets)), strict=True)):
            writer.writerow([number, f"{snippets[first]} {snippets[second]}"])


class Watch(threading.Thread):
    """The most anonymous memory held, in MB, looked at fifty times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, memory_kb("RssAnon")[0] * 1024 / 1e6)
            time.sleep(0.02)


def main(rows: int, teacher: str) -> dict:
    file = folder / f"{rows}.csv"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(file, rows)
        return {"written": rows}
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    watch = Watch()
    watch.start()
    start = time.perf_counter()
    loaders = masked_lm_loaders(read_texts(file), tokenizer, max_length=64, batch_size=64)
    built = time.perf_counter() - start
    for _, _batch in zip(range(200), loaders["train"], strict=False):
        pass
    return {
        "rows": rows,
        "blocks": len(loaders["train"].dataset),
        "seconds": built,
        "peak_anonymous_mb": watch.peak_mb,
    }


if __name__ == "__main__":
    answers = answers_alone()
    print(json.dumps(main(int(sys.argv[1]), sys.argv[3])), file=answers)
