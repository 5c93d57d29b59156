"""Losses of what a model predicts, at the masked positions: they need nothing but logits.

The losses of logits go through them a few rows at a time and keep one gradient of their size, not several copies in
float32; see `_SumOverRows`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The type that the sums over a tensor are taken in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32, or its own type where that is wider."""
    return tensor.to(wide_dtype(tensor))


def at_least_one(count: int | Tensor) -> int | Tensor:
    """A number of tokens to divide by."""
    return count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)


def mean(total: Tensor, tokens: int | Tensor, count: int | Tensor | None) -> Tensor:
    """A sum over tokens divided by `count`; where that is None, by their own number, or one."""
    return total / (at_least_one(tokens) if count is None else count)


BYTES_AT_ONCE = {"cpu": 2**22}
"""What `_SumOverRows` takes at once: on a processor what its caches hold. A GPU is kept busy by 256 MB."""


class _SumOverRows(torch.autograd.Function):
    """The sum over rows of a loss of logits, its gradient made in the same pass, a few rows at a time.

    Written with autograd, a loss of logits keeps several float32 copies of them for its backward pass. Here all that
    is kept is the gradient, in the logits' own type; the backward pass scales it. Of float16 logits it is kept in
    float32: probabilities below 6e-8 would be lost before the loss scaler could lift them.

    Args:
        of_rows: from some rows of `logits`, in the wider type and its own to overwrite, and the same rows of `other`,
            to their loss, a scalar, and the gradient of that, of the logits' shape.
        logits: (masked, vocabulary).
        other: what the logits are compared with, (masked, ...). It gets no gradient.
    """

    @staticmethod
    def forward(ctx, of_rows: Callable, logits: Tensor, other: Tensor) -> Tensor:
        wide_type = wide_dtype(logits)
        at_once = BYTES_AT_ONCE.get(logits.device.type, 2**28) // (logits.shape[-1] * wide_type.itemsize)
        total = torch.zeros((), dtype=wide_type, device=logits.device)
        gradient = None
        if ctx.needs_input_grad[1]:
            gradient = torch.empty_like(logits, dtype=wide_type if logits.dtype == torch.float16 else logits.dtype)
        for start in range(0, len(logits), max(at_once, 1)):
            rows = slice(start, start + max(at_once, 1))
            loss, slope = of_rows(logits[rows].to(wide_type, copy=True), other[rows])
            total += loss
            if gradient is not None:
                gradient[rows] = slope
        ctx.save_for_backward(gradient)
        ctx.logits_dtype = logits.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale):
        (gradient,) = ctx.saved_tensors
        return None, (gradient * scale).to(ctx.logits_dtype), None


def _sum_over_rows(of_rows: Callable, logits: Tensor, other: Tensor) -> Tensor:
    """`_SumOverRows`, without a gradient where none is asked for. ValueError: the numbers of rows differ."""
    if len(logits) != len(other):
        raise ValueError(f"{len(logits)} rows of logits and {len(other)} rows to compare them with: give one for each.")
    return _SumOverRows.apply(of_rows, logits if torch.is_grad_enabled() else logits.detach(), other)


def _normalizer(logits: Tensor, probabilities: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, by way of its most probable token: (masked, vocabulary) twice to (masked,)."""
    return logits.amax(dim=-1) - probabilities.amax(dim=-1).log()


def masked_lm_loss(logits: Tensor, targets: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of the hidden tokens, in nats a masked token (Devlin et al. 2019, section 3.1).

    Args:
        logits: (masked, vocabulary), any float type.
        targets: (masked,) int64, the tokens that were hidden.
        count: what to divide the sum by.

    Returns:
        A scalar.

    Raises:
        ValueError: the numbers of rows differ.
    """

    def of_rows(logits, targets):
        probabilities, targets = logits.softmax(dim=-1), targets[:, None]
        loss = (_normalizer(logits, probabilities) - logits.gather(1, targets)[:, 0]).sum()
        return loss, probabilities.scatter_add_(1, targets, torch.full_like(logits[:, :1], -1))

    return mean(_sum_over_rows(of_rows, logits, targets), len(targets), count)


def kl_div_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, count: int | Tensor | None = None
) -> Tensor:
    r"""Kullback-Leibler divergence of the student from the teacher, both softened (Hinton et al. 2015, section 2).

    .. math:: \frac{T^2}{n} \sum_i \sum_v p_{iv} \log\frac{p_{iv}}{q_{iv}},
        \quad p_i = \mathrm{softmax}(t_i / T), \quad q_i = \mathrm{softmax}(s_i / T)

    The gradient shrinks like :math:`1/T^2` where :math:`T` is large; the factor :math:`T^2` undoes that (section 2).

    Args:
        student_logits, teacher_logits: (masked, vocabulary), any float type. No gradient reaches the teacher's.
        temperature: above 0; 1 compares the distributions as they are.
        count: what to divide the sum over masked tokens by.

    Returns:
        A scalar in nats a masked token, times T squared.

    Raises:
        ValueError: the numbers of rows differ.
    """

    def of_rows(student, teacher):
        student, teacher = student.div_(temperature), wide(teacher) / temperature
        q, p = student.softmax(dim=-1), teacher.softmax(dim=-1)
        normalizers = _normalizer(student, q) - _normalizer(teacher, p)
        divergence = torch.linalg.vecdot(p, teacher.sub_(student)) + normalizers
        return temperature**2 * divergence.sum(), q.sub_(p).mul_(temperature)

    return mean(_sum_over_rows(of_rows, student_logits, teacher_logits), len(student_logits), count)


def mse_loss(student_logits: Tensor, teacher_logits: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits (Ba and Caruana 2014, section 2.2).

    Args:
        student_logits, teacher_logits: (masked, vocabulary), any float type. No gradient reaches the teacher's.
        count: what to divide the sum over masked tokens by.

    Returns:
        A scalar: the mean over the vocabulary, then over masked tokens.

    Raises:
        ValueError: the numbers of rows differ.
    """

    def of_rows(student, teacher):
        difference, vocabulary = student.sub_(teacher), student.shape[-1]
        return difference.square().sum() / vocabulary, difference.mul_(2 / vocabulary)

    return mean(_sum_over_rows(of_rows, student_logits, teacher_logits), len(student_logits), count)


def perplexity(logits: Tensor, targets: Tensor) -> Tensor:
    """The exponential of `masked_lm_loss` in nats: how many tokens the model is, on average, undecided between."""
    return masked_lm_loss(logits, targets).exp()


def accuracy_and_macro_f1(confusion: Tensor) -> dict[str, float]:
    """Accuracy, and the mean over the classes of F1, the harmonic mean of precision and recall.

    Args:
        confusion: (classes, classes) int: in row i and column j, how many texts of class i were taken for class j. A
            class that is neither there nor predicted has an F1 of zero.
    """
    right, named = confusion.diag().double(), confusion.sum(dim=0) + confusion.sum(dim=1)
    f1 = 2 * right / at_least_one(named)
    return {"accuracy": (right.sum() / at_least_one(confusion.sum())).item(), "macro_f1": f1.mean().item()}
