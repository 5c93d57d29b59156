"""Engine, callbacks, runner and checkpoints, in the runs that they are made for."""

import copy
import json
import subprocess
import sys
import warnings

import datasets
import pytest
import torch
from catalyst import dl
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DistilBertForMaskedLM

from helpers import callbacks, data, losses, models, training
from helpers.catalyst_today import checkpoints, saving, steps
from helpers.catalyst_today.engine import Engine, default_precision
from helpers.runner import DistilMLMRunner, MaskedLMRunner

WEIGHTS = {"kl": 0.5, "mlm": 0.3, "cosine": 0.15, "mse": 0.05}


@pytest.fixture
def tiny(tiny):
    """The tiny teacher with a head that counts as trained."""
    teacher, tokenizer = tiny
    torch.manual_seed(0)
    with torch.no_grad():
        weight = teacher.cls.predictions.transform.dense.weight
        weight += 0.01 * torch.randn_like(weight)
    return teacher, tokenizer


@pytest.fixture
def loaders(tiny, sentences):
    return data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=3, steps_per_epoch=6, valid_masks=10**6)


def run(tiny, loaders, engine, logdir, **changes):
    """Distil a student of layers 0 and 3; return (student, teacher, history)."""
    teacher, _ = tiny
    student = models.extract_student(teacher, [0, 3])
    options = {"epochs": 3, "learning_rate": 5e-3, "loss_weights": WEIGHTS, "temperature": 2.0, "seed": 0} | changes
    history = training.distill(teacher, student, loaders, engine=engine, logdir=logdir, **options)
    return student, teacher, history


def weights_equal(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_distillation_brings_the_student_closer_to_the_teacher(tiny, sentences, engine, tmp_path):
    loaders = data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=16, steps_per_epoch=20)
    options = {"epochs": 4, "loss_weights": {"kl": 0.8, "cosine": 0.2}}
    extracted = run(tiny, loaders, engine, tmp_path / "still", **options | {"learning_rate": 1e-12})[2]
    _, _, history = run(tiny, loaders, engine, tmp_path / "trained", **options)
    assert [v["step"] for v in history.validations] == [20, 40, 60, 80]
    assert [s["step"] for s in history.steps] == list(range(1, 81))
    assert history.validations[-1]["kl"] < 0.6 * extracted.validations[0]["kl"]
    assert history.validations[-1]["cosine"] < 0.6 * extracted.validations[0]["cosine"]


def test_a_run_without_its_backward_pass_learns_nothing(tiny, loaders, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(dl.BackwardCallback, "on_batch_end", lambda self, runner: None)
    student, teacher, history = run(tiny, loaders, engine, tmp_path)
    assert weights_equal(student, models.extract_student(teacher, [0, 3]))
    assert history.validations[-1]["kl"] == history.validations[0]["kl"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny, loaders, engine, tmp_path):
    one, _, first = run(tiny, loaders, engine, tmp_path / "1")
    two, _, second = run(tiny, loaders, engine, tmp_path / "2")
    other, _, _ = run(tiny, loaders, engine, tmp_path / "3", seed=1)
    assert weights_equal(one, two)
    assert first.steps == second.steps
    assert first.validations == second.validations
    assert not weights_equal(one, other)


def test_an_engine_keeps_its_precision_and_device_when_another_one_is_made():
    """As in notebook 03, whose first engine has the GPU and scores after a second one in float32 on the processor."""
    first = Engine("bf16")
    before = {name: vars(first.state)[name] for name in ("device", "_mixed_precision", "num_processes")}
    second = Engine("no", cpu=True)
    assert (first.mixed_precision, second.mixed_precision) == ("bf16", "no")
    assert second.state.__dict__ is not first.state.__dict__
    assert {name: vars(first.state)[name] for name in before} == before


def test_any_seed_fits_into_what_numpy_takes_and_small_ones_are_as_ever():
    assert [training.run_seed(seed) for seed in (0, 1, 2, 99_991)] == [0, 10_000, 20_000, 999_910_000]
    large = [429_496, 429_497, 429_498, 20_240_501, 2**32, 2**63, 2**64 - 1]
    made = [training.run_seed(seed) for seed in large]
    assert all(0 <= seed <= 2**32 - 10_000 for seed in made)
    assert min(abs(a - b) for a in made for b in made if a is not b) > 10_000, "no two share the masks of an epoch"
    assert made == [training.run_seed(seed) for seed in large]


def test_a_run_takes_the_largest_seed(tiny, loaders, engine):
    student = models.extract_student(tiny[0], [0, 3])
    options = {"epochs": 1, "learning_rate": 1e-3, "seed": 2**64 - 1, "engine": engine}
    training.distill(tiny[0], student, loaders, loss_weights={"mlm": 1.0}, temperature=1.0, **options)


def test_the_teachers_weights_are_hashed_for_a_logdir_alone(tiny, loaders, engine, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(training, "weights_sha256", lambda model: hashed.append(model) or "0")
    options = {"epochs": 1, "learning_rate": 1e-3, "seed": 0, "engine": engine, "temperature": 1.0}
    student = models.extract_student(tiny[0], [0, 3])
    training.distill(tiny[0], student, loaders, loss_weights={"mlm": 1.0}, **options)
    assert hashed == []
    training.distill(tiny[0], student, loaders, loss_weights={"mlm": 1.0}, logdir=tmp_path / "logs", **options)
    assert tiny[0] in hashed


def test_the_teacher_is_frozen_in_eval_mode_and_without_gradients(tiny, loaders, engine, tmp_path, monkeypatch):
    seen = []
    handle_batch = DistilMLMRunner.handle_batch

    def watched(self, batch):
        handle_batch(self, batch)
        teacher, student = self.model["teacher"], self.model["student"]
        seen.append((self.is_train_loader, any(m.training for m in teacher.modules()), student.training))
        assert not self.batch["t_logits"].requires_grad
        assert not any(hidden.requires_grad for hidden in self.batch["t_hidden_states"])
        assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())

    monkeypatch.setattr(DistilMLMRunner, "handle_batch", watched)
    before = {name: weight.clone() for name, weight in tiny[0].state_dict().items()}
    _, teacher, _ = run(tiny, loaders, engine, tmp_path)
    assert {(train, student) for train, _, student in seen} == {(True, True), (False, False)}
    assert not any(teacher_training for _, teacher_training, _ in seen)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_autocast_reaches_both_models(tiny, loaders, tmp_path, monkeypatch):
    seen = set()
    head = models.MaskedPositionLM.head

    def watched(self, hidden):
        logits = head(self, hidden)
        seen.add((type(self.model).__name__, logits.dtype))
        return logits

    monkeypatch.setattr(models.MaskedPositionLM, "head", watched)
    run(tiny, loaders, Engine("bf16", cpu=True), tmp_path / "bf16", epochs=1)
    assert seen == {("BertForMaskedLM", torch.bfloat16), ("DistilBertForMaskedLM", torch.bfloat16)}
    seen.clear()
    # A second engine of another precision in the same process.
    run(tiny, loaders, Engine("no", cpu=True), tmp_path / "fp32", epochs=1)
    assert seen == {("BertForMaskedLM", torch.float32), ("DistilBertForMaskedLM", torch.float32)}


class GradientsCallback(dl.Callback):
    """Keep the student's gradients and the loss of the first step, before clipping."""

    def __init__(self):
        super().__init__(order=dl.CallbackOrder.Backward)

    def on_batch_end(self, runner):
        if runner.is_train_loader and not hasattr(self, "loss"):
            self.batch, self.loss = runner.batch, runner.batch_metrics["loss"].item()
            self.gradients = gradients(runner.model["student"].model)


def gradients(model):
    return torch.cat([parameter.grad.detach().double().flatten() for parameter in model.parameters()])


def plain_step(teacher, student, batch):
    """Loss and gradients of a step from logits at every position, by torch's own losses."""
    masked, attended = batch["labels"] != -100, batch["attention_mask"].bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        t = teacher.eval()(**inputs)
    s = student.train()(**inputs)
    wide = torch.promote_types(s.logits.dtype, torch.float32)
    (s_logits, t_logits) = (output.logits[masked].to(wide) for output in (s, t))
    hidden = [output.hidden_states[-1][attended].to(wide) for output in (s, t)]
    log_q, log_p = (F.log_softmax(logits / 2, dim=-1) for logits in (s_logits, t_logits))
    parts = {
        "kl": 4 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True),
        "mlm": F.cross_entropy(s_logits, batch["labels"][masked]),
        "cosine": F.cosine_embedding_loss(*hidden, torch.ones(len(hidden[0]))),
        "mse": F.mse_loss(s_logits, t_logits),
    }
    loss = sum(WEIGHTS[name] * value for name, value in parts.items())
    student.zero_grad()
    loss.backward()
    return loss.item(), gradients(student)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_gives_the_loss_and_the_gradient_of_the_plain_one(precision, tiny, sentences, tmp_path):
    teacher, tokenizer = tiny
    options = {"max_length": 64, "batch_size": 4, "pack": False, "steps_per_epoch": 1}
    loaders = data.masked_lm_loaders(sentences, tokenizer, **options)
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    student = models.extract_student(teacher, [0, 3])
    start, watch = copy.deepcopy(student), GradientsCallback()
    training.distill(
        teacher,
        student,
        loaders,
        epochs=1,
        learning_rate=1e-3,
        loss_weights=WEIGHTS,
        temperature=2.0,
        seed=0,
        engine=Engine(precision, cpu=True),
        logdir=tmp_path,
        callbacks=[watch],
    )
    assert not watch.batch["attention_mask"].all()
    true_loss, true = plain_step(copy.deepcopy(teacher).double(), copy.deepcopy(start).double(), watch.batch)
    assert watch.loss == pytest.approx(true_loss, rel={"no": 1e-6, "bf16": 1e-3}[precision])
    distance = (watch.gradients - true).norm() / true.norm()
    if precision == "no":
        assert distance < 1e-5
    else:
        # bfloat16 itself is off by more than that: no further than it is in the plain step.
        with torch.autocast("cpu", torch.bfloat16):
            _, plain = plain_step(teacher, copy.deepcopy(start), watch.batch)
        assert distance < 1.1 * (plain - true).norm() / true.norm()
        assert watch.batch["s_logits"].dtype == watch.batch["t_logits"].dtype == torch.bfloat16


def test_loader_metrics_are_those_of_all_tokens(tiny, loaders, engine, tmp_path):
    """Recomputed over the whole validation part at once, from batches of unequal counts."""
    student, teacher, history = run(tiny, loaders, engine, tmp_path)
    assert len({(batch["labels"] != -100).sum().item() for batch in loaders["valid"]}) > 1
    logits, teacher_logits, targets, cosines = [], [], [], []
    small = DataLoader(loaders["valid"].dataset, batch_size=3, collate_fn=loaders["valid"].collate_fn)
    for batch in small:
        with torch.no_grad():
            s, s_hidden = models.MaskedPositionLM(student)(**batch)
            t, t_hidden = models.MaskedPositionLM(teacher)(**batch)
        logits.append(s), teacher_logits.append(t), targets.append(data.masked_targets(batch))
        attended = batch["attention_mask"].bool()
        cosines.append(1 - torch.cosine_similarity(s_hidden[-1][attended], t_hidden[-1][attended], dim=-1))
    s, t, targets = torch.cat(logits).double(), torch.cat(teacher_logits).double(), torch.cat(targets)
    expected = {
        "mlm": losses.masked_lm_loss(s, targets).item(),
        "kl": losses.kl_div_loss(s, t, 2.0).item(),
        "mse": losses.mse_loss(s, t).item(),
        "cosine": torch.cat(cosines).mean().item(),
        "perplexity": losses.perplexity(s, targets).item(),
    }
    expected["loss"] = sum(weight * expected[name] for name, weight in WEIGHTS.items())
    # The run ends with the weights of its best validation.
    best = min(history.validations, key=lambda validation: validation["loss"])
    for name, value in expected.items():
        assert best[name] == pytest.approx(value, rel=1e-5), name


def gradients_of(tiny, engine, folder, monkeypatch, accumulate):
    """Distil in fp32 without dropout; return (gradients at each step before clipping, history, weights)."""
    teacher, tokenizer = tiny
    texts = datasets.Dataset.from_dict({"text": [("ab " * n).strip() + " c" * (n % 3) for n in range(1, 90)]})
    loaders = data.masked_lm_loaders(texts, tokenizer, max_length=32, batch_size=32, steps_per_epoch=3, pack=False)
    student = models.extract_student(teacher, [0, 3])
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients, clip = [], steps.GradientClippingCallback.on_batch_end

    def watched(self, runner):
        if runner.is_train_loader and runner.engine.sync_gradients:
            weights = runner.model["student"].parameters()
            gradients.append(torch.cat([w.grad.flatten().clone() for w in weights if w.grad is not None]))
        clip(self, runner)

    with monkeypatch.context() as patch:
        patch.setattr(steps.GradientClippingCallback, "on_batch_end", watched)
        options = {"epochs": 2, "learning_rate": 1e-3, "loss_weights": WEIGHTS, "temperature": 2.0, "seed": 0}
        history = training.distill(
            teacher, student, loaders, engine=engine, logdir=folder, callbacks=accumulate, **options
        )
    return gradients, history, student


def test_four_times_eight_is_one_times_thirty_two(tiny, engine, tmp_path, monkeypatch):
    whole, history, student = gradients_of(tiny, engine, tmp_path / "1x32", monkeypatch, [])
    counts = []

    class Counts(dl.Callback):
        def on_batch_end(self, runner):
            if runner.is_train_loader:
                counts.append((len(runner.batch["input_ids"]), len(data.masked_targets(runner.batch))))

    parts = [steps.AccumulationCallback(4), Counts(order=1)]
    in_parts, history_in_parts, student_in_parts = gradients_of(tiny, engine, tmp_path / "4x8", monkeypatch, parts)
    assert {rows for rows, _ in counts} == {8}
    assert len({masked for _, masked in counts[:4]}) > 1
    assert len(whole) == len(in_parts) == 6
    assert (whole[0] - in_parts[0]).abs().max() < 1e-6
    assert whole[0].abs().max() > 1e-2
    # The schedule, clipping and what is kept of a step are those of the whole batch as well.
    for one, other in zip(history.steps, history_in_parts.steps, strict=True):
        assert set(one) == set(other)
        assert all(other[key] == pytest.approx(value, rel=1e-4) for key, value in one.items())
    for one, other in zip(history.validations, history_in_parts.validations, strict=True):
        assert all(other[key] == pytest.approx(value, rel=1e-4) for key, value in one.items())
    for (name, one), other in zip(student.named_parameters(), student_in_parts.parameters(), strict=True):
        # Softmax ignores the key biases: their gradient is rounding, which AdamW blows up to full steps.
        assert "k_lin.bias" in name or torch.allclose(one, other, atol=1e-5), name


def test_a_batch_of_fewer_rows_than_parts_still_ends_its_step():
    batch = {key: torch.ones(3, 2, dtype=torch.long) for key in ("input_ids", "attention_mask", "labels")}
    parts = list(steps.micro_batches([batch, batch], 4))
    assert [part["step_ends"] for part in parts] == [False, False, True] * 2
    assert {len(part["input_ids"]) for part in parts} == {1}
    with pytest.raises(ValueError, match="parts is 0"):
        steps.AccumulationCallback(0)


def test_an_exception_amid_a_step_leaves_the_next_run_its_steps(tiny, loaders, engine, tmp_path):
    class Stops(dl.Callback):
        def on_batch_end(self, runner):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        run(tiny, loaders, engine, tmp_path / "1", callbacks=[steps.AccumulationCallback(3), Stops(order=1)])
    assert not engine._models
    student, teacher, _ = run(tiny, loaders, Engine("no", cpu=True), tmp_path / "2")
    assert not weights_equal(student, models.extract_student(teacher, [0, 3]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_at_its_step_and_the_checkpoint_stays(
    tiny, loaders, engine, tmp_path, monkeypatch, value
):
    measure, calls, weights = callbacks.KLDivLossCallback.measure, [], {}

    def spoiled(self, batch, count):
        calls.append(None)
        loss = measure(self, batch, count)
        return loss * value if len(calls) == 9 + len(loaders["valid"]) else loss

    class Watch(dl.Callback):
        def on_epoch_end(self, runner):
            weights["best"] = (tmp_path / "best" / "model.safetensors").read_bytes()

        def on_batch_end(self, runner):
            weights["good"] = runner.model["student"].state_dict()["vocab_projector.bias"].clone()

        def on_exception(self, runner):
            weights["stopped"] = runner.model["student"].state_dict()["vocab_projector.bias"].clone()

    monkeypatch.setattr(callbacks.KLDivLossCallback, "measure", spoiled)
    with pytest.raises(FloatingPointError, match=r"^step 9: the loss is (nan|inf), kl (nan|inf)\. Lower"):
        run(tiny, loaders, engine, tmp_path, callbacks=[Watch(order=200)])
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == weights["best"]
    # Those after step 8: nothing of step 9 reached them.
    assert torch.equal(weights["stopped"], weights["good"])


def test_masked_lm_training_stops_at_a_loss_that_is_no_number(tiny, loaders, engine):
    teacher, _ = tiny
    with torch.no_grad():
        teacher.cls.predictions.bias[7] = float("nan")
    weights = teacher.bert.embeddings.LayerNorm.weight.clone()
    with pytest.raises(FloatingPointError, match=r"^step 1: the loss is nan, mlm nan\. Lower"):
        training.train_masked_lm(teacher, loaders, epochs=1, learning_rate=1e-3, seed=0, engine=engine)
    assert torch.equal(teacher.bert.embeddings.LayerNorm.weight, weights)
    assert not engine._models


def test_a_pair_that_does_not_fit_is_refused_before_training(tiny, tiny_folder, loaders, engine, tmp_path):
    teacher, _ = tiny

    def distil(student, weights, teacher=teacher):
        options = {"epochs": 1, "learning_rate": 1e-3, "temperature": 2.0, "seed": 0}
        training.distill(
            teacher, student, loaders, engine=engine, logdir=tmp_path / "logs", loss_weights=weights, **options
        )

    student = models.extract_student(teacher, [0])
    with pytest.raises(ValueError, match=r"no trained masked-LM head.*ensure_teacher"):
        distil(student, {"kl": 1.0}, models.load_teacher(tiny_folder)[0])
    config = models.student_config(teacher, 1)
    config.vocab_size += 1
    with pytest.raises(ValueError, match=r"vocabulary has \d+ tokens, the teacher's \d+: they have to share"):
        distil(DistilBertForMaskedLM(config), {"mlm": 1.0})
    config = models.student_config(teacher, 1)
    config.dim = 32
    with pytest.raises(ValueError, match="hidden states have 32 numbers, the teacher's 64"):
        distil(DistilBertForMaskedLM(config), {"cosine": 1.0})
    for weights in ({"kld": 1.0}, {"kl": -1.0}, {"kl": float("nan")}, {"kl": 0.0}, {}):
        with pytest.raises(ValueError, match=r"names out of \['attention', 'cosine', 'hidden', 'kl', 'mlm'"):
            distil(student, weights)
    assert not (tmp_path / "logs").exists()


def test_a_traced_student_gives_its_outputs_where_there_is_torch_alone(tiny, loaders, engine, tmp_path):
    file = tmp_path / "traced" / "student.pt2"
    student, _, _ = run(tiny, loaders, engine, tmp_path / "logs", callbacks=[checkpoints.TracingCallback(file)])
    torch.manual_seed(0)
    expected = []
    for rows, length, attended in ((1, 2, 1), (3, 7, 4), (5, 64, 30), (4, 9, 9), (1, 3, 3)):
        ids, mask = torch.randint(0, 50, (rows, length)), torch.ones(rows, length, dtype=torch.long)
        mask[0, attended:] = 0
        with torch.no_grad():
            expected.append((ids, mask, student(input_ids=ids, attention_mask=mask).logits))
    torch.save(expected, tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        f"program = torch.export.load({str(file)!r}).module()\n"
        f"for ids, mask, logits in torch.load({str(tmp_path / 'expected.pt')!r}):\n"
        "    print(ids.shape, (program(ids, mask) - logits).abs().max().item())\n"
        "    assert torch.allclose(program(ids, mask), logits, atol=1e-5)\n"
        "assert not {'helpers', 'transformers', 'catalyst'} & set(sys.modules)\n"
    )
    alone = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr[-3000:]


def test_early_stopping_ends_a_run_that_no_longer_gains(tiny, loaders, engine, tmp_path):
    stop = dl.EarlyStoppingCallback(patience=2, loader_key="valid", metric_key="loss", minimize=True, min_delta=10.0)
    _, _, history = run(tiny, loaders, engine, tmp_path, epochs=6, callbacks=[stop])
    assert [v["step"] for v in history.validations] == [6, 12, 18]


def test_the_rate_kept_of_a_step_is_the_one_it_was_made_with(tiny, loaders, engine, tmp_path, monkeypatch):
    used, step = [], torch.optim.AdamW.step

    def watched(self, closure=None):
        used.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    _, _, history = run(tiny, loaders, engine, tmp_path, callbacks=[steps.AccumulationCallback(2)])
    assert len(used) == 18
    assert [metrics["lr"] for metrics in history.steps] == used


def test_a_student_of_a_distilbert_can_be_distilled_further(tiny, loaders, engine, tmp_path):
    teacher = models.extract_student(tiny[0], [0, 1, 3])
    with torch.no_grad():
        teacher.vocab_transform.weight += 0.01  # a head that was trained
    options = {"epochs": 1, "learning_rate": 1e-3, "temperature": 1.0, "seed": 0, "loss_weights": {"kl": 1.0}}
    student = models.extract_student(tiny[0], [0, 3])
    history = training.distill(teacher, student, loaders, engine=engine, logdir=tmp_path, **options)
    assert history.validations[0]["kl"] > 0


def test_a_metric_of_a_step_with_nothing_masked_spoils_nothing():
    class Share(callbacks.LoaderMeanCallback):
        def measure(self, batch, count):
            return batch["s_logits"].sum() / count

    class Runner:
        engine, is_train_loader, batch_metrics, loader_metrics = Engine("no", cpu=True), False, {}, {}

    share, runner = Share("share"), Runner()
    share.on_loader_start(runner)
    for logits in (torch.zeros(0, 3), torch.ones(2, 3)):
        runner.batch = {"s_logits": logits}
        share.on_batch_end(runner)
    share.on_loader_end(runner)
    assert runner.loader_metrics["share"] == 3


def test_a_run_leaves_nothing_with_its_engine(tiny, loaders, engine, tmp_path):
    run(tiny, loaders, engine, tmp_path, epochs=1)
    assert not engine._models
    assert not engine._optimizers


def test_with_and_without_a_teacher_the_same_seed_gives_the_same_batches(tiny, loaders, engine, tmp_path, monkeypatch):
    """Dropout and masks draw from one generator: a mix of losses that drew more would change the masks."""
    read = {"mlm": [], "kl": []}

    for name, runner in (("mlm", MaskedLMRunner), ("kl", DistilMLMRunner)):

        def watched(self, batch, name=name, handle_batch=runner.handle_batch):
            if self.is_train_loader:
                read[name].append(batch["input_ids"].clone())
            handle_batch(self, batch)

        monkeypatch.setattr(runner, "handle_batch", watched)
    run(tiny, loaders, engine, tmp_path, loss_weights={"kl": 1.0})
    student, options = models.extract_student(tiny[0], [0, 3]), {"epochs": 3, "learning_rate": 5e-3, "seed": 0}
    training.train_masked_lm(student, loaders, engine=engine, **options)
    assert len(read["kl"]) == 18
    assert all(torch.equal(one, other) for one, other in zip(read["kl"], read["mlm"], strict=True))


def test_each_step_adds_up_and_clips(tiny, loaders, engine, tmp_path, monkeypatch):
    norms = []
    step = dl.OptimizerCallback.on_batch_end

    def watched(self, runner):
        if runner.is_train_loader:
            grads = [p.grad for p in steps.prepared_model(runner).parameters() if p.grad is not None]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
        step(self, runner)

    monkeypatch.setattr(dl.OptimizerCallback, "on_batch_end", watched)
    _, _, history = run(tiny, loaders, engine, tmp_path, loss_weights={"mlm": 30.0})
    for metrics, norm in zip(history.steps, norms, strict=True):
        assert metrics["loss"] == pytest.approx(30 * metrics["mlm"], rel=1e-6)
        assert metrics["gradient_norm"] > 1
        assert norm == pytest.approx(1, abs=1e-3)


def test_a_loss_without_weight_is_not_computed():
    assert list(training.masked_lm_measures({"mlm": 1.0, "kl": 0.0}, 2.0)) == ["mlm", "loss", "perplexity"]


def test_best_and_last_student_are_kept_and_the_best_is_used(tiny, loaders, engine, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0])
    saved = {}
    on_epoch_end = checkpoints.CheckpointCallback.on_epoch_end

    def scored(self, runner):
        runner.epoch_metrics["valid"]["loss"] = next(scores)
        on_epoch_end(self, runner)
        saved[runner.epoch_step] = {k: v.clone() for k, v in runner.model["student"].state_dict().items()}

    monkeypatch.setattr(checkpoints.CheckpointCallback, "on_epoch_end", scored)
    student, _, _ = run(tiny, loaders, engine, tmp_path)
    for name, weight in load_file(tmp_path / "best" / "model.safetensors").items():
        assert torch.equal(weight, saved[2][name])
    for name, weight in load_file(tmp_path / "last" / "model.safetensors").items():
        assert torch.equal(weight, saved[3][name])
    assert all(torch.equal(weight, saved[2][name]) for name, weight in student.state_dict().items())
    assert json.loads((tmp_path / "best" / "config.json").read_text())["model_type"] == "distilbert"


def test_a_write_that_fails_leaves_what_was_there(tiny, tmp_path):
    student = models.extract_student(tiny[0], [0])
    saving.save_folder(tmp_path / "kept", student)
    before = (tmp_path / "kept" / "model.safetensors").read_bytes()

    class Dies:
        def save_pretrained(self, folder):
            models.extract_student(tiny[0], [1]).save_pretrained(folder)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        saving.save_folder(tmp_path / "kept", Dies())
    assert (tmp_path / "kept" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_masked_lm_training_trains_all_of_the_model_quietly(tiny, loaders, engine):
    teacher, _ = tiny
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        history = training.train_masked_lm(teacher, loaders, epochs=3, learning_rate=5e-3, seed=0, engine=engine)
    # Type 1, positions beyond the rows' length and the key biases, which softmax ignores, get no gradient to speak of.
    assert not torch.equal(before["bert.embeddings.word_embeddings.weight"], teacher.get_input_embeddings().weight)
    changed = {name for name, weight in teacher.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == set(before)
    assert history.validations[-1]["loss"] < history.validations[0]["loss"]


def test_masked_lm_runners_validation_is_over_all_tokens(tiny, loaders, engine):
    teacher, _ = tiny
    history = training.train_masked_lm(teacher, loaders, epochs=1, learning_rate=1e-3, seed=0, engine=engine)
    with torch.no_grad():
        parts = [
            (models.MaskedPositionLM(teacher)(**batch)[0], data.masked_targets(batch)) for batch in loaders["valid"]
        ]
    whole = losses.masked_lm_loss(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    assert history.validations[0]["loss"] == pytest.approx(whole.item(), rel=1e-5)


def test_progress_leaves_one_line_a_validation(tiny, loaders, engine, tmp_path, capsys):
    run(tiny, loaders, engine, tmp_path, epochs=2)
    shown = [line.split("\r")[-1].rstrip() for line in capsys.readouterr().out.split("\n")]
    shown = [line for line in shown if line]
    assert [line.split(",")[0] for line in shown] == ["step    6", "step   12"]


def test_engine_reduces_metrics_to_floats(engine):
    assert engine.mean_reduce_ddp_metrics({"a": torch.tensor(1.5), "b": 2}) == {"a": 1.5, "b": 2.0}


def test_engine_says_what_it_chose(capsys):
    chosen, reason = default_precision()
    engine = Engine()
    assert engine.mixed_precision == chosen
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_engine_leaves_a_models_outputs_as_autocast_gives_them(precision, dtype):
    engine = Engine(precision, cpu=True)
    model = torch.nn.Linear(4, 3)
    for _ in range(2):  # preparing again changes nothing
        prepared = engine.prepare(model)
        assert prepared(torch.ones(2, 4)).dtype == dtype
    assert engine.unwrap_model(prepared, keep_fp32_wrapper=False)(torch.ones(2, 4)).dtype == torch.float32
