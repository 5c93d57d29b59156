"""The losses and the perplexity as Catalyst callbacks. Knows nothing of how logits were made.

The keys read from the runner's batch: ``s_logits`` and ``t_logits`` (masked, vocabulary), ``s_hidden_states`` and
``t_hidden_states`` (tuples of (batch, length, hidden)), ``attention_mask`` and ``labels`` (batch, length); of a
micro-batch also ``step_masked`` and ``step_attended`` (see `batches.micro_batches`).
"""

from __future__ import annotations

import math

import torch
from catalyst.core.callback import Callback, CallbackOrder
from torch import Tensor

from helpers import losses
from helpers.batches import IGNORED


def masked_targets(batch: dict) -> Tensor:
    """The hidden tokens of a batch in row-major order: (masked,) int64."""
    return batch["labels"][batch["labels"] != IGNORED]


class LoaderMeanCallback(Callback):
    """Put a batch's value into ``runner.batch_metrics`` and the whole loader's mean into ``runner.loader_metrics``.

    Both are sums over tokens divided by a count, so that no mean of means is taken: the loader's value is that of all
    its tokens, in all processes, and the values of a step's micro-batches add up to the value of the step.
    A subclass gives `measure`, and `count` where it is not the masked tokens that count.

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
        return own, batch.get("step_masked", own)

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


LOSSES = {
    "mlm": MaskedLanguageModelCallback,
    "kl": KLDivLossCallback,
    "cosine": CosineLossCallback,
    "mse": MSELossCallback,
}
"""The names that LOSS_WEIGHTS may hold."""

LOSS_WEIGHTS_FORM = f"a dict from names out of {sorted(LOSSES)} to weights of at least 0, not all 0"


def are_loss_weights(value) -> bool:
    """True if `value` is what `LOSS_WEIGHTS_FORM` says."""
    return (
        isinstance(value, dict)
        and set(value) <= set(LOSSES)
        and all(type(weight) in (int, float) and math.isfinite(weight) and weight >= 0 for weight in value.values())
        and sum(value.values()) > 0
    )
