"""One short distillation, which notebook 05 starts in one process or in several:

    torchrun --standalone --nproc-per-node=2 notebooks/tools/one_run.py how.json

how.json holds the notebook's parameters and, beside them, `precision`, `past_the_wrapper`, `cpu`
and `folder`, where the results go. Runs differ by these alone: each reads the same training rows in
the same order, their masks are drawn once, before the run, and there is no dropout. So nothing is
left that a process could draw for itself.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
import torch
from catalyst import dl
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from helpers import training
from helpers.catalyst_today.engine import Engine, is_main_process
from helpers.catalyst_today.history import SilentLogger
from helpers.data import IGNORED
from helpers.runner import DistilMLMRunner, distillation_models
from helpers.runs import experiment
from helpers.runs.timing import peak_memory


class PastTheWrapperRunner(DistilMLMRunner):
    """Calls the student inside its wrapper, as the article's runner did."""

    def handle_batch(self, batch):
        wrapper = self.model["student"]
        self.model["student"] = wrapper.module
        super().handle_batch(batch)
        self.model["student"] = wrapper


class WatchCallback(dl.Callback):
    """Write down what the run does, between the backward pass and the clipping of the gradient.

    Attributes:
        losses: of each training step, the mean over the processes.
        times: when each training step was here, in seconds.
        counts: of the first step, how many tokens each process has to predict.
        gradient: of the first step, by the names of the student's weights.
        sums: of each process, the sum of all its student's weights after the last step.
    """

    def __init__(self):
        super().__init__(order=dl.CallbackOrder.Backward)
        self.losses, self.times = [], []
        self.counts, self.gradient, self.sums = None, None, None

    def on_batch_end(self, runner):
        if not runner.is_train_loader:
            return
        loss = runner.batch_metrics["loss"].detach()
        self.losses.append(runner.engine.reduce(loss, reduction="mean").item())
        self.times.append(time.perf_counter())
        if self.gradient is None:
            own = (runner.batch["labels"] != IGNORED).sum()
            self.counts = runner.engine.gather(own[None]).tolist()
            student = runner.engine.unwrap_model(runner.model["student"])
            self.gradient = {
                name: weight.grad.clone(memory_format=torch.contiguous_format)
                for name, weight in student.named_parameters()
            }

    def on_loader_end(self, runner):
        if runner.is_train_loader:
            weights = list(runner.model["student"].parameters())
            own = torch.stack([weight.detach().double().sum() for weight in weights]).sum()
            self.sums = runner.engine.gather(own[None]).tolist()


def masked_once(loader: DataLoader, seed: int) -> DataLoader:
    """The same loader, with masks that are drawn here and never again."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in loader.dataset:
        ids, labels = loader.collate_fn.mask(torch.tensor([row["input_ids"]]), generator)
        rows.append({"input_ids": ids[0].tolist(), "labels": labels[0].tolist()})
    return DataLoader(rows, loader.batch_size, sampler=loader.sampler, collate_fn=loader.collate_fn)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return model


def peak_memory_mb(device: torch.device) -> float:
    """Of this process, on that device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_memory()


def main() -> None:
    how = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = Engine(how["precision"], cpu=how["cpu"])
    teacher = experiment.ensure_teacher(how)
    student = without_dropout(experiment.make_student(how, teacher))
    loaders = experiment.corpus_loaders(how, teacher.tokenizer, how["MAX_STEPS"])
    loaders["train"] = masked_once(loaders["train"], how["SEED"])
    watch = WatchCallback()
    history = training.fit(
        PastTheWrapperRunner() if how["past_the_wrapper"] else DistilMLMRunner(),
        distillation_models(teacher.model, student, how["LOSS_WEIGHTS"], how["SEED"]),
        training.masked_lm_measures(how["LOSS_WEIGHTS"], how["TEMPERATURE"]),
        loaders,
        epochs=experiment.split_steps(how["MAX_STEPS"])[0],
        learning_rate=how["LEARNING_RATE"],
        seed=how["SEED"],
        engine=engine,
        name="distillation",
        callbacks=[watch],
        loggers={"console": SilentLogger()},
    )
    if is_main_process():
        pairs = zip(watch.times[:-1], watch.times[1:], strict=True)
        result = {
            "losses": watch.losses,
            "validations": history.validations,
            "counts": watch.counts,
            "sums": watch.sums,
            "threads": torch.get_num_threads(),
            "device": engine.device.type,
            "seconds": statistics.median(after - before for before, after in pairs),
            "peak_memory_mb": peak_memory_mb(engine.device),
        }
        folder = Path(how["folder"])
        folder.mkdir()
        save_file(watch.gradient, folder / "gradient.safetensors")
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
