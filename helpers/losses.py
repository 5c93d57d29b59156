"""Each distillation loss as a pure function of tensors. Knows nothing of Catalyst.

All sums are taken in float32 (or the wider type of the inputs), whatever autocast gives. A batch with nothing masked
gives a loss of zero that can be backpropagated, not NaN.

Each is a sum over tokens divided by `count`, by default the number of tokens given. A step that is made of several
micro-batches gives the number in all of them, so that the parts add up to the loss of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def at_least_one(count: int | Tensor) -> int | Tensor:
    """A number of tokens to divide by."""
    return count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)


def _mean(total: Tensor, tokens: int, count: int | Tensor | None) -> Tensor:
    return total / at_least_one(tokens if count is None else count)


def masked_lm_loss(logits: Tensor, targets: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of the hidden tokens, in nats a masked token (Devlin et al. 2019, section 3.1).

    Args:
        logits: (masked, vocabulary), any float type.
        targets: (masked,) int64, the tokens that were hidden.
        count: what to divide the sum by.

    Returns:
        A scalar.
    """
    return _mean(F.cross_entropy(_wide(logits), targets, reduction="sum"), len(targets), count)


def kl_div_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, count: int | Tensor | None = None
) -> Tensor:
    r"""Kullback-Leibler divergence of the student from the teacher, both softened (Hinton et al. 2015, section 2).

    .. math:: \frac{T^2}{n} \sum_i \sum_v p_{iv} \log\frac{p_{iv}}{q_{iv}},
        \quad p_i = \mathrm{softmax}(t_i / T), \quad q_i = \mathrm{softmax}(s_i / T)

    The factor :math:`T^2` keeps the gradient's size as the temperature rises.

    Args:
        student_logits, teacher_logits: (masked, vocabulary), any float type. No gradient reaches the teacher's.
        temperature: above 0; 1 compares the distributions as they are.
        count: what to divide the sum over masked tokens by.

    Returns:
        A scalar in nats a masked token, times T squared.
    """
    student = F.log_softmax(_wide(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=-1)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return _mean(total * temperature**2, len(student), count)


def cosine_loss(
    student_hidden: Tensor, teacher_hidden: Tensor, attention_mask: Tensor, count: int | Tensor | None = None
) -> Tensor:
    """One minus the cosine between student's and teacher's hidden states (Sanh et al. 2019, section 2).

    Args:
        student_hidden, teacher_hidden: (batch, length, hidden), any float type. No gradient reaches the teacher's.
        attention_mask: (batch, length), 1 where there is a token, 0 where there is padding.
        count: what to divide the sum over attended tokens by.

    Returns:
        A scalar from 0 (parallel) to 2 (opposite): the mean over attended tokens.

    Raises:
        ValueError: the hidden sizes differ.
    """
    if student_hidden.shape != teacher_hidden.shape:
        raise ValueError(
            f"hidden states of shapes {tuple(student_hidden.shape)} and {tuple(teacher_hidden.shape)}: "
            "the cosine loss compares vectors of one size."
        )
    attended = attention_mask.bool()
    student, teacher = _wide(student_hidden[attended]), _wide(teacher_hidden[attended].detach())
    return _mean((1 - F.cosine_similarity(student, teacher, dim=-1)).sum(), len(student), count)


def mse_loss(student_logits: Tensor, teacher_logits: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits (Ba and Caruana 2014, section 2.2).

    Args:
        student_logits, teacher_logits: (masked, vocabulary), any float type. No gradient reaches the teacher's.
        count: what to divide the sum over masked tokens by.

    Returns:
        A scalar: the mean over the vocabulary, then over masked tokens.
    """
    total = F.mse_loss(_wide(student_logits), _wide(teacher_logits.detach()), reduction="sum")
    return _mean(total / student_logits.shape[-1], len(student_logits), count)


def perplexity(logits: Tensor, targets: Tensor) -> Tensor:
    """The exponential of `masked_lm_loss` in nats: how many tokens the model is, on average, undecided between."""
    return masked_lm_loss(logits, targets).exp()
