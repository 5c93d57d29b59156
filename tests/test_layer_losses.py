"""The losses between layers: against loops in float64, by gradcheck, from models by hooks, and in whole runs."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from helpers import callbacks, data, losses, models, training
from helpers.catalyst_today import checkpoints
from helpers.catalyst_today.steps import AccumulationCallback

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
ATTENDED = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
"""The attended tokens of `MASK`: five queries, in rows of three and two tokens."""
RELATION_HEADS = 2
LAYERS = [(0, 1), (2, 3)]


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.fixture
def qkv():
    """Student with 3 heads of 2, teacher with 2 heads of 4: two relation heads of 3 and of 4."""
    states = tensors(*[(2, 3, 4, 2)] * 3, *[(2, 2, 4, 4)] * 3)
    return tuple(states[:3]), tuple(states[3:])


def of_token(states, row, token):
    """All widths of a token in a row, head after head."""
    return [x for head in states[row].tolist() for x in head[token]]


def relation(states, row, query, head):
    """The distribution over the row's attended tokens that one relation head gives one query."""
    tokens = [token for own, token in ATTENDED if own == row]
    size = len(of_token(states, row, 0)) // RELATION_HEADS
    part = {token: of_token(states, row, token)[head * size : (head + 1) * size] for token in tokens}
    scores = [sum(a * b for a, b in zip(part[query], part[t], strict=True)) / math.sqrt(size) for t in tokens]
    exps = [math.exp(score) for score in scores]
    return [e / sum(exps) for e in exps]


def test_relation_loss(qkv):
    total = 0.0
    for s, t in zip(*qkv, strict=True):
        for row, query in ATTENDED:
            for head in range(RELATION_HEADS):
                p, q = relation(t, row, query, head), relation(s, row, query, head)
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / RELATION_HEADS
    loss = losses.relation_loss(*qkv, MASK, RELATION_HEADS)
    assert loss.item() == pytest.approx(total / len(ATTENDED), rel=1e-12)
    inputs = [x.requires_grad_() for x in qkv[0]]
    assert gradcheck(lambda *student: losses.relation_loss(student, qkv[1], MASK, RELATION_HEADS), inputs)


@pytest.fixture
def layers():
    """From a layer to its query, key and value, of models of 3 and 4 layers, with 2 heads of 3 and of 5."""
    student, teacher = (
        {layer: tuple(tensors(*[(2, 2, 4, width)] * 3, seed=10 * width + layer)) for layer in range(depth)}
        for depth, width in ((3, 3), (4, 5))
    )
    return student, teacher


def test_attention_loss(layers):
    student, teacher = layers
    total = 0.0
    for own, theirs in LAYERS:
        for row, query in ATTENDED:
            keys = [token for r, token in ATTENDED if r == row]
            for head in range(2):
                for key in keys:
                    scores = []
                    for states, layer, width in ((student, own, 3), (teacher, theirs, 5)):
                        q, k, _ = (each[row, head].tolist() for each in states[layer])
                        scores.append(sum(a * b for a, b in zip(q[query], k[key], strict=True)) / math.sqrt(width))
                    total += (scores[0] - scores[1]) ** 2 / len(keys) / 2
    loss = losses.attention_loss(student, teacher, LAYERS, MASK)
    assert loss.item() == pytest.approx(total / len(ATTENDED), rel=1e-12)
    query, key, value = student[2]

    def of_queries_and_keys(query, key):
        return losses.attention_loss(student | {2: (query, key, value)}, teacher, LAYERS, MASK)

    assert gradcheck(of_queries_and_keys, (query.requires_grad_(), key.requires_grad_()))


def test_hidden_loss():
    student, teacher, (weight,) = tensors(*[(2, 4, 3)] * 4), tensors(*[(2, 4, 5)] * 5, seed=1), tensors((5, 3), seed=2)
    total = 0.0
    for own, theirs in LAYERS:
        for row, token in ATTENDED:
            s, t = student[own + 1][row, token].tolist(), teacher[theirs + 1][row, token].tolist()
            projected = [sum(w * x for w, x in zip(line, s, strict=True)) for line in weight.tolist()]
            total += sum((a - b) ** 2 for a, b in zip(projected, t, strict=True)) / 5

    def loss(weight, *student):
        projection = models.Projection(3, 5, seed=0).double()
        projected = torch.func.functional_call(projection, {"weight": weight}, (student,))
        return losses.hidden_loss(projected, teacher, LAYERS, MASK)

    assert loss(weight, *student).item() == pytest.approx(total / len(ATTENDED), rel=1e-12)
    assert gradcheck(loss, [x.requires_grad_() for x in (weight, *student)])


def all_three(student, teacher, mask, count=None):
    """The three losses of dicts with `qkv` and `hidden`, of models of four layers and two heads."""
    return [
        losses.relation_loss(student["qkv"][3], teacher["qkv"][3], mask, 4, count),
        losses.attention_loss(student["qkv"], teacher["qkv"], LAYERS, mask, count),
        losses.hidden_loss(student["hidden"], teacher["hidden"], LAYERS, mask, count),
    ]


def inside(seed, rows=2, length=4):
    hidden = tensors(*[(rows, length, 8)] * 5, seed=seed)
    qkv = {layer: tuple(tensors(*[(rows, 2, length, 4)] * 3, seed=seed + layer)) for layer in range(4)}
    return {"hidden": hidden, "qkv": qkv}


def changed(what, change):
    return {
        "hidden": [change(x) for x in what["hidden"]],
        "qkv": {
            layer: tuple(change(x.transpose(1, 2)).transpose(1, 2) for x in qkv) for layer, qkv in what["qkv"].items()
        },
    }


def test_padding_counts_for_nothing():
    student, teacher = inside(1), inside(100)
    expected = all_three(student, teacher, MASK)

    def noisy(states):
        """(batch, length, ...) with other numbers where there is padding."""
        return torch.where(MASK.bool().view(2, 4, *[1] * (states.dim() - 2)), states, 1000 * torch.rand_like(states))

    torch.testing.assert_close(all_three(changed(student, noisy), changed(teacher, noisy), MASK), expected)
    # Nor does it matter that there is any: the row of two tokens by itself, and its longest neighbour.
    short = [changed(each, lambda states: states[1:, :2]) for each in (student, teacher)]
    long = [changed(each, lambda states: states[:1, :3]) for each in (student, teacher)]
    parts = zip(all_three(*short, torch.ones(1, 2)), all_three(*long, torch.ones(1, 3)), strict=True)
    torch.testing.assert_close([(2 * a + 3 * b) / 5 for a, b in parts], expected)


@pytest.mark.parametrize("cut", [0, 1])
def test_parts_of_a_step_add_up_to_the_loss_of_the_whole(cut):
    student, teacher = inside(1), inside(100)
    whole, added = all_three(student, teacher, MASK), [0.0] * 3
    for part in (slice(None, cut), slice(cut, None)):
        own = [changed(each, lambda states, part=part: states[part]) for each in (student, teacher)]
        added = [a + b for a, b in zip(added, all_three(*own, MASK[part], MASK.sum()), strict=True)]
    torch.testing.assert_close(added, whole)


def test_each_is_zero_for_a_student_that_is_its_teacher_and_the_teacher_gets_no_gradient():
    student, teacher = inside(1), inside(1)
    for each in (student, teacher):
        for tensor in (*each["hidden"], *(x for qkv in each["qkv"].values() for x in qkv)):
            tensor.requires_grad_()
    same = [
        losses.relation_loss(student["qkv"][3], teacher["qkv"][3], MASK, 4),
        losses.attention_loss(student["qkv"], teacher["qkv"], [(1, 1), (3, 3)], MASK),
        losses.hidden_loss(student["hidden"], teacher["hidden"], [(1, 1), (3, 3)], MASK),
    ]
    assert [loss.item() for loss in same] == pytest.approx([0, 0, 0], abs=1e-12)
    sum(all_three(student, teacher, MASK)).backward()
    assert student["hidden"][3].grad.abs().sum() > 0
    assert teacher["hidden"][4].grad is None
    assert all(tensor.grad is None for qkv in teacher["qkv"].values() for tensor in qkv)


def test_nothing_attended_is_zero_and_backpropagates():
    student, teacher = inside(1), inside(100)
    for tensor in (student["hidden"][3], *student["qkv"][3], *student["qkv"][2]):
        tensor.requires_grad_()
    for loss in all_three(student, teacher, torch.zeros(2, 4)):
        assert loss.item() == 0
        loss.backward()


def test_bfloat16_is_added_up_in_float32():
    student, teacher = (changed(inside(seed, 8, 40), torch.Tensor.bfloat16) for seed in (1, 100))
    mask = torch.ones(8, 40)
    with torch.autocast("cpu", torch.bfloat16):
        ours = all_three(student, teacher, mask)
    exact = all_three(*(changed(each, torch.Tensor.double) for each in (student, teacher)), mask)
    assert {loss.dtype for loss in ours} == {torch.float32}
    assert [loss.item() for loss in ours] == pytest.approx([loss.item() for loss in exact], rel=1e-5)


def test_shapes_that_do_not_fit_are_named(qkv):
    with pytest.raises(ValueError, match="4 relation heads: the student's width of 6 cannot be cut"):
        losses.relation_loss(*qkv, MASK, 4)
    with pytest.raises(ValueError, match="3 attention heads in the student and 2 in the teacher"):
        losses.attention_loss({0: qkv[0]}, {0: qkv[1]}, [(0, 0)], MASK)
    with pytest.raises(ValueError, match="hidden states of 3 numbers in the student and 5 in the teacher"):
        losses.hidden_loss(tensors(*[(2, 4, 3)] * 2), tensors(*[(2, 4, 5)] * 2), [(0, 0)], MASK)


@pytest.mark.parametrize(
    ("depths", "pairs"),
    [
        ((3, 6), [(0, 1), (1, 3), (2, 5)]),
        ((4, 12), [(0, 2), (1, 5), (2, 8), (3, 11)]),  # TinyBERT's own
        ((2, 2), [(0, 0), (1, 1)]),
        ((2, 3), [(0, 1), (1, 2)]),
        ((1, 6), [(0, 5)]),
    ],
)
def test_uniform_layers(depths, pairs):
    assert losses.uniform_layers(*depths) == pairs


SMALL = {"vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 16}
FAMILIES = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=50, dim=12, n_layers=3, n_heads=3, hidden_dim=16)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=2)
    ),
}


def hooked(model):
    """The linear maps with a forward hook; `transformers` hooks layers for its own ends."""
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module._forward_hooks]


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_are_those_that_the_layer_attends_with(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    ids = torch.randint(3, 50, (2, 5))
    with torch.no_grad(), models.recorded_qkv(model, [0, 2]) as recorded:
        hidden = model.base_model(ids, output_hidden_states=True).hidden_states
    assert set(recorded) == {0, 2}
    assert all(each.shape == (2, 3, 5, 4) for qkv in recorded.values() for each in qkv)
    assert not hooked(model)
    # What the layer that comes third computes of the second's output, written out with its weights.
    layer = model.get_submodule(models.FAMILIES[family].layers)[2]
    before = hidden[2]
    weights = dict(layer.named_parameters())
    if family == "modernbert":
        before = layer.attn_norm(before)
        maps = [(weight, 0) for weight in weights["attn.Wqkv.weight"].split(12)]
    else:
        names = models.FAMILIES[family].queries_keys_values
        maps = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]
    for (weight, bias), given in zip(maps, recorded[2], strict=True):
        expected = before @ weight.T + bias
        for head in range(3):
            torch.testing.assert_close(given[:, head], expected[..., 4 * head : 4 * head + 4])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_attention_probabilities_follow_from_the_recorded_scores(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    model.set_attn_implementation("eager")
    with torch.no_grad(), models.recorded_qkv(model, [1]) as recorded:
        output = model.base_model(torch.randint(3, 50, (2, 5)), output_attentions=True)
    query, key, _ = recorded[1]
    torch.testing.assert_close((query @ key.mT / 2).softmax(-1), output.attentions[1])


# In whole runs


@pytest.fixture
def teacher(tiny):
    with torch.no_grad():
        torch.manual_seed(0)
        tiny[0].cls.predictions.transform.dense.weight += 0.01
    return tiny[0]


@pytest.fixture
def loaders(tiny, sentences):
    return data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=6, steps_per_epoch=5, valid_masks=10**6)


def narrow(teacher, heads=2, dropout=0.1):
    """A student of half the teacher's width, with 3 layers: the default maps leave none of them out."""
    torch.manual_seed(1)
    shape = {"dim": 32, "n_layers": 3, "n_heads": heads, "hidden_dim": 64, "dropout": dropout}
    return DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=teacher.config.vocab_size, max_position_embeddings=64, **shape)
    ).eval()


OPTIONS = {"epochs": 3, "learning_rate": 5e-3, "temperature": 1.0, "seed": 0}


def distil(teacher, student, loaders, engine, weights, **changes):
    return training.distill(teacher, student, loaders, engine=engine, loss_weights=weights, **OPTIONS | changes)


ALL = {"mlm": 0.5, "relation": 0.5, "attention": 0.1, "hidden": 0.5}


def test_what_a_run_measures_is_the_functions_value(teacher, loaders, engine):
    student = narrow(teacher)
    history = distil(teacher, student, loaders, engine, ALL)
    measured = history.validations[-1]
    batch = next(iter(loaders["valid"]))
    rows = {key: torch.cat([each[key] for each in loaders["valid"]]) for key in batch}
    assert history.kept["step"] == 15
    inputs, mask = {key: rows[key] for key in ("input_ids", "attention_mask")}, rows["attention_mask"]
    with torch.no_grad(), models.recorded_qkv(student, range(3)) as s, models.recorded_qkv(teacher, range(4)) as t:
        student.base_model(**inputs)
        teacher.base_model(**inputs)
    expected = losses.relation_loss(s[2], t[3], mask, 2)
    assert measured["relation"] == pytest.approx(expected.item(), rel=1e-4)
    expected = losses.attention_loss(s, t, [(0, 0), (1, 2), (2, 3)], mask)
    assert measured["attention"] == pytest.approx(expected.item(), rel=1e-4)
    assert measured["loss"] == pytest.approx(sum(weight * measured[name] for name, weight in ALL.items()), rel=1e-5)


@pytest.mark.parametrize("name", ["relation", "attention", "hidden"])
def test_each_falls_in_a_run_and_is_zero_for_the_teacher_itself(name, teacher, loaders, engine):
    same = models.extract_student(teacher, [0, 1, 2, 3])
    # A rate of next to nothing: the validation sees the copy as it was.
    history = distil(teacher, same, loaders, engine, {name: 1.0}, epochs=1, learning_rate=1e-12)
    assert history.validations[0][name] == pytest.approx(0, abs=1e-6)
    history = distil(teacher, narrow(teacher), loaders, engine, {name: 1.0})
    values = [validation[name] for validation in history.validations]
    assert values[-1] < 0.9 * values[0]
    assert values == sorted(values, reverse=True)


def projection_of(monkeypatch):
    """The projections that runs are given, a list that grows."""
    made, own = [], training.distillation_models

    def watched(*arguments):
        made.append(own(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "distillation_models", watched)
    return made


def test_the_projection_is_trained_and_clipped_and_not_saved(teacher, loaders, engine, tmp_path, monkeypatch):
    made, norms = projection_of(monkeypatch), []
    clip = engine.clip_grad_norm_

    def watched(weights, most):
        total = clip(weights, most)
        norms.append(torch.cat([each.grad.flatten() for each in weights if each.grad is not None]).norm().item())
        return total

    monkeypatch.setattr(engine, "clip_grad_norm_", watched)
    student = narrow(teacher)
    before = models.Projection(32, 64, 0).weight.clone()
    global_state = torch.get_rng_state()
    assert torch.equal(models.Projection(32, 64, 0).weight, before)
    assert torch.equal(torch.get_rng_state(), global_state)
    distil(teacher, student, loaders, engine, {"hidden": 100.0}, logdir=tmp_path)
    (weight,) = made[0]["projection"].parameters()
    assert weight.shape == (64, 32)
    assert (weight - before).abs().max() > 1e-3
    assert norms == pytest.approx([1.0] * 15, abs=1e-3)  # all that is trained, together
    saved = DistilBertForMaskedLM.from_pretrained(tmp_path / "last")
    assert saved.state_dict().keys() == student.state_dict().keys()


class StoppedError(Exception):
    pass


class StopsAt(callbacks.LoaderMeanCallback):
    def __init__(self, batch):
        super().__init__("stops")
        self.left = batch

    def on_batch_end(self, runner):
        self.left -= runner.is_train_loader
        if self.left == 0:
            raise StoppedError

    def on_loader_end(self, runner):
        pass


def test_a_resumed_run_with_a_projection_ends_as_a_whole_one(teacher, loaders, engine, tmp_path, monkeypatch):
    made = projection_of(monkeypatch)
    monkeypatch.setattr(training, "ResumeCallback", partial(checkpoints.ResumeCallback, seconds=0))
    whole, resumed = narrow(teacher), narrow(teacher)
    expected = distil(teacher, whole, loaders, engine, ALL, logdir=tmp_path / "whole")
    stop = {"callbacks": [StopsAt(13)]}
    with pytest.raises(StoppedError):
        distil(teacher, narrow(teacher), loaders, engine, ALL, logdir=tmp_path / "stopped", **stop)
    assert not hooked(teacher)
    history = distil(teacher, resumed, loaders, engine, ALL, logdir=tmp_path / "stopped")
    assert history.steps == expected.steps
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert torch.equal(made[0]["projection"].weight, made[2]["projection"].weight)


def test_micro_batches_make_the_step_of_the_whole_batch(teacher, loaders, engine, monkeypatch):
    made = projection_of(monkeypatch)
    students = [narrow(teacher, dropout=0.0) for _ in range(2)]
    for student in students:
        student.distilbert.config.attention_dropout = 0.0
        for layer in student.distilbert.transformer.layer:
            layer.attention.dropout.p = 0.0
    parts = [distil(teacher, students[0], loaders, engine, ALL, epochs=1)]
    parts += [distil(teacher, students[1], loaders, engine, ALL, epochs=1, callbacks=[AccumulationCallback(3)])]
    for one, other in zip(*(history.steps for history in parts), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    one, other = (each["projection"].weight for each in made)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ({"relation": 1.0}, {"heads": 5}, "5 relation heads, which does not divide the student's 32 numbers"),
        ({"relation": 1.0}, {"layers": (3, 3)}, "compares layer 3 of the student, which has 0 to 2"),
        ({"attention": 1.0}, {"layers": [(0, 0), (1, 4)]}, "compares layer 4 of the teacher, which has 0 to 3"),
        ({"hidden": 1.0}, {"layers": [(-1, 0)]}, "compares layer -1 of the student, which has 0 to 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_step(
    weights, changes, message, teacher, loaders, engine, tmp_path, monkeypatch
):
    (name,) = weights
    monkeypatch.setitem(callbacks.LOSSES, name, partial(callbacks.LOSSES[name], **changes))
    student = narrow(teacher)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        distil(teacher, student, loaders, engine, weights, logdir=tmp_path / "logs")
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert not (tmp_path / "logs" / "state.pt").exists()


def test_models_that_do_not_fit_are_refused_before_the_first_step(teacher, loaders, engine, monkeypatch):
    with pytest.raises(ValueError, match="the student has 4 attention heads, the teacher 2"):
        distil(teacher, narrow(teacher, heads=4), loaders, engine, {"attention": 1.0})
    with pytest.raises(ValueError, match="32 numbers, the teacher's 64: the cosine loss compares vectors of one size"):
        distil(teacher, narrow(teacher), loaders, engine, {"cosine": 1.0})
    monkeypatch.setattr(
        training,
        "distillation_models",
        lambda teacher, student, *_: {
            "teacher": models.MaskedPositionLM(teacher),
            "student": models.MaskedPositionLM(student),
        },
    )
    with pytest.raises(ValueError, match=r"32 numbers, the teacher's 64: the hidden loss needs a models\.Projection"):
        distil(teacher, narrow(teacher), loaders, engine, {"hidden": 1.0})


def test_attention_refuses_a_modernbert_and_relation_takes_it():
    modern, bert = FAMILIES["modernbert"]().config, BertConfig(**SMALL)
    with pytest.raises(ValueError, match="the teacher is a 'modernbert', which rotates queries and keys"):
        callbacks.AttentionLossCallback().check(bert, modern)
    callbacks.RelationLossCallback().check(bert, modern)


def test_several_processes_need_a_loss_that_reaches_the_head(teacher):
    wrapped = {"teacher": models.MaskedPositionLM(teacher), "student": models.MaskedPositionLM(teacher)}
    engine = SimpleNamespace(num_processes=2, unwrap_model=lambda model: model)
    layers = {"relation": callbacks.RelationLossCallback(), "perplexity": callbacks.PerplexityCallback()}
    for further in ({"kl": callbacks.KLDivLossCallback()}, {"mlm": callbacks.MaskedLanguageModelCallback()}):
        runner = SimpleNamespace(engine=engine, model=wrapped, callbacks=layers | further)
        layers["relation"].on_experiment_start(runner)
    with pytest.raises(ValueError, match="several processes cannot train by relation alone"):
        layers["relation"].on_experiment_start(SimpleNamespace(engine=engine, model=wrapped, callbacks=layers))


def test_a_run_without_these_losses_hooks_nothing(teacher, loaders, engine, monkeypatch):
    monkeypatch.setattr(callbacks.layers, "recorded_qkv", None)
    distil(teacher, narrow(teacher), loaders, engine, {"kl": 0.5, "hidden": 0.5}, epochs=1)
    with pytest.raises(TypeError):
        distil(teacher, narrow(teacher), loaders, engine, {"kl": 0.5, "relation": 0.5}, epochs=1)
