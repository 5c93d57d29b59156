"""Fine-tuning a classifier and predicting with it: our ways, and the Hugging Face Trainer's, on the same texts.

The Trainer runs as it comes, which takes the texts in a random order, and with its sampling by length. Logging and
saving are off for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

import datasets
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from blocks import Blocks, PeakMemory, synchronize
from contenders import DEVICE, OURS, BlocksCallback, Contender
from helpers.catalyst_today.engine import Engine
from helpers.classification import predict, train_classifier
from helpers.data import label_loaders, lengths
from helpers.training import warmup_steps

OBJECTIVES = {
    "labels": "cross-entropy with the labels",
    "logits": "the logits of each text, in the order of the texts",
}
LEARNING_RATE = 1e-4
STEPS = 100_000
"""Of the schedule; nobody comes to its end."""


def engine(precision: str) -> Engine:
    return Engine({"float32": "no", "bfloat16": "bf16"}[precision])


def ours(precision: str, classifier: PreTrainedModel, rows: datasets.Dataset, tokenizer, batch: int, blocks: Callable):
    """What notebook 06 runs, with all its callbacks."""
    loaders = label_loaders(
        rows, rows.select(range(min(8, len(rows)))), tokenizer, batch_size=batch, steps_per_epoch=STEPS, seed=0
    )
    options = {"epochs": 1, "learning_rate": LEARNING_RATE, "seed": 0, "engine": engine(precision)}
    train_classifier(classifier, loaders, callbacks=[BlocksCallback(blocks)], **options)


class BlocksTrainer(Trainer):
    """A Trainer that takes its training batches in blocks and ends when there are no more."""

    blocks: Callable

    def get_train_dataloader(self):
        return Ending(self.blocks(super().get_train_dataloader()), self)


class Ending:
    """Batches whose end is the end of the training."""

    def __init__(self, batches: Blocks, trainer: Trainer):
        self.batches, self.trainer = batches, trainer

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        yield from self.batches
        self.trainer.control.should_training_stop = True


def trainer_of(
    precision: str, classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int, folder: str, **options
) -> BlocksTrainer:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        max_steps=STEPS,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        warmup_steps=warmup_steps(STEPS),
        bf16=precision == "bfloat16",
        use_cpu=DEVICE.type == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return BlocksTrainer(
        classifier, arguments, DataCollatorWithPadding(tokenizer), processing_class=tokenizer, **options
    )


def trainers(
    sampling: str, precision: str, classifier, rows: datasets.Dataset, tokenizer, batch: int, blocks: Callable
):
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(precision, classifier, tokenizer, batch, folder, train_dataset=rows)
        trainer.args.train_sampling_strategy = sampling
        trainer.blocks = blocks
        trainer.train()


def our_predictions(precision: str, classifier, tokenizer, batch: int) -> Callable:
    options = {"batch_size": batch, "engine": engine(precision)}
    return lambda rows: predict(classifier, rows, tokenizer, **options)


def trainers_predictions(precision: str, classifier, tokenizer, batch: int) -> Callable:
    trainer = trainer_of(precision, classifier, tokenizer, batch, tempfile.gettempdir())
    return lambda rows: torch.from_numpy(trainer.predict(rows).predictions)


class Passes:
    """Predict as many batches of texts as are asked for, again and again; see `blocks.Blocks`."""

    def __init__(self, rows: datasets.Dataset, batch: int, ask: Callable[[], int], tell: Callable[[dict], None]):
        self.rows, self.batch, self.ask, self.tell = rows, batch, ask, tell

    def run(self, predictions_of: Callable) -> None:
        memory = PeakMemory()
        while steps := self.ask():
            numbers = [number % len(self.rows) for number in range(steps * self.batch)]
            chosen = self.rows.select(numbers)
            tokens = int(lengths(chosen).sum())
            synchronize()
            start = time.perf_counter()
            predictions_of(chosen)
            synchronize()
            told = {"steps": steps, "seconds": time.perf_counter() - start, "tokens": tokens}
            self.tell({**told, "texts": len(numbers), "waiting": 0.0})
        self.peak_mb = memory.megabytes()


TRAINER, BY_LENGTH = "Hugging Face's `Trainer`", 'the same, `train_sampling_strategy="group_by_length"`'
FINE_TUNING = {
    "trainer": Contender("labels", TRAINER, partial(trainers, "random")),
    "trainer_by_length": Contender("labels", BY_LENGTH, partial(trainers, "group_by_length")),
    "ours": Contender("labels", OURS, ours),
}
"""``train(precision, classifier, rows, tokenizer, batch, blocks)``"""
PREDICTING = {
    "trainer": Contender("logits", TRAINER, trainers_predictions),
    "ours": Contender("logits", OURS, our_predictions),
}
"""``train(precision, classifier, tokenizer, batch)`` gives a function from rows to their logits."""
