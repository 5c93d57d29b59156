"""Each loss against a reference written out in float64, against torch's own, and by gradcheck."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from helpers import losses


def tensors(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=dtype) * 2 for shape in shapes]


def softmax(row, temperature=1.0):
    exps = [math.exp(x / temperature) for x in row]
    return [e / sum(exps) for e in exps]


def test_masked_lm_loss():
    (logits,) = tensors((4, 7))
    targets = torch.tensor([0, 6, 3, 3])
    expected = -sum(math.log(softmax(row)[t]) for row, t in zip(logits.tolist(), targets.tolist(), strict=True)) / 4
    assert losses.masked_lm_loss(logits, targets).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(losses.masked_lm_loss(logits, targets), F.cross_entropy(logits, targets))
    assert losses.perplexity(logits, targets).item() == pytest.approx(math.exp(expected), rel=1e-12)
    assert gradcheck(lambda x: losses.masked_lm_loss(x, targets), logits.requires_grad_())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kl_div_loss(temperature):
    student, teacher = tensors((3, 6), (3, 6))
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(s, temperature), softmax(t, temperature)
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected *= temperature**2 / 3
    assert losses.kl_div_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)
    own = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher / temperature),
        torch.distributions.Categorical(logits=student / temperature),
    )
    torch.testing.assert_close(losses.kl_div_loss(student, teacher, temperature), own.mean() * temperature**2)
    assert gradcheck(lambda x: losses.kl_div_loss(x, teacher, temperature), student.requires_grad_())


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_parts_of_a_step_add_up_to_the_loss_of_the_whole(cut):
    torch.manual_seed(0)
    s, t, targets = torch.randn(5, 7), torch.randn(5, 7), torch.tensor([1, 0, 6, 2, 2])
    hidden = torch.randn(2, 3, 5, 4).unbind(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    rows = min(cut, 2)
    for whole, parts in (
        (losses.masked_lm_loss(s, targets), [losses.masked_lm_loss(s[p], targets[p], 5) for p in _cuts(cut)]),
        (losses.kl_div_loss(s, t, 2.0), [losses.kl_div_loss(s[p], t[p], 2.0, torch.tensor(5)) for p in _cuts(cut)]),
        (losses.mse_loss(s, t), [losses.mse_loss(s[p], t[p], 5) for p in _cuts(cut)]),
        (
            losses.cosine_loss(*hidden, mask),
            [losses.cosine_loss(hidden[0][p], hidden[1][p], mask[p], mask.sum()) for p in _cuts(rows)],
        ),
    ):
        assert sum(parts) == pytest.approx(whole.item(), rel=1e-5)


def _cuts(cut):
    return slice(None, cut), slice(cut, None)


def test_temperature_squared_keeps_the_gradients_size():
    # Hinton et al. 2015, section 2: without the factor the gradient would shrink as 1 / T^2.
    student, teacher = tensors((5, 50), (5, 50))
    sizes = []
    for temperature in (20.0, 200.0):
        x = student.clone().requires_grad_()
        losses.kl_div_loss(x, teacher, temperature).backward()
        sizes.append(x.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_cosine_loss():
    student, teacher = tensors((2, 3, 5), (2, 3, 5))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    values = []
    for row, column in ((0, 0), (0, 1), (1, 0)):
        a, b = student[row, column].tolist(), teacher[row, column].tolist()
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        values.append(1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
    assert losses.cosine_loss(student, teacher, mask).item() == pytest.approx(sum(values) / 3, rel=1e-12)
    kept = mask.bool()
    own = F.cosine_embedding_loss(student[kept], teacher[kept], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(losses.cosine_loss(student, teacher, mask), own, rtol=1e-7, atol=1e-9)
    assert gradcheck(lambda x: losses.cosine_loss(x, teacher, mask), student.requires_grad_())


def test_cosine_loss_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \(1, 2, 4\)"):
        losses.cosine_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.ones(1, 2))


def test_mse_loss():
    student, teacher = tensors((3, 4), (3, 4))
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / 12
    assert losses.mse_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(losses.mse_loss(student, teacher), F.mse_loss(student, teacher))
    assert gradcheck(lambda x: losses.mse_loss(x, teacher), student.requires_grad_())


def test_each_is_zero_for_a_student_that_is_its_teacher():
    (logits,) = tensors((3, 6))
    (hidden,) = tensors((2, 3, 5))
    assert losses.kl_div_loss(logits, logits, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert losses.mse_loss(logits, logits).item() == 0
    assert losses.cosine_loss(hidden, hidden, torch.ones(2, 3)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.masked_lm_loss(x[0], torch.empty(0, dtype=torch.int64)),
        lambda x: losses.kl_div_loss(x[0], torch.empty(0, 7), 2.0),
        lambda x: losses.mse_loss(x[0], torch.empty(0, 7)),
        lambda x: losses.cosine_loss(x[1], torch.ones(1, 2, 3), torch.zeros(1, 2)),
    ],
    ids=["mlm", "kl", "mse", "cosine"],
)
def test_nothing_masked_is_zero_and_backpropagates(loss):
    inputs = [torch.empty(0, 7, requires_grad=True), torch.ones(1, 2, 3, requires_grad=True)]
    value = loss(inputs)
    assert value.item() == 0
    value.backward()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: losses.kl_div_loss(s, t, 2.0),
        losses.mse_loss,
        lambda s, t: losses.cosine_loss(s[None], t[None], torch.ones(1, len(s))),
    ],
    ids=["kl", "mse", "cosine"],
)
def test_bfloat16_is_added_up_in_float32_and_the_teacher_gets_no_gradient(loss):
    student, teacher = (x.bfloat16().requires_grad_() for x in tensors((40, 3000), (40, 3000), dtype=torch.float32))
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    exact = loss(student.detach().double(), teacher.detach().double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-3)
    value.backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
@pytest.mark.parametrize("name", ["mlm", "kl", "mse"])
def test_losses_of_logits_agree_with_autograd_in_float64(name, rows_at_once, monkeypatch):
    student, teacher = (x.bfloat16() for x in tensors((40, 300), (40, 300), dtype=torch.float32))
    targets = torch.arange(40) * 7
    monkeypatch.setitem(losses.BYTES_AT_ONCE, "cpu", rows_at_once * 300 * 4)

    def reference(s, t):
        if name == "mlm":
            return F.cross_entropy(s, targets)
        if name == "mse":
            return F.mse_loss(s, t)
        return 4 * F.kl_div((s / 2).log_softmax(-1), (t / 2).log_softmax(-1), reduction="batchmean", log_target=True)

    ours = {
        "mlm": lambda s, t: losses.masked_lm_loss(s, targets),
        "kl": lambda s, t: losses.kl_div_loss(s, t, 2.0),
        "mse": losses.mse_loss,
    }[name]
    exact = student.double().requires_grad_()
    expected = 0.37 * reference(exact, teacher.double())
    expected.backward()
    # A bfloat16 gradient is rounded where it is made and where it is scaled, each time by 2^-9 at most.
    for dtype, precision in ((torch.bfloat16, 2**-8), (torch.float32, 1e-6), (torch.float64, 1e-12)):
        x = student.clone().to(dtype).requires_grad_()
        loss = 0.37 * ours(x, teacher.to(dtype))
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=min(precision, 1e-5))
        assert x.grad.dtype == dtype
        assert ((x.grad - exact.grad).norm() / exact.grad.norm()).item() < precision


def test_the_divergence_of_sure_distributions_is_finite():
    student, teacher = torch.tensor([[200.0, 0.0, -300.0]]), torch.tensor([[-300.0, 0.0, 200.0]])
    # All of the teacher's mass is on the last token, to which the student gives exp(-500).
    assert losses.kl_div_loss(student, teacher).item() == pytest.approx(500)
    assert losses.masked_lm_loss(student, torch.tensor([2])).item() == pytest.approx(500)


def test_a_scaled_float16_gradient_keeps_what_float16_alone_could_not_hold():
    logits = torch.tensor([[18.0, 0.0, 0.0]], dtype=torch.float16, requires_grad=True)
    scale = 2.0**14
    (scale * losses.masked_lm_loss(logits, torch.tensor([0]))).backward()
    probability = math.exp(-18) / (1 + 2 * math.exp(-18))  # 1.5e-8, a quarter of float16's smallest number
    assert logits.grad[0, 1:].tolist() == pytest.approx([scale * probability] * 2, rel=1e-3)


@pytest.mark.parametrize("rows", [0, 3])
def test_losses_of_logits_refuse_another_number_of_rows(rows):
    logits, other = torch.zeros(rows, 5), torch.zeros(4, 5)
    for loss in (losses.kl_div_loss, losses.mse_loss):
        with pytest.raises(ValueError, match=f"{rows} rows of logits and 4 rows"):
            loss(logits, other)
    with pytest.raises(ValueError, match=f"{rows} rows of logits and 4 rows"):
        losses.masked_lm_loss(logits, torch.zeros(4, dtype=torch.int64))
