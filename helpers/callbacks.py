"""The losses and the metrics as Catalyst callbacks. Knows nothing of how logits were made.

The keys read from the runner's batch: ``s_logits`` and ``t_logits`` (masked, vocabulary), ``s_hidden_states`` and
``t_hidden_states`` (tuples of (batch, length, hidden)), ``attention_mask`` and ``labels`` (batch, length). Of a
classifier, logits are (batch, classes) and ``labels`` (batch,). A micro-batch also tells the counts of its whole step,
as ``step_logits``, ``step_labels`` and ``step_attended``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from catalyst import dl
from catalyst.core.callback import Callback, CallbackOrder
from torch import Tensor
from torch.nn import functional as F

from helpers import losses
from helpers.data import IGNORED, masked_targets


class LoaderMeanCallback(Callback):
    """Put a batch's value into ``runner.batch_metrics`` and the whole loader's mean into ``runner.loader_metrics``.

    Both are sums over tokens, or texts, divided by a count, so that no mean of means is taken: the loader's value is
    that of all of them, in all processes, and the values of a step's micro-batches add up to the value of the step.
    A subclass gives `measure`, and `count` where it is not the rows of logits that count.

    Args:
        metric_key: the name under which the value stands.
    """

    def __init__(self, metric_key: str):
        super().__init__(order=CallbackOrder.Metric)
        self.metric_key = metric_key

    def measure(self, batch: dict, count: Tensor | int) -> Tensor:
        """Return the batch's sum over tokens divided by `count`, a scalar."""
        raise NotImplementedError

    def count(self, batch: dict) -> tuple[Tensor | int, Tensor | int]:
        """Return the number of tokens in this batch, and in the step that it is a part of."""
        own = len(batch["s_logits"])
        return own, batch.get("step_logits", own)

    def finish(self, mean: float) -> float:
        """Turn the loader's mean into the metric."""
        return mean

    def on_loader_start(self, runner) -> None:
        self.total = self.tokens = 0.0

    def on_batch_end(self, runner) -> None:
        own, whole = self.count(runner.batch)
        # In validation nothing is reduced batch by batch: a process may have one less than the others.
        whole = runner.engine.own_share(whole) if runner.is_train_loader else losses.at_least_one(whole)
        value = self.measure(runner.batch, whole)
        runner.batch_metrics[self.metric_key] = value
        # Tensors are added up, not numbers: reading one out would make a GPU wait at every batch.
        self.total = self.total + value.detach().to(runner.engine.sum_dtype) * whole
        self.tokens = self.tokens + own

    def on_loader_end(self, runner) -> None:
        engine = runner.engine
        sums = [torch.as_tensor(x, dtype=engine.sum_dtype, device=engine.device) for x in (self.total, self.tokens)]
        total, count = engine.reduce(torch.stack(sums), reduction="sum").tolist()
        runner.loader_metrics[self.metric_key] = self.finish(total / max(count, 1))


class MaskedLanguageModelCallback(LoaderMeanCallback):
    """`losses.masked_lm_loss` of the student."""

    def __init__(self, metric_key: str = "mlm"):
        super().__init__(metric_key)

    def measure(self, batch, count):
        return losses.masked_lm_loss(batch["s_logits"], masked_targets(batch), count)


class KLDivLossCallback(LoaderMeanCallback):
    """`losses.kl_div_loss` from student to teacher at `temperature`."""

    def __init__(self, metric_key: str = "kl", temperature: float = 1.0):
        super().__init__(metric_key)
        self.temperature = temperature

    def measure(self, batch, count):
        return losses.kl_div_loss(batch["s_logits"], batch["t_logits"], self.temperature, count)


class CosineLossCallback(LoaderMeanCallback):
    """`losses.cosine_loss` between the last hidden states, over attended tokens."""

    def __init__(self, metric_key: str = "cosine"):
        super().__init__(metric_key)

    def measure(self, batch, count):
        student, teacher = batch["s_hidden_states"][-1], batch["t_hidden_states"][-1]
        return losses.cosine_loss(student, teacher, batch["attention_mask"], count)

    def count(self, batch):
        own = batch["attention_mask"].sum()
        return own, batch.get("step_attended", own)


class MSELossCallback(LoaderMeanCallback):
    """`losses.mse_loss` between the logits."""

    def __init__(self, metric_key: str = "mse"):
        super().__init__(metric_key)

    def measure(self, batch, count):
        return losses.mse_loss(batch["s_logits"], batch["t_logits"], count)


class PerplexityCallback(MaskedLanguageModelCallback):
    """`losses.perplexity` of the student over a whole loader: the exponential of its mean loss.

    It leaves nothing in ``runner.batch_metrics``: the metrics of micro-batches add up, and perplexities do not. Where a
    `MaskedLanguageModelCallback` has left its loss there as ``mlm``, that loss is taken and not computed again.

    Args:
        metric_key: the name under which the perplexity stands.
    """

    def __init__(self, metric_key: str = "perplexity"):
        super().__init__(metric_key)
        self.order = CallbackOrder.Metric + 1

    @torch.no_grad()
    def on_batch_end(self, runner) -> None:
        self.loss = runner.batch_metrics.get("mlm")
        super().on_batch_end(runner)
        del runner.batch_metrics[self.metric_key], self.loss

    def measure(self, batch, count):
        return super().measure(batch, count) if self.loss is None else self.loss

    def finish(self, mean):
        return float(torch.tensor(mean, dtype=torch.float64).exp())


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
        return own, batch.get("step_labels", own)

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
            runner.loader_metrics.update(losses.accuracy_and_macro_f1(counts.cpu()))


LOSSES = {
    "mlm": MaskedLanguageModelCallback,
    "kl": KLDivLossCallback,
    "cosine": CosineLossCallback,
    "mse": MSELossCallback,
}
"""The names that LOSS_WEIGHTS may hold."""

TASK_LOSSES = {"labels": LabelLossCallback, "kl": KLDivLossCallback, "mse": MSELossCallback}
"""The names that TASK_LOSS_WEIGHTS may hold: what teaches a classifier."""


def loss_weights_form(losses: Iterable[str]) -> str:
    """What weights of these losses have to be, in words."""
    return f"a dict from names out of {sorted(losses)} to weights of at least 0, not all 0"


def are_loss_weights(value, losses: Iterable[str]) -> bool:
    """True if `value` is what `loss_weights_form` says."""
    return (
        isinstance(value, dict)
        and set(value) <= set(losses)
        and all(type(weight) in (int, float) and math.isfinite(weight) and weight >= 0 for weight in value.values())
        and sum(value.values()) > 0
    )


def weighted_sum(weights: dict[str, float], losses: dict[str, LoaderMeanCallback]) -> dict[str, Callback]:
    """The losses that have a weight above zero, and the callback that adds them up as ``loss``.

    Raises:
        ValueError: an unknown name, or a weight that is negative or not finite, or all of them zero.
    """
    if not are_loss_weights(weights, losses):
        raise ValueError(f"loss weights {weights!r}: they have to be {loss_weights_form(losses)}.")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    total = dl.MetricAggregationCallback("loss", metrics=used, mode="weighted_sum")
    return {**{name: losses[name] for name in used}, "loss": total}
