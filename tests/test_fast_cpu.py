"""What stands in for torch's own on a processor computes the same, and leaves nothing behind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.catalyst_today import fast_cpu
from helpers.models import extract_student


def test_dropout_keeps_its_share_and_the_mean_and_its_gradient_is_its_mask():
    torch.manual_seed(0)
    x = torch.full((1000, 1003), 2.0, requires_grad=True)
    y = fast_cpu.dropout(x, 0.1)
    kept = y != 0
    # A share of a million draws has a standard error of 0.0003.
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.0015)
    assert y[kept].unique().tolist() == [pytest.approx(2 / 0.9, rel=1e-5)]
    assert y.mean().item() == pytest.approx(2, abs=0.003)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / 2)


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.97])
def test_dropout_draws_each_number_by_itself(probability):
    torch.manual_seed(0)
    kept = (fast_cpu.dropout(torch.ones(400, 1000), probability) != 0).double()
    assert kept.mean().item() == pytest.approx(1 - probability, abs=0.003)
    for step in (1, 2, 3, 4):  # four numbers come from one draw
        neighbours = torch.corrcoef(torch.stack([kept[:, :-step].flatten(), kept[:, step:].flatten()]))
        assert abs(neighbours[0, 1].item()) < 0.008


def test_dropout_in_bfloat16_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(2000, 2000).bfloat16()
    # The scale rounded to bfloat16 would be 0.16 % too small.
    assert fast_cpu.dropout(x, 0.1).double().mean().item() == pytest.approx(x.double().mean().item(), rel=6e-4)


def test_attention_drops_probabilities_in_training_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 40, 2, 50, 8)
    value = torch.eye(50).expand(40, 2, 50, 50)  # so that the output is the probabilities
    layer = nn.Module()
    layer.is_causal = False  # as BERT's and DistilBERT's say of themselves
    kept, _ = fast_cpu.attention(layer.eval(), query, key, value, None, dropout=0.0)
    dropped, _ = fast_cpu.attention(layer.train(), query, key, value, None, dropout=0.3)
    zero = dropped == 0
    assert not (kept == 0).any()
    assert zero.float().mean().item() == pytest.approx(0.3, abs=0.005)
    torch.testing.assert_close(dropped[~zero], kept[~zero] / 0.7, rtol=1e-4, atol=1e-7)


def test_an_attention_that_was_chosen_stays(tiny):
    student = extract_student(tiny[0], [0])
    student.set_attn_implementation("eager")
    with fast_cpu.fast_training(student):
        assert student.config._attn_implementation == "eager"
    assert student.config._attn_implementation == "eager"


def test_dropout_comes_from_the_seed():
    x = torch.ones(5, 7)
    torch.manual_seed(3)
    first = fast_cpu.dropout(x, 0.5)
    second = fast_cpu.dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(fast_cpu.dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_agrees_with_torchs_in_float64(dtype, precision, padded):
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 9, 8, generator=generator).to(dtype).double().requires_grad_() for _ in range(3)]
    ours = [x.detach().to(dtype).requires_grad_() for x in exact]
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[1, :, :, 6:] = False
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask if padded else None).transpose(1, 2)
    output, _ = fast_cpu.attention(nn.Module().train(), *ours, mask if padded else None, dropout=0.0, scaling=None)
    assert output.dtype == dtype
    slope = torch.randn(output.shape, generator=generator).to(dtype)
    output.backward(slope)
    expected.backward(slope.double())
    pairs = [(output, expected), *((x.grad, y.grad) for x, y in zip(ours, exact, strict=True))]
    for found, true in pairs:
        assert ((found - true).norm() / true.norm()).item() < precision


def test_a_model_trains_with_them_meanwhile_and_is_afterwards_as_it_was(tiny):
    teacher, tokenizer = tiny
    student = extract_student(teacher, [0, 2])
    inputs = tokenizer(["The film was good.", "It was not."], padding=True, return_tensors="pt")
    before = student(**inputs).logits
    assert not inputs["attention_mask"].bool().all()

    def without_dropout():
        student.train()
        for module in student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return student(**inputs).logits

    plain = without_dropout()
    with fast_cpu.fast_training(student):
        assert student.config._attn_implementation == fast_cpu.ATTENTION
        assert {type(m) for m in student.modules() if isinstance(m, nn.Dropout)} == {fast_cpu.Dropout}
        attended = inputs["attention_mask"].bool()
        torch.testing.assert_close(without_dropout()[attended], plain[attended], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(student.eval()(**inputs).logits[attended], before[attended])
    assert student.config._attn_implementation == "sdpa"
    assert {type(m) for m in student.modules() if isinstance(m, nn.Dropout)} == {nn.Dropout}
    torch.testing.assert_close(student(**inputs).logits[attended], before[attended])
