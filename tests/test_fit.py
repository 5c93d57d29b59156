"""The one training run: against a plain loop, stopped and gone on with, and what it leaves behind."""

import math
import os
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from catalyst import dl
from safetensors.torch import load_file
from tensorboardX.proto.event_pb2 import Event, SessionLog
from test_launch import OPTIONS, StoppedError, StopsAt, assert_equal_weights, distil, files
from torch.nn import functional as F

import tiny_teacher
from conftest import ROOT
from helpers import classification, data, models, training
from helpers.catalyst_today import checkpoints, history, steps
from helpers.catalyst_today.engine import Engine
from helpers.runs import experiment

LABELS = ["english", "german", "russian"]


@pytest.fixture(autouse=True)
def _state_after_each_epoch(monkeypatch):
    monkeypatch.setattr(training, "ResumeCallback", partial(checkpoints.ResumeCallback, seconds=0))


@pytest.fixture
def tiny(tiny):
    """The tiny teacher with a head that counts as trained, and its tokenizer."""
    with torch.no_grad():
        tiny[0].cls.predictions.transform.dense.weight += 0.01
    return tiny


@pytest.fixture
def loaders(tiny, sentences):
    return data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=4, steps_per_epoch=5, valid_masks=10**6)


@pytest.fixture
def rows(tiny):
    return data.encode(data.read_labelled(tiny_teacher.SENTENCES, "text", "language"), tiny[1], 32)


def teacher_warnings(teacher, loaders, engine, **weights):
    """What is said of the teacher in a distillation of two validations."""
    student = models.extract_student(teacher, [0, 3])
    options = {"epochs": 2, "learning_rate": 1e-3, "seed": 0, "engine": engine, "temperature": 2.0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.distill(teacher, student, loaders, loss_weights=weights, **options)
    return [str(each.message) for each in caught if "the teacher's perplexity" in str(each.message)]


def test_a_teacher_that_knows_nothing_is_said_once(tiny, loaders, engine):
    teacher, tokenizer = tiny
    counts, nats, tokens = torch.ones(len(tokenizer)), 0.0, 0
    with torch.no_grad():
        for batch in loaders["valid"]:
            logits = teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            nats += F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum").item()
            picked = batch["labels"][batch["labels"] != -100]
            counts.index_add_(0, picked, torch.ones(len(picked)))
            tokens += len(picked)
    expected = math.exp(nats / tokens)
    assert expected > len(tokenizer), "these weights are random"
    (said,) = teacher_warnings(teacher, loaders, engine, kl=0.5, mlm=0.5)
    assert f"is {expected:,.0f}, above the {len(tokenizer)} tokens of its vocabulary." in said
    assert len(teacher_warnings(teacher, loaders, engine, kl=1.0)) == 1, "without the masked-LM loss, too"
    assert not teacher_warnings(teacher, loaders, engine, mlm=1.0), "it is not run"
    with torch.no_grad():  # one that knows how often each token stands there
        teacher.cls.predictions.decoder.weight.zero_()
        teacher.cls.predictions.decoder.bias.copy_(counts.log())
    assert not teacher_warnings(teacher, loaders, engine, kl=0.5, mlm=0.5)


def test_three_steps_are_those_of_a_plain_loop(tiny, sentences, tmp_path):
    """PyTorch's own losses on all logits, its AdamW and its clipping."""
    teacher, tokenizer = tiny
    loaders = data.masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=8, steps_per_epoch=3)
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    student, plain = (models.extract_student(teacher, [0, 3]) for _ in range(2))
    options = {"loss_weights": {"kl": 0.6, "mlm": 0.3, "cosine": 0.1}, "temperature": 2.0, "learning_rate": 2e-3}
    engine = Engine("no", cpu=True)
    training.distill(teacher, student, loaders, epochs=1, seed=0, engine=engine, **options)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    torch.manual_seed(1)  # Catalyst's for epoch 1 of seed 0: the masks come from it
    for batch in loaders["train"]:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            t = teacher(**inputs, output_hidden_states=True)
        s = plain.train()(**inputs, output_hidden_states=True)
        masked, attended = batch["labels"] != -100, batch["attention_mask"].bool()
        log_q, log_p = ((output.logits[masked] / 2).log_softmax(-1) for output in (s, t))
        kl = 4 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        mlm = F.cross_entropy(s.logits[masked], batch["labels"][masked])
        hidden = [output.hidden_states[-1][attended] for output in (s, t)]
        cosine = F.cosine_embedding_loss(*hidden, torch.ones(len(hidden[0])))
        (0.6 * kl + 0.3 * mlm + 0.1 * cosine).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    start = models.extract_student(teacher, [0, 3]).state_dict()
    for name, weight in plain.state_dict().items():
        # Softmax ignores the key biases: their gradient is rounding, which AdamW blows up to full steps.
        if "k_lin.bias" not in name:
            torch.testing.assert_close(student.state_dict()[name], weight, rtol=0, atol=2e-5)
    assert (plain.state_dict()["vocab_projector.bias"] - start["vocab_projector.bias"]).abs().max() > 1e-3


def test_what_is_stopped_before_its_first_state_begins_anew(tiny, loaders, tmp_path):
    whole, _ = distil(tiny, loaders, tmp_path / "whole")
    student = models.extract_student(tiny[0], [0, 3])
    start = {name: weight.clone() for name, weight in student.state_dict().items()}
    run = {"engine": Engine("no", cpu=True), "logdir": tmp_path / "stopped", **OPTIONS}
    in_parts = [steps.AccumulationCallback(2)]
    # In the first step's losses; between its backward pass and its step; between two parts of a batch.
    for further in ([StopsAt(4)], [Interrupts(3, order=1)], [Interrupts(4, order=35)], [*in_parts, Interrupts(3, 100)]):
        with pytest.raises((StoppedError, KeyboardInterrupt)):
            training.distill(tiny[0], student, loaders, callbacks=further, **run)
        assert_equal_weights(start, student.state_dict())
        assert all(weight.grad is None for weight in student.parameters())
    training.distill(tiny[0], student, loaders, **run)
    assert_equal_weights(whole.state_dict(), student.state_dict())


class Interrupts(StopsAt):
    """Ctrl-C in a notebook, among the callbacks of that order."""

    def __init__(self, batch, order):
        super().__init__(batch)
        self.order = order

    def on_batch_end(self, runner):
        try:
            super().on_batch_end(runner)
        except StoppedError:
            raise KeyboardInterrupt from None


def taught(tiny, rows, logdir, rows_of_teacher=None, callbacks=(), **changes):
    """Train a classifier of the student on labels, or on logits; return (classifier, history)."""
    classifier = classification.classifier_of(models.extract_student(tiny[0], [0, 3]), LABELS, 0)
    train = rows if rows_of_teacher is None else rows_of_teacher
    loaders = data.label_loaders(train, train, tiny[1], batch_size=8, steps_per_epoch=5, seed=0)
    options = {"epochs": 4, "learning_rate": 3e-3, "seed": 0, "engine": Engine("no", cpu=True), "logdir": logdir}
    return classifier, classification.train_classifier(classifier, loaders, callbacks=callbacks, **options | changes)


@pytest.mark.parametrize("batch", [3, 13])
def test_a_classifier_that_was_stopped_ends_as_one_that_was_not(tiny, rows, tmp_path, batch):
    whole, measured = taught(tiny, rows, tmp_path / "whole")
    with pytest.raises(StoppedError):
        taught(tiny, rows, tmp_path / "stopped", callbacks=[StopsAt(batch)])
    resumed, again = taught(tiny, rows, tmp_path / "stopped", callbacks=[StopsAt(100)])
    assert_equal_weights(whole.state_dict(), resumed.state_dict())
    assert measured == again
    assert measured.kept["step"] == 20
    csv = "csv_logger/valid.csv"
    assert (tmp_path / "whole" / csv).read_text() == (tmp_path / "stopped" / csv).read_text()
    # It keeps the last weights, whichever validated best, and saves both.
    last = load_file(tmp_path / "whole" / "last" / "model.safetensors")
    assert_equal_weights(dict(whole.state_dict()), last)
    assert (tmp_path / "whole" / "best" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="of another run, with rows"):
        taught(tiny, rows.select(range(20)), tmp_path / "whole")


def test_a_batch_of_texts_in_parts_gives_the_gradient_of_the_whole(tiny, rows, tmp_path):
    """Rows with and without label, and logits to learn from: each loss has a count of its own."""
    tiny[0].config.hidden_dropout_prob = tiny[0].config.attention_probs_dropout_prob = 0.0
    tiny[0].config.classifier_dropout = 0.0
    torch.manual_seed(0)
    labels = [label if number % 3 else -100 for number, label in enumerate(rows["label"])]
    rows = rows.remove_columns("label").add_column("label", labels)
    rows = data.with_teacher_logits(rows, torch.randn(len(rows), len(LABELS)))
    weights = {"labels": 0.5, "kl": 1.0, "mse": 0.3}
    found = []
    for callbacks in ([], [steps.AccumulationCallback(4)]):
        _, measured = taught(tiny, rows, None, callbacks=callbacks, loss_weights=weights, temperature=2.0)
        found.append(measured)
    whole, parts = found
    for one, other in zip(whole.steps, parts.steps, strict=True):
        assert other == {key: pytest.approx(value, rel=1e-3) for key, value in one.items()}
    assert whole.steps[0]["gradient_norm"] > 0.1


def test_early_stopping_remembers_its_patience_and_a_run_that_has_stopped_stays_so(tiny, loaders, tmp_path):
    def stop():
        return dl.EarlyStoppingCallback(
            patience=3, loader_key="valid", metric_key="loss", minimize=True, min_delta=10.0
        )

    whole, measured = distil(tiny, loaders, tmp_path / "whole", callbacks=[stop()], epochs=8)
    assert [validation["step"] for validation in measured.validations] == [5, 10, 15, 20]
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path / "stopped", callbacks=[stop(), StopsAt(13)], epochs=8)
    resumed, again = distil(tiny, loaders, tmp_path / "stopped", callbacks=[stop(), StopsAt(100)], epochs=8)
    assert again == measured
    assert_equal_weights(whole.state_dict(), resumed.state_dict())
    # It has stopped by itself: there is nothing left to do.
    _, third = distil(tiny, loaders, tmp_path / "stopped", callbacks=[stop(), StopsAt(1)], epochs=8)
    assert third == measured


def test_a_refused_run_leaves_nothing(tiny, loaders, tmp_path):
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path / "run", callbacks=[StopsAt(8)])
    before = files(tmp_path / "run")
    with pytest.raises(ValueError, match="of another run"):
        distil(tiny, loaders, tmp_path / "run", learning_rate=1e-3)
    assert not (tmp_path / "run" / "run-2").exists()
    assert {file for file in files(tmp_path / "run") if "tensorboard" not in str(file)} <= set(before)


def test_another_model_of_the_same_shape_makes_another_run(tiny, loaders, tmp_path):
    options = {"epochs": 1, "learning_rate": 5e-3, "seed": 0, "logdir": tmp_path}
    for change in (0.0, 1e-3):
        model = models.extract_student(tiny[0], [0, 3])
        with torch.no_grad():
            model.vocab_transform.bias += change
        if change:
            with pytest.raises(ValueError, match="of a run that started from another model"):
                training.train_masked_lm(model, loaders, engine=Engine("no", cpu=True), **options)
        else:
            training.train_masked_lm(model, loaders, engine=Engine("no", cpu=True), **options)


def test_rows_are_told_apart_by_all_their_columns(rows):
    other = rows.remove_columns("label").add_column("label", [1 - min(label, 1) for label in rows["label"]])
    assert training._rows_sha256(rows) != training._rows_sha256(other)
    plain = [{"input_ids": [1, 2]}, {"input_ids": [3]}]  # whatever has a length and gives dicts of numbers
    assert training._rows_sha256(plain) == training._rows_sha256(list(plain))


def shown(folder):
    """Epochs and losses that TensorBoard shows of a folder: a new file hides what is from its step on in older ones."""
    points = {}
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")  # then a checksum, the event, and another
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.session_log.status == SessionLog.START:
                points = {step: value for step, value in points.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss/epoch":
                    points.setdefault(event.step, []).append(value.simple_value)
    return points


def test_tensorboard_shows_each_epoch_once_where_a_run_repeats_some(tiny, loaders, tmp_path):
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path, callbacks=[StopsAt(8)])
    after_one_epoch = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path, callbacks=[StopsAt(13)])
    assert sorted(shown(tmp_path / "tensorboard" / "valid")) == [1, 2, 3]
    (tmp_path / "state.pt").write_bytes(after_one_epoch)
    _, measured = distil(tiny, loaders, tmp_path)
    points = shown(tmp_path / "tensorboard" / "valid")
    losses = [pytest.approx(validation["loss"]) for validation in measured.validations]
    assert points == {epoch: [loss] for epoch, loss in enumerate(losses, 1)}


def test_a_card_is_of_the_weights_in_its_folder_whatever_rule_chose_them(tiny, loaders, tmp_path, monkeypatch):
    """The third of four validations is the best one."""
    scores = iter([4.0, 3.0, 1.0, 2.0] * 2)
    on_epoch_end = checkpoints.CheckpointCallback.on_epoch_end

    def scored(self, runner):
        runner.epoch_metrics["valid"]["loss"] = next(scores)
        on_epoch_end(self, runner)

    monkeypatch.setattr(checkpoints.CheckpointCallback, "on_epoch_end", scored)
    for keep, step, loss in (("best", 15, 1.0), ("last", 20, 2.0)):
        _, measured = distil(tiny, loaders, tmp_path / keep, keep=keep)
        assert (measured.kept["step"], measured.kept["loss"]) == (step, loss)
        assert "lr" not in measured.kept
    with pytest.raises(ValueError, match="keep is 'first': choose 'best' or 'last'"):
        distil(tiny, loaders, tmp_path / "none", keep="first")


def test_a_head_trained_in_another_precision_is_another(parameters, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    one = experiment.ensure_teacher(parameters)
    assert experiment.ensure_teacher(parameters, Engine("no", cpu=True)).found
    other = experiment.ensure_teacher(parameters, Engine("bf16", cpu=True))
    assert not other.found
    assert one.folder != other.folder
    assert experiment.ensure_teacher(parameters).folder == one.folder


def test_a_run_gives_its_loss_scaler_back_as_it_was():
    engine = Engine("no", cpu=True)
    engine.new_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    engine.free_memory()
    first = engine.scaler
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    first.scale(weight.sum() * float("inf")).backward()  # halves the scale
    first.step(optimizer)
    first.update()
    assert first.get_scale() == 4.0
    engine.free_memory()
    assert engine.scaler.scale(torch.ones(1)).item() == 8.0


def test_a_kernel_that_a_kernel_started_gets_no_widget():
    asks = (
        "import os; from helpers.catalyst_today.history import _is_shown; child = os.fork(); "
        "os.wait() if child else None; print(bool(child), _is_shown(), flush=True); "
        "child or os._exit(0)"  # without Python's farewell, which may wait for threads that a fork does not have
    )
    environment = {**os.environ, "JPY_SESSION_NAME": "a notebook"}
    command = [sys.executable, "-c", asks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["False False", "True True"], "the child's first"
    assert not history._is_shown()


def test_masked_lm_alone_is_a_distillation_without_the_teachers_forward_pass(tiny, loaders, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny[0], "forward", lambda *args, **options: pytest.fail("the teacher was run"))
    monkeypatch.setattr(tiny[0].bert, "forward", lambda *args, **options: pytest.fail("the teacher was run"))
    alone, measured = distil(tiny, loaders, tmp_path, loss_weights={"mlm": 1.0})
    for kept in (*measured.steps, *measured.validations):
        assert kept["loss"] == pytest.approx(kept["mlm"], rel=1e-6)
    assert all(validation["perplexity"] > 1 for validation in measured.validations)
    by_itself = models.extract_student(tiny[0], [0, 3])
    options = {name: OPTIONS[name] for name in ("epochs", "learning_rate", "seed")}
    again = training.train_masked_lm(by_itself, loaders, engine=Engine("no", cpu=True), **options)
    assert_equal_weights(alone.state_dict(), by_itself.state_dict())
    assert again == measured


def test_a_trained_classifier_computes_in_float32_again(tiny, rows):
    classifier, _ = taught(tiny, rows, None, engine=Engine("bf16", cpu=True), epochs=1)
    ids = torch.tensor([[2, 7, 3]])
    assert classifier(ids).logits.dtype == torch.float32
    assert classifier(ids, return_dict=False)[0].dtype == torch.float32
    assert not {"forward", "_original_forward"} & set(vars(classifier))


def test_what_fails_after_the_last_step_costs_no_training(tiny, loaders, tmp_path):
    class Fails(dl.Callback):
        def on_experiment_end(self, runner):
            raise OSError("the network is gone")

    whole, _ = distil(tiny, loaders, None)
    student = models.extract_student(tiny[0], [0, 3])
    run = {"engine": Engine("no", cpu=True), "logdir": None, **OPTIONS}
    with pytest.raises(OSError, match="the network is gone"):
        training.distill(tiny[0], student, loaders, callbacks=[Fails(order=100)], **run)
    assert_equal_weights(whole.state_dict(), student.state_dict())


def test_what_a_caller_tells_a_run_by_counts(tiny, loaders, tmp_path):
    distil(tiny, loaders, tmp_path, settings={"mine": 1})
    with pytest.raises(ValueError, match="of another run, with mine 1 where this one has 2"):
        distil(tiny, loaders, tmp_path, settings={"mine": 2})
    with pytest.raises(ValueError, match="of another run, with keep 'best' where this one has 'last'"):
        distil(tiny, loaders, tmp_path, keep="last", settings={"mine": 1})
    with pytest.raises(ValueError, match="epochs is 0"):
        distil(tiny, loaders, tmp_path / "none", epochs=0)


def test_models_are_told_apart_in_any_type_of_numbers(tiny):
    one, other = (models.extract_student(tiny[0], layers).bfloat16() for layers in ([0], [1]))
    assert models.weights_sha256(one) != models.weights_sha256(other)
    assert models.weights_sha256(one) == models.weights_sha256(models.extract_student(tiny[0], [0]).bfloat16())
