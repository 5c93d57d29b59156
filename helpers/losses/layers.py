"""Losses of what happens inside a model: hidden states, queries, keys and values, over the attended tokens.

In all of them padding counts for nothing, neither as a query nor as a key, and no gradient reaches the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.losses.outputs import mean, wide

QKV = tuple[Tensor, Tensor, Tensor]
"""Query, key and value of one layer, each (batch, heads, length, width)."""
Pairs = Iterable[tuple[int, int]]
"""Layers that are compared, the student's first, each counted from 0."""


def uniform_layers(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Pair each of the student's layers with the teacher's at the same share of the depth, the last with the last.

    TinyBERT's uniform map (Jiao et al. 2020, g(m) = 3m for 4 layers and 12): 3 and 6 give [(0, 1), (1, 3), (2, 5)].
    """
    return [(i, round((i + 1) * teacher_layers / student_layers) - 1) for i in range(student_layers)]


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
    student, teacher = wide(student_hidden[attended]), wide(teacher_hidden[attended].detach())
    return mean((1 - F.cosine_similarity(student, teacher, dim=-1)).sum(), len(student), count)


def _attended_scores(queries: Tensor, keys: Tensor, attended: Tensor) -> Tensor:
    """Scaled products, (batch, heads, length, width) twice to (tokens, heads, length): one row an attended query."""
    with torch.autocast(queries.device.type, enabled=False):
        scores = wide(queries) @ wide(keys).mT * queries.shape[-1] ** -0.5
    return scores.transpose(1, 2)[attended]


def _attended_keys(attended: Tensor) -> Tensor:
    """(batch, length) bool to (tokens, 1, length) bool: which keys an attended query may look at."""
    return attended[:, None].expand(-1, attended.shape[1], -1)[attended][:, None]


def _cut(states: Tensor, heads: int, who: str) -> Tensor:
    """(batch, heads, length, width) cut anew into another number of heads: all widths of a token joined, then split."""
    joined = states.transpose(1, 2).flatten(2)
    if joined.shape[-1] % heads:
        raise ValueError(
            f"{heads} relation heads: the {who}'s width of {joined.shape[-1]} cannot be cut into as many equal parts."
        )
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)


def relation_loss(
    student: QKV, teacher: QKV, attention_mask: Tensor, heads: int, count: int | Tensor | None = None
) -> Tensor:
    r"""How differently tokens are related, by queries, by keys and by values (MiniLMv2, Wang et al. 2021, section 3.1).

    .. math:: \frac{1}{n} \sum_i \sum_{x \in \{Q, K, V\}} \frac{1}{A} \sum_{a=1}^{A}
        D_\mathrm{KL}\left(R^t_{x,a,i} \,\|\, R^s_{x,a,i}\right),
        \quad R_{x,a} = \mathrm{softmax}\left(x_a x_a^\top / \sqrt{d}\right)

    A relation is a distribution over tokens, so teacher and student may differ in width and in attention heads: both
    are cut into the same number of relation heads, of the widths :math:`d` that come out.

    Args:
        student, teacher: query, key and value of one layer of each, (batch, heads, length, width), any float type.
        attention_mask: (batch, length), 1 where there is a token, 0 where there is padding.
        heads: :math:`A`, relation heads; it divides the student's and the teacher's heads times width.
        count: what to divide the sum over attended queries by.

    Returns:
        A scalar in nats: the sum over the three relations of the mean over heads, then over attended queries.

    Raises:
        ValueError: `heads` does not divide a width.
    """
    attended = attention_mask.bool()
    unseen = ~_attended_keys(attended)

    def log_relation(states: Tensor, who: str) -> Tensor:
        states = _cut(states, heads, who)
        scores = _attended_scores(states, states, attended)
        return scores.masked_fill(unseen, torch.finfo(scores.dtype).min).log_softmax(dim=-1)

    total = sum(
        F.kl_div(log_relation(s, "student"), log_relation(t.detach(), "teacher"), reduction="sum", log_target=True)
        for s, t in zip(student, teacher, strict=True)
    )
    return mean(total / heads, attended.sum(), count)


def attention_loss(
    student: Mapping[int, QKV],
    teacher: Mapping[int, QKV],
    layers: Pairs,
    attention_mask: Tensor,
    count: int | Tensor | None = None,
) -> Tensor:
    r"""Squared difference of the attention scores, head by head (TinyBERT, Jiao et al. 2020, section 3.1, eq. 7).

    .. math:: \frac{1}{n} \sum_{(l, m)} \sum_i \frac{1}{A} \sum_{a=1}^{A} \frac{1}{n_i} \sum_j
        \left(S^s_{l,a,i,j} - S^t_{m,a,i,j}\right)^2, \quad S_a = Q_a K_a^\top / \sqrt{d}

    The scores are those before the softmax. Key :math:`j` goes over the :math:`n_i` attended tokens of the row.

    Args:
        student, teacher: from a layer to its query, key and value, (batch, heads, length, width), any float type.
        layers: the pairs of layers that are compared.
        attention_mask: (batch, length), 1 where there is a token, 0 where there is padding.
        count: what to divide the sum over attended queries by.

    Returns:
        A scalar: the sum over the pairs of the mean over keys, then heads, then attended queries.

    Raises:
        ValueError: the numbers of heads differ.
    """
    attended = attention_mask.bool()
    seen = _attended_keys(attended)
    total = 0.0
    for own, theirs in layers:
        (s_query, s_key, _), (t_query, t_key, _) = student[own], teacher[theirs]
        if s_query.shape[1] != t_query.shape[1]:
            raise ValueError(
                f"{s_query.shape[1]} attention heads in the student and {t_query.shape[1]} in the teacher: the "
                "attention loss compares them one by one. The relation loss takes any numbers."
            )
        scores = _attended_scores(t_query.detach(), t_key.detach(), attended)
        squares = (_attended_scores(s_query, s_key, attended) - scores).square() * seen
        total = total + (squares.sum(dim=-1) / seen.sum(dim=-1)).mean(dim=-1).sum()
    return mean(total, attended.sum(), count)


def hidden_loss(
    student: tuple[Tensor, ...],
    teacher: tuple[Tensor, ...],
    layers: Pairs,
    attention_mask: Tensor,
    count: int | Tensor | None = None,
) -> Tensor:
    r"""Squared difference of hidden states, layer by layer (TinyBERT, Jiao et al. 2020, section 3.1, eq. 8).

    .. math:: \frac{1}{n} \sum_{(l, m)} \sum_i \frac{1}{d} \left\| W h^s_{l,i} - h^t_{m,i} \right\|^2

    Args:
        student, teacher: hidden states, (batch, length, hidden) of the embeddings and then of each layer. Where the
            teacher has another hidden size, the student's are multiplied by a learned :math:`W` before they come here.
        layers: the pairs of layers that are compared.
        attention_mask: (batch, length), 1 where there is a token, 0 where there is padding.
        count: what to divide the sum over attended tokens by.

    Returns:
        A scalar: the sum over the pairs of the mean over the teacher's hidden size, then over attended tokens.

    Raises:
        ValueError: the hidden sizes differ.
    """
    attended, total = attention_mask.bool(), 0.0
    for own, theirs in layers:
        s, t = student[own + 1][attended], teacher[theirs + 1][attended].detach()
        if s.shape != t.shape:
            raise ValueError(
                f"hidden states of {s.shape[-1]} numbers in the student and {t.shape[-1]} in the teacher: "
                "project the student's first (models.Projection)."
            )
        total = total + (wide(s) - wide(t)).square().mean(dim=-1).sum()
    return mean(total, attended.sum(), count)
