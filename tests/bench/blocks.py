"""Batches given out in timed blocks, and what a step multiplies. Knows nothing of contenders."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TextIO

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Count the matrix products of what runs under it.

    Attributes:
        counts: from (batch, m, k, n, dtype) to how often a (m, k) by (k, n) product of that dtype was made.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[1:3] if "add" in name else args[:2]
            batch = left.shape[0] if left.dim() == 3 else 1
            self._count(1, batch, *left.shape[-2:], right.shape[-1], left.dtype)
        elif "scaled_dot_product" in name:
            backward = "backward" in name
            query, key = args[1:3] if backward else args[:2]
            heads, (rows, width), columns = query.shape[:2].numel(), query.shape[-2:], key.shape[-2]
            # Backward makes two products for each of the two of forward; what it makes anew is not counted.
            times = 2 if backward else 1
            self._count(times, heads, rows, width, columns, query.dtype)
            self._count(times, heads, rows, columns, width, query.dtype)
        return func(*args, **(kwargs or {}))

    def _count(self, times: int, *shape) -> None:
        self.counts[shape] += times

    def flop(self) -> int:
        """Floating-point operations of all products, a multiplication and an addition being two."""
        return sum(count * 2 * batch * m * k * n for (batch, m, k, n, _), count in self.counts.items())


def answers_alone() -> TextIO:
    """Standard output for the answers; what is printed from now on, by libraries too, goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_seconds(batch: int, m: int, k: int, n: int, dtype: torch.dtype, budget: float) -> float:
    """Median seconds of one product by itself, in the better of the two layouts of its right side.

    Each layout is timed for `budget` seconds, and five times at least.
    """
    on_gpu = torch.cuda.is_available()
    # Of a single product on a GPU, the waiting for it would be the greater part.
    at_once, options = (20, {"device": "cuda"}) if on_gpu else (1, {})
    left = torch.randn(batch, m, k, dtype=dtype, **options)
    layouts = [torch.randn(batch, k, n, dtype=dtype, **options), torch.randn(batch, n, k, dtype=dtype, **options).mT]
    if batch == 1:
        left, layouts = left[0], [right[0] for right in layouts]
    medians = []
    for right in layouts:
        seconds, start = [], time.perf_counter()
        while len(seconds) < 5 or time.perf_counter() - start < budget:
            synchronize()
            before = time.perf_counter()
            for _ in range(at_once):
                left @ right
            synchronize()
            seconds.append((time.perf_counter() - before) / at_once)
        medians.append(median(seconds))
    return min(medians)


def memory_kb(*keys: str) -> list[int]:
    """Of this process, from Linux's /proc: VmHWM is its peak, RssAnon and RssFile what it holds now."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [int(lines[key].split()[0]) for key in keys]


class PeakMemory:
    """The most memory held since it was made, above what was held then: the GPU's, or on Linux the process's."""

    def __init__(self):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self.start = memory_kb("VmRSS", "RssFile")

    def megabytes(self) -> float:
        if torch.cuda.is_available():
            return (torch.cuda.max_memory_allocated() - self.start) / 1e6
        # Pages of libraries and mapped corpus files that were first touched meanwhile are no cost of the step.
        peak, mapped = memory_kb("VmHWM", "RssFile")
        return (peak - self.start[0] - (mapped - self.start[1])) * 1024 / 1e6


class Blocks:
    """Iterate over a loader again and again, as long as blocks are asked for, and tell what each block took.

    Args:
        ask: returns the number of batches of the next block, or 0 for no more.
        tell: takes a block's ``{"steps", "seconds", "tokens", "texts", "waiting"}``; tokens are those that are not
            padding, texts the rows of the batches, waiting the seconds in which the loader was waited for.
        products: counts those of the first step.
    """

    def __init__(self, loader, ask: Callable[[], int], tell: Callable[[dict], None], products: Products):
        self.loader, self.ask, self.tell, self.products = loader, ask, tell, products

    def __len__(self) -> int:
        return len(self.loader)

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self.loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches, given = self._batches(), 0
        self.memory = PeakMemory()
        while steps := self.ask():
            tokens, texts, waiting = 0, 0, 0.0
            synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                before = time.perf_counter()
                batch = next(batches)
                waiting += time.perf_counter() - before
                tokens += batch["attention_mask"].sum()
                texts += len(batch["attention_mask"])
                given += 1
                if given == 1:
                    with self.products:
                        yield batch
                else:
                    yield batch
            synchronize()
            seconds = time.perf_counter() - start
            told = {"steps": steps, "seconds": seconds, "tokens": int(tokens), "texts": texts, "waiting": waiting}
            self.tell(told)
            torch.cuda.empty_cache()  # the others, whose turn it is now, are on the same card
        self.peak_mb = self.memory.megabytes()
