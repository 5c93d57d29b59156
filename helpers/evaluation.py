"""Scores of trained models. Knows nothing of training."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from helpers.data import IGNORED, masked_targets
from helpers.losses import kl_div_loss, masked_lm_loss
from helpers.models import MaskedPositionLM


@torch.no_grad()
def masked_lm_scores(
    models: dict[str, PreTrainedModel],
    teacher: PreTrainedModel,
    loader: DataLoader,
    engine: Accelerator,
    mask_token_id: int,
) -> dict[str, dict[str, float]]:
    """Score masked-LM models, and their teacher, on every token of a loader that is to be predicted.

    BERT's masking leaves a tenth of these tokens in plain sight and puts a random token in the place of another tenth.
    Scores are over all of them, as is usual; ``accuracy_at_mask`` is over those that [MASK] hides.

    Args:
        models: masked-LM models, by name, on the CPU; they come back there, in eval mode.
        teacher: the model that they are compared with; it may be among them.
        loader: dict batches with fixed masks, as `masked_lm_loaders` gives for validation.
        engine: where and in which precision to compute.
        mask_token_id: of [MASK].

    Returns:
        For each name: ``masked_accuracy`` (share of the tokens that the most probable token names),
        ``accuracy_at_mask`` (the same where the model reads [MASK]; NaN where it does nowhere), ``perplexity``
        (exponential of the mean cross-entropy in nats), ``kl_to_teacher`` (nats a token, at temperature 1),
        ``top5_overlap`` (share of the teacher's five most probable tokens that are among the model's five),
        ``masked_tokens`` and ``mask_tokens`` (how many there are of both kinds).

    Raises:
        ValueError: nothing is to be predicted in the whole loader.
    """
    teacher_lm = MaskedPositionLM(teacher).to(engine.device).eval()
    students = {name: MaskedPositionLM(model).to(engine.device).eval() for name, model in models.items()}
    keys = ("masked_accuracy", "accuracy_at_mask", "loss", "kl_to_teacher", "top5_overlap")
    sums = {name: dict.fromkeys(keys, 0.0) for name in models}
    count = hidden_count = 0
    for batch in loader:
        batch = {key: value.to(engine.device) for key, value in batch.items()}
        targets = masked_targets(batch)
        hidden = batch["input_ids"][batch["labels"] != IGNORED] == mask_token_id
        count, hidden_count = count + len(targets), hidden_count + hidden.sum().item()
        with engine.autocast():
            teacher_logits, _ = teacher_lm(**batch)
        for name, student in students.items():
            with engine.autocast():
                logits, _ = student(**batch)
            right = logits.argmax(-1) == targets
            sums[name]["masked_accuracy"] += right.sum().item()
            sums[name]["accuracy_at_mask"] += right[hidden].sum().item()
            sums[name]["loss"] += masked_lm_loss(logits, targets, count=1).item()
            sums[name]["kl_to_teacher"] += kl_div_loss(logits, teacher_logits, count=1).item()
            sums[name]["top5_overlap"] += top5_overlap(logits, teacher_logits).sum().item()
    for wrapped in (teacher_lm, *students.values()):
        wrapped.cpu()
    if count == 0:
        raise ValueError("nothing is masked in the loader, so there is nothing to score: the corpus is too small.")
    scores = {name: {key: value / count for key, value in values.items()} for name, values in sums.items()}
    for values in scores.values():
        values["accuracy_at_mask"] *= count / hidden_count if hidden_count else float("nan")
        values["perplexity"] = float(torch.tensor(values.pop("loss"), dtype=torch.float64).exp())
        values |= {"masked_tokens": count, "mask_tokens": hidden_count}
    return scores


@torch.no_grad()
def masked_lm_correct(model: PreTrainedModel, loader: DataLoader, engine: Accelerator) -> np.ndarray:
    """Whether a masked-LM model's most probable token is the right one: (tokens,) bool, in the loader's order.

    Its mean is the ``masked_accuracy`` of `masked_lm_scores`.
    """
    wrapped, right = MaskedPositionLM(model).to(engine.device).eval(), []
    for batch in loader:
        batch = {key: value.to(engine.device) for key, value in batch.items()}
        with engine.autocast():
            logits, _ = wrapped(**batch)
        right.append((logits.argmax(-1) == masked_targets(batch)).cpu().numpy())
    wrapped.cpu()
    return np.concatenate(right)


def top5_overlap(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Share of the teacher's five most probable tokens among the model's: (masked, vocabulary) twice to (masked,)."""
    five, teacher_five = logits.topk(5).indices, teacher_logits.topk(5).indices
    return (five[:, :, None] == teacher_five[:, None, :]).any(1).float().mean(1)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count (texts,) int labels and predictions into a (classes, classes) int matrix, the labels down the rows.

    Raises:
        ValueError: a label that is no number of a class.
    """
    labels = np.asarray(labels)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}: the classifier knows 0 to {classes - 1}.")
    return np.bincount(labels * classes + np.asarray(predicted), minlength=classes**2).reshape(classes, classes)


def bootstrap_accuracies(
    correct: dict[str, np.ndarray], resamples: int = 10_000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Mean accuracies under resampling of texts and seeds (Efron and Tibshirani 1993, chapters 6 and 13).

    In each resample the texts are drawn with replacement, the same for all names, so that differences between names are
    paired. The seeds of each name are drawn with replacement by themselves, n - 1 of n: so the variance of their mean
    is that of the n - 1 formula (Rao and Wu 1988). One seed alone is always drawn.

    Args:
        correct: for each name, (seeds, texts) bool: whether the run of that seed had that text right.
        resamples: how many.
        seed: of the drawing.

    Returns:
        For each name, (resamples,) float64. Any function of these means has its interval by `interval`.

    Raises:
        ValueError: the numbers of texts differ.
    """
    lengths = {len(right[0]) for right in correct.values()}
    if len(lengths) != 1:
        raise ValueError(f"results on {sorted(lengths)} texts: to compare them, they have to be on the same ones.")
    (texts,) = lengths
    generator = np.random.default_rng(seed)
    means = {name: np.empty(resamples) for name in correct}
    at_once = 500  # matrices of (500, texts) at a time, not of (resamples, texts)
    for start in range(0, resamples, at_once):
        now = slice(start, min(start + at_once, resamples))
        counts = generator.multinomial(texts, np.full(texts, 1 / texts), size=now.stop - now.start)
        for name, right in correct.items():
            seeds, draws = len(right), max(1, len(right) - 1)
            drawn = generator.multinomial(draws, np.full(seeds, 1 / seeds), size=len(counts))
            of_each_seed = counts @ np.asarray(right, dtype=float).T / texts
            means[name][now] = (drawn * of_each_seed).sum(axis=1) / draws
    return means


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap samples, (resamples,) float."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def first_step(validations: list[dict[str, float]], key: str, least: float) -> int | None:
    """The step of the first validation, in a history's, whose `key` is at least `least`; None if there is none."""
    return next((int(validation["step"]) for validation in validations if validation[key] >= least), None)
