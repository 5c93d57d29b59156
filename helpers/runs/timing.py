"""How long a classifier takes for a text: each engine and model in a process of its own, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from helpers.runs.answer import Classifier, Texts

WAYS = {"1": 60, "32": 10}
"""Texts in a batch, and how many batches are timed."""
WARM_UP = 5
"""Batches before those."""
WITHOUT = ("torch", "transformers")
"""What cannot be imported in a process that times an ONNX file."""


class Answering(NamedTuple):
    """Who answers: a folder, and the ONNX file in it; None for PyTorch with the folder's weights."""

    folder: Path
    file: str | None = None


def in_turn(contenders: dict[str, Answering], texts: list[str], rounds: int = 3) -> dict[str, dict[str, Any]]:
    """Time each contender in a new process, all of them once a round, so that a slow minute meets all of them.

    Two engines in one process would disturb each other: onnxruntime's threads wait busily after a call.

    Args:
        contenders: by name.
        texts: read in this order; the forward pass alone is timed.
        rounds: how many; of each number the median is taken.

    Returns:
        For each name: ``milliseconds`` (a text's share of a batch: from ``"1"`` and ``"32"``, the texts in it),
        ``start_seconds`` (from the start of the process to its first answer), ``memory_mb`` (the most that it held
        until then), ``modules`` (what it had imported that is not part of Python).
    """
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (folder, file) in contenders.items():
            asked = {"folder": str(folder), "file": file, "texts": texts, "began": time.time()}
            command = [sys.executable, "-m", __name__]
            done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}: the process that times it failed:\n{done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout))
    return {name: _medians(own) for name, own in found.items()}


def _medians(rounds: list[dict]) -> dict[str, Any]:
    milliseconds = {way: median(each["milliseconds"][way] for each in rounds) for way in rounds[0]["milliseconds"]}
    numbers = {key: median(each[key] for each in rounds) for key in ("start_seconds", "memory_mb")}
    return {"milliseconds": milliseconds, **numbers, "modules": rounds[0]["modules"]}


def load(folder: Path, file: str | None) -> tuple[Callable, Texts]:
    """A forward pass, from what `Texts.encode` gives to logits, and the texts' encoding; see `Answering`."""
    if file is not None:
        classifier = Classifier(folder, file)
        return classifier.run, classifier.texts
    import torch
    from transformers import AutoModelForSequenceClassification

    from helpers.models import quiet_transformers

    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def run(inputs):
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(each) for name, each in inputs.items()}).logits

    return run, Texts(folder)


def measure(run: Callable, texts: Texts, lines: list[str]) -> dict[str, float]:
    """Median milliseconds of a text's share of a batch, for each of `WAYS`."""
    found = {}
    for way, batches in WAYS.items():
        size, taken = int(way), []
        starts = [start % len(lines) for start in range(0, size * (WARM_UP + batches), size)]
        for start in starts:
            inputs = texts.encode(lines[start : start + size])
            began = time.perf_counter()
            run(inputs)
            taken.append(1000 * (time.perf_counter() - began) / len(inputs["input_ids"]))
        found[way] = median(taken[WARM_UP:])
    return found


def peak_memory() -> float:
    """The most megabytes that this process has held at a time."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000
    except OSError:  # not Linux, where getrusage would count the parent's memory too
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def modules() -> list[str]:
    """The top-level packages that are imported here and are no part of Python."""
    names = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    return sorted(name for name in names - sys.stdlib_module_names if not name.startswith("_"))


def main() -> None:
    asked = json.loads(sys.stdin.read())
    folder, file = Path(asked["folder"]), asked["file"]
    if file is not None:
        for name in WITHOUT:
            sys.modules[name] = None  # an import raises ImportError
    run, texts = load(folder, file)
    run(texts.encode(asked["texts"][:1]))
    start = {"start_seconds": time.time() - asked["began"], "memory_mb": peak_memory(), "modules": modules()}
    print(json.dumps({"milliseconds": measure(run, texts, asked["texts"]), **start}))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
