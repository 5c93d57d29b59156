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
    models: dict[str, PreTrainedModel], teacher: PreTrainedModel, loader: DataLoader, engine: Engine
) -> dict[str, dict[str, float]]:
    """Score masked-LM models, and their teacher, on every masked position of a loader, in the engine's precision.

    Args:
        models: BERTs or DistilBERTs with their heads, by name, on the CPU; they come back there, in eval mode.
        teacher: the model that they are compared with; it may be among them.
        loader: dict batches with fixed masks, as `masked_lm_loaders` gives for validation.
        engine: where and in which precision to compute.

    Returns:
        For each name: ``masked_accuracy`` (share of masked tokens that the most probable token names), ``perplexity``
        (exponential of the mean cross-entropy in nats), ``kl_to_teacher`` (nats a masked token, at temperature 1),
        ``top5_overlap`` (share of the teacher's five most probable tokens that are among the model's five) and
        ``masked_tokens``.

    Raises:
        ValueError: nothing is masked in the whole loader.
    """
    teacher_lm = MaskedPositionLM(teacher).to(engine.device).eval()
    students = {name: MaskedPositionLM(model).to(engine.device).eval() for name, model in models.items()}
    sums = {name: dict.fromkeys(("masked_accuracy", "loss", "kl_to_teacher", "top5_overlap"), 0.0) for name in models}
    count = 0
    for batch in loader:
        batch = {key: value.to(engine.device) for key, value in batch.items()}
        targets = masked_targets(batch)
        count += len(targets)
        with engine.autocast():
            teacher_logits, _ = teacher_lm(**batch)
        for name, student in students.items():
            with engine.autocast():
                logits, _ = student(**batch)
            sums[name]["masked_accuracy"] += (logits.argmax(-1) == targets).sum().item()
            sums[name]["loss"] += masked_lm_loss(logits, targets, count=1).item()
            sums[name]["kl_to_teacher"] += kl_div_loss(logits, teacher_logits, count=1).item()
            sums[name]["top5_overlap"] += top5_overlap(logits, teacher_logits).sum().item()
    for wrapped in (teacher_lm, *students.values()):
        wrapped.cpu()
    if count == 0:
        raise ValueError("nothing is masked in the loader, so there is nothing to score: the corpus is too small.")
    scores = {name: {key: value / count for key, value in values.items()} for name, values in sums.items()}
    for values in scores.values():
        values["perplexity"] = float(torch.tensor(values.pop("loss"), dtype=torch.float64).exp())
        values["masked_tokens"] = count
    return scores


def top5_overlap(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Share of the teacher's five most probable tokens among the model's: (masked, vocabulary) twice to (masked,)."""
    five, teacher_five = logits.topk(5).indices, teacher_logits.topk(5).indices
    return (five[:, :, None] == teacher_five[:, None, :]).any(1).float().mean(1)
