"""Scores of trained models. Knows nothing of training."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from helpers.callbacks import masked_targets
from helpers.engine import Engine
from helpers.losses import kl_div_loss, masked_lm_loss
from helpers.models import MaskedPositionLM


@torch.no_grad()
def masked_lm_scores(
    model: PreTrainedModel, loader: DataLoader, engine: Engine, teacher: PreTrainedModel | None = None
) -> dict[str, float]:
    """Score a masked-LM model on every masked position of a loader, in the engine's precision.

    Args:
        model: a BERT or DistilBERT with its masked-LM head, on the CPU; it comes back there, in eval mode.
        loader: dict batches with fixed masks, as `masked_lm_loaders` gives for validation.
        engine: where and in which precision to compute.
        teacher: compare the model with this one as well.

    Returns:
        ``masked_accuracy`` (share of masked tokens that the most probable token names), ``perplexity`` (exponential of
        the mean cross-entropy in nats) and ``masked_tokens``; with a teacher also ``kl_to_teacher`` (nats a masked
        token, at temperature 1) and ``top5_overlap`` (share of the teacher's five most probable tokens that are among
        the model's five).

    Raises:
        ValueError: nothing is masked in the whole loader.
    """
    student = MaskedPositionLM(model).to(engine.device).eval()
    teacher_lm = MaskedPositionLM(teacher).to(engine.device).eval() if teacher is not None else None
    sums = {"masked_accuracy": 0.0, "loss": 0.0, "kl_to_teacher": 0.0, "top5_overlap": 0.0}
    count = 0
    for batch in loader:
        batch = {key: value.to(engine.device) for key, value in batch.items()}
        targets = masked_targets(batch)
        count += len(targets)
        with engine.autocast():
            logits, _ = student(**batch)
            teacher_logits = teacher_lm(**batch)[0] if teacher is not None else None
        sums["masked_accuracy"] += (logits.argmax(-1) == targets).sum().item()
        sums["loss"] += masked_lm_loss(logits, targets).item() * len(targets)
        if teacher_logits is not None:
            sums["kl_to_teacher"] += kl_div_loss(logits, teacher_logits).item() * len(targets)
            sums["top5_overlap"] += top5_overlap(logits, teacher_logits).sum().item()
    student.cpu()
    if teacher is not None:
        teacher_lm.cpu()
    if count == 0:
        raise ValueError("nothing is masked in the loader, so there is nothing to score: the corpus is too small.")
    means = {key: value / count for key, value in sums.items()}
    loss = means.pop("loss")
    scores = {**means, "perplexity": float(torch.tensor(loss, dtype=torch.float64).exp()), "masked_tokens": count}
    if teacher is None:
        del scores["kl_to_teacher"], scores["top5_overlap"]
    return scores


def top5_overlap(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Share of the teacher's five most probable tokens among the model's: (masked, vocabulary) twice to (masked,)."""
    five, teacher_five = logits.topk(5).indices, teacher_logits.topk(5).indices
    return (five[:, :, None] == teacher_five[:, None, :]).any(1).float().mean(1)
