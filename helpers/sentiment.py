"""Fine-tuning a classifier, and distilling the task from one classifier into another. Knows nothing of masked words."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
import torch
from catalyst import dl
from catalyst.core.callback import Callback, CallbackOrder
from catalyst.loggers.console import ConsoleLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.batches import IGNORED
from helpers.callbacks import KLDivLossCallback, LoaderMeanCallback, MSELossCallback
from helpers.engine import Engine
from helpers.evaluation import accuracy_and_macro_f1
from helpers.history import HistoryCallback, ProgressCallback
from helpers.labelled import lengths, row_loader
from helpers.models import quiet_transformers
from helpers.processor import fast_training
from helpers.steps import FiniteLossCallback, GradientClippingCallback, StepSchedulerCallback
from helpers.training import SEED_STRIDE, optimization


def _named(config, labels: Sequence[str]) -> None:
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def classifier_of(model: PreTrainedModel, labels: Sequence[str], seed: int) -> PreTrainedModel:
    """Put a new classification head on the encoder of a masked-LM model.

    Args:
        model: a BERT or DistilBERT; it is left as it is.
        labels: the names of the classes, in the order of their numbers.
        seed: of the head's random weights.

    Returns:
        A BertForSequenceClassification or DistilBertForSequenceClassification in eval mode, sharing no memory.
    """
    config = copy.deepcopy(model.config)
    _named(config, labels)
    torch.manual_seed(seed)
    classifier = AutoModelForSequenceClassification.from_config(config)
    # Not strict: BERT's classifier has a pooler, which a masked-LM model lacks; it is part of the new head.
    unknown = classifier.base_model.load_state_dict(model.base_model.state_dict(), strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"the classifier of {type(model).__name__} has no place for {unknown}.")
    return classifier.eval()


def load_baseline(name_or_path: str, labels: Sequence[str], seed: int):
    """A classifier on any encoder that `transformers` loads, and its own tokenizer.

    Args:
        name_or_path: a name on the Hugging Face hub, or a local folder.
        labels: the names of the classes.
        seed: of the head's random weights.

    Raises:
        FileNotFoundError: there is no such model, or the hub cannot be reached.
    """
    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            classifier = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, num_labels=len(labels), ignore_mismatched_sizes=True
            )
    except OSError as error:
        raise FileNotFoundError(
            f"BASELINE {str(name_or_path)!r} is no folder with a model and a tokenizer, and the hub gives no such "
            "model or cannot be reached. Leave BASELINE = None to go without."
        ) from error
    _named(classifier.config, labels)
    return classifier.eval(), tokenizer


class ClassifierRunner(dl.Runner):
    """Run a classifier on a batch and leave its logits in ``self.batch``, for the callbacks."""

    def run(self):
        with fast_training(self._model):
            return super().run()

    def handle_batch(self, batch):
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        self.batch = {**batch, "s_logits": logits}


class LabelLossCallback(LoaderMeanCallback):
    """Cross-entropy with the labels in nats a labelled text; texts without label do not count.

    Args:
        metric_key: the name under which the loss stands.
        class_weights: (classes,) float; what a text of each class counts. None counts all alike.
    """

    def __init__(self, metric_key: str = "labels", class_weights: Tensor | None = None):
        super().__init__(metric_key)
        self.class_weights = class_weights

    def count(self, batch):
        own = (batch["labels"] != IGNORED).sum()
        return own, own

    def measure(self, batch, count):
        weights = None if self.class_weights is None else self.class_weights.to(batch["labels"].device)
        logits = batch["s_logits"].float()
        return F.cross_entropy(logits, batch["labels"], weights, ignore_index=IGNORED, reduction="sum") / count


class ConfusionCallback(Callback):
    """Accuracy and macro F1 on the labelled texts of a whole validation loader, from one matrix of counts.

    The counts are added up over all processes.

    Args:
        classes: how many there are.
    """

    def __init__(self, classes: int):
        super().__init__(order=CallbackOrder.Metric)
        self.classes = classes

    def on_loader_start(self, runner) -> None:
        self.confusion = torch.zeros(self.classes**2, dtype=torch.long, device=runner.engine.device)

    def on_batch_end(self, runner) -> None:
        if runner.is_valid_loader:
            labels, predicted = runner.batch["labels"], runner.batch["s_logits"].argmax(-1)
            cells = (labels * self.classes + predicted)[labels != IGNORED]
            self.confusion += torch.bincount(cells, minlength=self.classes**2)

    def on_loader_end(self, runner) -> None:
        if runner.is_valid_loader:
            counts = runner.engine.reduce(self.confusion, reduction="sum").view(self.classes, self.classes)
            runner.loader_metrics.update(accuracy_and_macro_f1(counts.cpu().numpy()))


class _Silent(ConsoleLogger):
    """A console logger that says nothing: without one, Catalyst adds its own."""

    def log_hparams(self, *args, **options) -> None:
        """Nothing."""

    log_metrics = log_hparams


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """What a text of each class counts so that all classes count alike, one on average: (classes,) float32."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(counts.sum() / (classes * counts), dtype=torch.float32)


def train_classifier(
    classifier: PreTrainedModel,
    loaders: dict[str, DataLoader],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    engine: Engine,
    loss_weights: dict[str, float] | None = None,
    temperature: float = 1.0,
    class_weights: Tensor | None = None,
) -> HistoryCallback:
    """Train a classifier in place: on labels, on a teacher's logits, or on a mix of both.

    Args:
        classifier: takes ``input_ids`` and ``attention_mask`` and gives an output with ``logits`` (batch, classes).
        loaders: dict batches under ``"train"`` and ``"valid"``, both with ``t_logits`` where a loss needs them.
        epochs: how often the training loader is gone through; after each, the validation loader.
        learning_rate: at the end of the warm-up.
        seed: of the dropout; the order is the loader's.
        engine: where and in which precision to compute.
        loss_weights: from ``"labels"`` (cross-entropy), ``"kl"`` (`losses.kl_div_loss`) and ``"mse"``
            (`losses.mse_loss`) to the weights of the sum; by default labels alone.
        temperature: of the KL loss.
        class_weights: see `LabelLossCallback`.

    Returns:
        The history; its validations have ``accuracy`` and ``macro_f1``.

    Raises:
        FloatingPointError: a loss became NaN or infinite; the message has the step.
    """
    used = {name: weight for name, weight in (loss_weights or {"labels": 1.0}).items() if weight > 0}
    measures = {
        "labels": LabelLossCallback(class_weights=class_weights),
        "kl": KLDivLossCallback(temperature=temperature),
        "mse": MSELossCallback(),
    }
    optimizer, scheduler = optimization(classifier, learning_rate, epochs * len(loaders["train"]))
    history = HistoryCallback()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ``I", module="catalyst")
            ClassifierRunner().train(
                engine=engine,
                model=classifier,
                optimizer=optimizer,
                scheduler=scheduler,
                loaders=loaders,
                callbacks=[
                    *(measures[name] for name in used),
                    dl.MetricAggregationCallback("loss", metrics=used, mode="weighted_sum"),
                    ConfusionCallback(classifier.config.num_labels),
                    FiniteLossCallback(),
                    dl.BackwardCallback(metric_key="loss"),
                    GradientClippingCallback(max_norm=1.0),
                    dl.OptimizerCallback(metric_key="loss"),
                    StepSchedulerCallback(),
                    ProgressCallback(f"classifier, seed {seed}"),
                    history,
                ],
                loggers={"console": _Silent()},
                num_epochs=epochs,
                seed=SEED_STRIDE * seed,
            )
    finally:
        engine.free_memory()
        classifier.cpu().eval()
    return history


@torch.no_grad()
def predict(
    classifier: PreTrainedModel,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    engine: Engine,
) -> Tensor:
    """The classifier's logits on `labelled.encode`'s rows, in their order: (rows, classes) float32 on the CPU."""
    classifier.to(engine.device).eval()
    shortest_first, logits = np.argsort(lengths(rows), kind="stable"), []
    for batch in row_loader(rows.select(shortest_first), tokenizer, batch_size):
        inputs = {key: batch[key].to(engine.device) for key in ("input_ids", "attention_mask")}
        with engine.autocast():
            logits.append(classifier(**inputs).logits.float().cpu())
    classifier.cpu()
    return torch.cat(logits)[np.argsort(shortest_first)]


@dataclass
class Contender:
    """What fine-tuning gave: one classifier a seed, at the learning rate that was best on validation.

    Attributes:
        tokenizer: the classifiers' own.
        searched: from each learning rate to its validation accuracy, with the first seed.
        learning_rate: the one chosen.
        classifiers: on the CPU in eval mode, one a seed.
        histories: of their training, one a seed.
    """

    tokenizer: PreTrainedTokenizerBase
    searched: dict[float, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    classifiers: list[PreTrainedModel] = field(default_factory=list)
    histories: list[HistoryCallback] = field(default_factory=list)


def search_and_train(
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[[int], PreTrainedModel],
    train: Callable[[PreTrainedModel, float, int], HistoryCallback],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
) -> Contender:
    """Train with each learning rate and the first seed; with the one that validates best, train with all seeds.

    Args:
        tokenizer: the classifiers'.
        make: from a seed to a new classifier.
        train: trains a classifier in place, given the learning rate and the seed.
        learning_rates: to try; of equally good ones the first is taken.
        seeds: one classifier for each.
    """
    found, best = Contender(tokenizer), None
    for rate in learning_rates:
        classifier = make(seeds[0])
        history = train(classifier, rate, seeds[0])
        found.searched[rate] = history.validations[-1]["accuracy"]
        if best is None or found.searched[rate] > found.searched[found.learning_rate]:
            found.learning_rate, best = rate, (classifier, history)
    found.classifiers, found.histories = [best[0]], [best[1]]
    for seed in seeds[1:]:
        found.classifiers.append(classifier := make(seed))
        found.histories.append(train(classifier, found.learning_rate, seed))
    return found
