"""The base class of losses and metrics, and those of what a model predicts."""

from __future__ import annotations

import warnings

import torch
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
    """`losses.kl_div_loss`, KL(teacher‖student), at `temperature`."""

    def __init__(self, metric_key: str = "kl", temperature: float = 1.0):
        super().__init__(metric_key)
        self.temperature = temperature

    def measure(self, batch, count):
        return losses.kl_div_loss(batch["s_logits"], batch["t_logits"], self.temperature, count)


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

    Where a teacher runs along, the first validation takes its perplexity, too, from the logits that are there anyway. A
    warning says where it is above the size of the vocabulary, which is that of a model that guesses evenly: then there
    is nothing to learn from it. (With several processes, the first one's share of the validation part decides.)

    Args:
        metric_key: the name under which the perplexity stands.
    """

    def __init__(self, metric_key: str = "perplexity"):
        super().__init__(metric_key)
        self.order = CallbackOrder.Metric + 1
        self.teacher_is_known = False

    def on_loader_start(self, runner) -> None:
        super().on_loader_start(runner)
        self.teacher_total, self.vocabulary = 0.0, None

    @torch.no_grad()
    def on_batch_end(self, runner) -> None:
        self.loss = runner.batch_metrics.get("mlm")
        super().on_batch_end(runner)
        del runner.batch_metrics[self.metric_key], self.loss
        if runner.is_valid_loader and not self.teacher_is_known and "t_logits" in runner.batch:
            logits = runner.batch["t_logits"]
            loss = losses.masked_lm_loss(logits, masked_targets(runner.batch), count=1)
            self.teacher_total, self.vocabulary = self.teacher_total + loss.detach(), logits.shape[-1]

    def on_loader_end(self, runner) -> None:
        super().on_loader_end(runner)
        if self.vocabulary is None:
            return
        self.teacher_is_known = True
        perplexity = self.finish(float(self.teacher_total) / max(float(self.tokens), 1))
        if perplexity > self.vocabulary and runner.engine.is_main_process:
            warnings.warn(
                f"the teacher's perplexity on the validation part is {perplexity:,.0f}, above the {self.vocabulary:,} "
                "tokens of its vocabulary. It guesses worse than evenly among them, so the student has nothing to "
                "learn from it. Is TEACHER a trained model, and one for the language of CORPUS?",
                stacklevel=2,
            )

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
