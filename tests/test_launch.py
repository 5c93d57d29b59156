"""Runs that stop and go on, runs of several processes, and runs from config files."""

import copy
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import yaml
from catalyst import dl
from catalyst.contrib.scripts.run import process_configs, run_from_config
from catalyst.registry import REGISTRY
from safetensors.torch import load_file
from transformers import AutoTokenizer

from conftest import ROOT
from helpers import classification, data, models, training
from helpers.catalyst_today import checkpoints
from helpers.catalyst_today.engine import Engine
from helpers.catalyst_today.history import HistoryCallback, SilentLogger, ValidationLogger
from helpers.runs import experiment, launch
from helpers.runs.parameters import PARAMETERS

CONFIGS = ROOT / "notebooks" / "configs"
OPTIONS = {"epochs": 4, "learning_rate": 5e-3, "loss_weights": {"kl": 0.6, "mlm": 0.4}, "temperature": 1.0, "seed": 0}


class StoppedError(Exception):
    pass


class StopsAt(dl.Callback):
    """Raise in a training batch, counted from 1 over the run, before its step."""

    def __init__(self, batch):
        super().__init__(order=1)
        self.left = batch

    def on_batch_end(self, runner):
        if runner.is_train_loader:
            self.left -= 1
            if self.left == 0:
                raise StoppedError


@pytest.fixture(autouse=True)
def _state_after_each_epoch(monkeypatch):
    monkeypatch.setattr(training, "ResumeCallback", partial(checkpoints.ResumeCallback, seconds=0))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which a config file's first section sets


@pytest.fixture
def tiny(tiny):
    teacher, tokenizer = tiny
    with torch.no_grad():
        torch.manual_seed(0)
        teacher.cls.predictions.transform.dense.weight += 0.01
    return teacher, tokenizer


@pytest.fixture
def loaders(tiny, sentences):
    return data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=4, steps_per_epoch=5, valid_masks=10**6)


def distil(tiny, loaders, logdir, layers=(0, 3), **changes):
    student = models.extract_student(tiny[0], list(layers))
    engine = Engine("no", cpu=True)
    history = training.distill(tiny[0], student, loaders, engine=engine, logdir=logdir, **OPTIONS | changes)
    return student, history


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def files(folder):
    return {file: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.mark.parametrize("batch", [6, 13, 20])
def test_a_distillation_that_was_stopped_ends_as_one_that_was_not(tiny, loaders, tmp_path, batch, capsys):
    whole, history = distil(tiny, loaders, tmp_path / "whole")
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path / "stopped", callbacks=[StopsAt(batch)])
    resumed, again = distil(tiny, loaders, tmp_path / "stopped", callbacks=[StopsAt(100)])
    assert f"Goes on after epoch {(batch - 1) // 5} of 4" in capsys.readouterr().out
    assert_equal_weights(whole.state_dict(), resumed.state_dict())
    assert history.steps == again.steps
    assert history.validations == again.validations
    for name in ("train", "valid"):
        file = Path("csv_logger") / f"{name}.csv"
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "stopped" / file).read_text()
    # Called once more it has nothing to do, and gives the same.
    finished, third = distil(tiny, loaders, tmp_path / "stopped", callbacks=[StopsAt(1)])
    assert_equal_weights(whole.state_dict(), finished.state_dict())
    assert third.steps == history.steps


def test_a_resumed_run_has_each_row_of_its_metrics_once_where_its_state_is_older(tiny, loaders, tmp_path):
    _, history = distil(tiny, loaders, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        distil(tiny, loaders, stopped, callbacks=[StopsAt(8)])
    after_one_epoch = (stopped / "state.pt").read_bytes()
    with pytest.raises(StoppedError):
        distil(tiny, loaders, stopped, callbacks=[StopsAt(13)])
    assert pd.read_csv(stopped / "csv_logger" / "valid.csv")["step"].tolist() == [1, 2, 3]
    (stopped / "state.pt").write_bytes(after_one_epoch)
    with pytest.raises(StoppedError):
        distil(tiny, loaders, stopped, callbacks=[StopsAt(3)])
    assert pd.read_csv(stopped / "csv_logger" / "valid.csv")["step"].tolist() == [1]
    _, again = distil(tiny, loaders, stopped, callbacks=[StopsAt(100)])
    for name in ("train", "valid"):
        file = Path("csv_logger") / f"{name}.csv"
        assert (stopped / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert again.validations == history.validations


def test_masked_lm_training_that_was_stopped_ends_as_one_that_was_not(tiny, loaders, tmp_path, monkeypatch):
    options = {"epochs": 3, "learning_rate": 5e-3, "seed": 0}

    def train(logdir):
        model = models.extract_student(tiny[0], [0, 3])
        training.train_masked_lm(model, loaders, engine=Engine("no", cpu=True), logdir=logdir, **options)
        return model.state_dict()

    whole = train(tmp_path / "whole")
    epochs = []

    def stops(self, runner):
        epochs.append(runner.epoch_step)
        if len(epochs) == 2:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(training.ProgressCallback, "on_epoch_end", stops)
        with pytest.raises(StoppedError):
            train(tmp_path / "stopped")
    assert_equal_weights(whole, train(tmp_path / "stopped"))


def test_an_interrupted_student_goes_on_and_a_finished_one_is_found(parameters, capsys):
    teacher = experiment.ensure_teacher(parameters)
    whole = experiment.ensure_student(parameters | {"OUTPUT_DIR": parameters["OUTPUT_DIR"] + "-2"}, teacher)
    with pytest.raises(StoppedError):
        experiment.ensure_student(parameters, teacher, callbacks=[StopsAt(5)])
    resumed = experiment.ensure_student(parameters, teacher)
    assert "Goes on after epoch 2 of 4" in capsys.readouterr().out
    assert_equal_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert whole.history == resumed.history
    assert experiment.ensure_student(parameters, teacher).found


@pytest.fixture
def stopped(tiny, loaders, tmp_path):
    with pytest.raises(StoppedError):
        distil(tiny, loaders, tmp_path / "run", callbacks=[StopsAt(8)])
    return tmp_path / "run"


def test_a_kill_amid_a_write_leaves_the_file_before_it(tiny, loaders, stopped, tmp_path, monkeypatch):
    before = (stopped / "state.pt").read_bytes()

    def torn(state, file):
        Path(file).write_bytes(b"half of a st")
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(StoppedError):
            distil(tiny, loaders, stopped)
    assert (stopped / "state.pt").read_bytes() == before
    (stopped / ".writing-folder").mkdir()
    whole, _ = distil(tiny, loaders, tmp_path / "whole")
    resumed, _ = distil(tiny, loaders, stopped)
    assert_equal_weights(whole.state_dict(), resumed.state_dict())
    assert not list(stopped.glob(".writing-*"))


SETTINGS = {"the settings of": "all runs"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def truncated(file):
    file.write_bytes(file.read_bytes()[:1000])


def pickled(file):
    torch.save({"settings": Evil()}, file)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (truncated, {}, r"state\.pt: damaged, or no state of a run"),
        (pickled, {}, r"state\.pt: damaged, or no state of a run"),
        (
            None,
            {"learning_rate": 1e-3},
            r"state\.pt: of another run, with learning_rate 0\.005 where this one has 0\.001",
        ),
        (None, {"layers": (0, 2)}, r"of another run, with layers \[0, 3\] where this one has \[0, 2\]"),
        (None, {"layers": (0, 1, 3)}, r"of another model: distilbert\.transformer\.layer\.2\S+ is not there"),
        (
            None,
            {"callbacks": [HistoryCallback()]},
            r"HistoryCallback 4, EpochCSVLogger 5, \S+ 6 where this one has \S.*HistoryCallback 5, EpochCSVLogger 6",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_stays(tiny, loaders, stopped, monkeypatch, change, options, message):
    monkeypatch.chdir(stopped.parent)
    if change:
        change(stopped / "state.pt")
    if "of another model" in message:  # as of a student whose config does not say what it was copied from
        monkeypatch.setattr(training, "run_settings", lambda *args, **settings: SETTINGS)
        distil(tiny, loaders, stopped.with_name("other"), callbacks=[])
        shutil.copy(stopped.with_name("other") / "state.pt", stopped / "state.pt")
    before = files(stopped)
    with pytest.raises(ValueError, match=message):
        distil(tiny, loaders, stopped, **options)
    after = files(stopped)
    assert all(after[file] == contents for file, contents in before.items())
    assert not Path("executed").exists()


def test_another_teacher_and_another_corpus_make_another_run(tiny, loaders, sentences, stopped):
    others = data.masked_lm_loaders(
        sentences.select(range(1, len(sentences))),
        tiny[1],
        max_length=16,
        batch_size=4,
        steps_per_epoch=5,
        valid_masks=10**6,
    )
    with pytest.raises(ValueError, match=r"state\.pt: of another run, with rows '\w{64}'"):
        distil(tiny, others, stopped)
    with torch.no_grad():
        tiny[0].bert.encoder.layer[1].output.dense.bias += 1e-3
    with pytest.raises(ValueError, match=r"state\.pt: of another run, with teacher '\w{64}'"):
        distil(tiny, loaders, stopped)


def test_a_disk_without_room_and_a_logdir_that_cannot_be_written_are_said_first(tiny, loaders, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        distil(tiny, loaders, tmp_path / "file" / "logs", callbacks=[StopsAt(1)])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**5))
    with pytest.raises(OSError, match=r"logs: 0\.00 GB are free, and the run writes up to 0\.0\d GB"):
        distil(tiny, loaders, tmp_path / "logs", callbacks=[StopsAt(1)])


def test_a_state_is_written_no_more_often_than_said(tiny, loaders, tmp_path, monkeypatch):
    written, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: (written.append(state["epoch"]), save(state, file)))
    distil(tiny, loaders, tmp_path / "each")
    assert written == [1, 2, 3, 4]
    monkeypatch.setattr(training, "ResumeCallback", checkpoints.ResumeCallback)
    distil(tiny, loaders, tmp_path / "last")
    assert written[4:] == [4]


def test_a_logdir_tells_where_the_run_came_from(tiny, loaders, stopped):
    distil(tiny, loaders, stopped)
    assert not (stopped / "run-3").exists()
    for run in (stopped / "run-1", stopped / "run-2"):
        settings = json.loads((run / "config.json").read_text())
        digests = [settings.pop(name) for name in ("rows", "teacher", "model")]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests)
        expected = {"batch_size": 4, "steps_per_epoch": 5, "layers": [0, 3], "keep": "best"}
        assert settings == OPTIONS | expected
        packages = (run / "packages.txt").read_text()
        assert f"torch=={torch.__version__.split('+')[0]}" in packages
        assert "catalyst==22.4" in packages
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (run / "revision.txt").read_text() == (head.stdout or head.stderr)
        assert (run / "uncommitted.diff").exists()
        with zipfile.ZipFile(run / "code.zip") as code:
            assert code.read("helpers/losses/outputs.py") == (ROOT / "helpers" / "losses" / "outputs.py").read_bytes()


# One program for the runs of several processes: the student's weights, losses and sums, with masks drawn once and
# without dropout, so that nothing is left that a process could draw otherwise.
PROGRAM = """
import json, os, sys
import torch
from catalyst import dl
from torch.utils.data import DataLoader
from transformers import DistilBertForMaskedLM
from helpers import classification, data, models, training
from helpers.data import EndlessShuffle
from helpers.catalyst_today.engine import Engine, is_main_process

training.ResumeCallback.__init__.__defaults__ = (0,)  # a state after each epoch
folder, csv, out, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
engine = Engine("no", cpu=not options.get("gpu"))
teacher, tokenizer = models.load_teacher(folder)
with torch.no_grad():
    teacher.cls.predictions.transform.dense.weight += 0.01
student = models.extract_student(teacher, [0, 3])
weights = options.get("weights", {"kl": 0.5, "mlm": 0.3, "cosine": 0.2})
if "hidden" in weights:  # half as wide as its teacher, so that there is a projection
    torch.manual_seed(0)
    config = models.student_config(teacher, 2)
    config.dim, config.hidden_dim, config.attention_dropout = 32, 64, 0.0
    student = DistilBertForMaskedLM(config).eval()
for module in student.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
made = data.masked_lm_loaders(data.read_texts(csv), tokenizer, max_length=16, batch_size=8, valid_masks=10**6)
rows, collate = made["valid"].dataset, made["valid"].collate_fn
order = EndlessShuffle(len(rows), 6 * 8, 0)
loaders = {"train": DataLoader(rows, 8, sampler=order, collate_fn=collate), "valid": made["valid"]}

class Watch(dl.Callback):
    sums, losses, masked, rows = [], [], [], 0
    def on_batch_end(self, runner):
        if runner.is_train_loader:
            self.losses.append(runner.engine.reduce(runner.batch_metrics["loss"].detach(), "mean").item())
            own = (runner.batch["labels"] != -100).sum().float()
            self.masked.append(runner.engine.gather(own[None]).tolist())
        else:
            self.rows += len(runner.batch["input_ids"])
    def on_loader_end(self, runner):
        if runner.is_train_loader:
            learned = [w for name in {*runner.model} - {"teacher"} for w in runner.model[name].parameters()]
            own = torch.stack([w.detach().double().sum() for w in learned]).sum()
            self.sums.append(runner.engine.gather(own[None]).tolist())
    def on_epoch_end(self, runner):
        is_first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if options.get("die") == [runner.engine.process_index, runner.epoch_step] and is_first_start:
            raise RuntimeError("this process dies")

watch = Watch(order=100)
history = training.distill(teacher, student, loaders, engine=engine, epochs=3, learning_rate=2e-3, loss_weights=weights,
                           temperature=1.0, seed=0, logdir=out, callbacks=[watch])
seen = engine.reduce(torch.tensor(watch.rows, device=engine.device), "sum").item()
if is_main_process():
    result = {"sums": watch.sums, "losses": watch.losses, "masked": watch.masked, "validations": history.validations}
    result |= {"validated": seen, "valid_rows": len(rows), "processes": engine.num_processes}
    open(out + "/result.json", "w").write(json.dumps(result))
"""


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]
    # Else torch 2.13 gives all starts one store, in which a new process may find the address of a dead one.
    variables = environment() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory, tiny_folder):
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(PROGRAM)

    def arguments(out, **options):
        return [file, tiny_folder, ROOT / "tests" / "data" / "sentences.csv", out, json.dumps(options)]

    return arguments


def finish(process, timeout=300):
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out[-4000:]
    return out


@pytest.fixture(scope="module")
def alone(program, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "logs"
    finish(torchrun("--standalone", "--nproc-per-node=1", *program(out)))
    return out


def result(out):
    return json.loads((out / "result.json").read_text())


def assert_same_run(one, many):
    """The run of several processes is that of one, but for rounding."""
    first, second = result(one), result(many)
    assert (first["processes"], second["processes"]) == (1, 2)
    assert all(len(set(sums)) == 1 for sums in second["sums"]), "the processes' students differ"
    assert max(abs(a - b) for a, b in zip(first["losses"], second["losses"], strict=True)) < 1e-4
    assert any(a != b for a, b in second["masked"]), "the processes' counts have to differ to test anything"
    assert [sum(pair) for pair in second["masked"]] == [pair[0] for pair in first["masked"]]
    for a, b in zip(first["validations"], second["validations"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["perplexity"] == pytest.approx(a["perplexity"], rel=1e-4)
    assert second["validated"] == first["validated"] == 3 * first["valid_rows"]
    assert first["valid_rows"] % 8, "the last batch has to be one that cannot be shared evenly"
    assert_near_weights(one, many)


def test_two_processes_learn_what_one_learns(alone, program, tmp_path):
    finish(torchrun("--standalone", "--nproc-per-node=2", *program(tmp_path / "logs")))
    assert_same_run(alone, tmp_path / "logs")
    # A state of two processes is gone on with by one: there is nothing left to do, and the weights are the same.
    (tmp_path / "logs" / "result.json").unlink()
    out = finish(torchrun("--standalone", "--nproc-per-node=1", *program(tmp_path / "logs")))
    assert "Goes on after epoch 3 of 3" in out


LAYERS = {"mlm": 0.4, "relation": 0.3, "attention": 0.1, "hidden": 0.3}


def test_two_processes_learn_from_layers_and_with_a_projection_what_one_learns(program, tmp_path):
    for processes in (1, 2):
        out = tmp_path / f"logs-{processes}"
        finish(torchrun("--standalone", f"--nproc-per-node={processes}", *program(out, weights=LAYERS)))
    assert_same_run(tmp_path / "logs-1", tmp_path / "logs-2")
    for name in LAYERS:
        values = [[each[name] for each in result(tmp_path / f"logs-{n}")["validations"]] for n in (1, 2)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)


def assert_near_weights(one, other):
    weights, others = (load_file(out / "best" / "model.safetensors") for out in (one, other))
    for name, weight in weights.items():
        # Softmax ignores the key biases: their gradient is rounding, which AdamW blows up to full steps.
        assert "k_lin.bias" in name or torch.allclose(weight, others[name], atol=1e-3), name


def test_a_process_that_dies_stops_the_others_and_leaves_what_a_restart_goes_on_from(alone, program, tmp_path):
    process = torchrun("--standalone", "--nproc-per-node=2", *program(tmp_path / "logs", die=[1, 2]))
    died = None
    for line in process.stdout:
        if "RuntimeError: this process dies" in line and died is None:
            died = time.monotonic()
    assert process.wait() != 0
    assert time.monotonic() - died < 60, "the others stop within a minute"
    state = torch.load(tmp_path / "logs" / "state.pt", weights_only=True)
    assert state["epoch"] in (1, 2)
    finish(torchrun("--standalone", "--nproc-per-node=2", *program(tmp_path / "logs")))
    assert_near_weights(alone, tmp_path / "logs")
    assert not list((tmp_path / "logs").glob(".writing-*"))


def test_torchrun_starts_a_run_again_and_it_goes_on(alone, program, tmp_path):
    arguments = program(tmp_path / "logs", die=[0, 2])
    out = finish(torchrun("--standalone", "--nproc-per-node=2", "--max-restarts=1", *arguments))
    assert "RuntimeError: this process dies" in out
    assert "Goes on after epoch 1 of 3" in out
    assert_near_weights(alone, tmp_path / "logs")


@pytest.mark.slow
def test_two_agents_of_one_process_learn_what_one_learns(alone, program, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"]
    rendezvous += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    agents = [torchrun(*rendezvous, *program(tmp_path / "logs")) for _ in range(2)]
    for agent in agents:
        finish(agent)
    assert_same_run(alone, tmp_path / "logs")


@pytest.mark.slow
def test_a_port_in_use_is_named(program, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = torchrun("--nproc-per-node=1", f"--master-port={port}", *program(tmp_path / "logs"))
        out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "EADDRINUSE" in out or "address already in use" in out.lower()
    assert str(port) in out


def config(tmp_path, tiny_folder, name="mine", pipeline="distill", **changes):
    """tiny.yml with the teacher in place and an OUTPUT_DIR of its own."""
    file = tmp_path / f"{name}.yml"
    values = {"TEACHER": str(tiny_folder), "OUTPUT_DIR": str(tmp_path / name)} | changes
    sections = {"parameters": values}
    if pipeline == "sentiment":
        sections |= {"optimizer": {"lr": 3e-3}, "task": {"teacher_learning_rate": 2e-3}}
    file.write_text(yaml.safe_dump(sections))
    return [CONFIGS / f"{pipeline}.yml", CONFIGS / "tiny.yml", file]


def catalyst_run(configs, code=None):
    """Start catalyst-run, or a program in its place."""
    program = [str(Path(sys.executable).parent / "catalyst-run")] if code is None else [sys.executable, "-c", code]
    command, out = [*program, "-C", *map(str, configs)], subprocess.PIPE
    return subprocess.Popen(command, env=environment(), stdout=out, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def logdir(tmp_path, name="mine", makes="student"):
    (folder,) = (tmp_path / name / "05_multi_gpu_launch").glob(f"{makes}-*")
    return folder


def parameters_of(configs):
    merged = launch._config(configs)[0]["parameters"]
    return {name: value for name, value in merged.items() if name.isupper()}


def test_a_config_file_gives_what_the_notebook_api_gives(tmp_path, tiny_folder):
    configs = config(tmp_path, tiny_folder)
    said = finish(catalyst_run(configs))
    assert said.splitlines()[-1] == f"The model: {logdir(tmp_path) / 'best'}"
    # In a process of one thread, as the other was.
    code = (
        "import json, sys; from helpers.runs import experiment; p = json.loads(sys.argv[1]);"
        "t = experiment.ensure_teacher(p); s = experiment.ensure_student(p, t); print(s.folder)"
    )
    values = parameters_of(configs) | {"OUTPUT_DIR": str(tmp_path / "notebook")}
    command = [sys.executable, "-c", code, json.dumps(values)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, cwd=ROOT)
    folder = Path(done.stdout.splitlines()[-1])
    by_config = logdir(tmp_path)
    for name in ("train", "valid"):
        one, other = (pd.read_csv(path / "csv_logger" / f"{name}.csv") for path in (by_config, folder / "logs"))
        assert len(one) == 4
        pd.testing.assert_frame_equal(one, other)
    assert_equal_weights(load_file(by_config / "best" / "model.safetensors"), load_file(folder / "model.safetensors"))
    assert (by_config / "best" / "tokenizer.json").is_file()
    # What is in the logdir is enough to run it again.
    kept = json.loads((by_config / "run-1" / "config.json").read_text())
    assert kept == json.loads(json.dumps(process_configs(configs)))
    with zipfile.ZipFile(by_config / "run-1" / "code.zip") as code:
        assert {"distill.yml", "tiny.yml", "mine.yml"} <= set(code.namelist())


def trains_with(monkeypatch, start):
    """What `start` hands to the last `Runner.train` that it calls, callbacks and loggers as `told` has them."""
    calls, train = [], dl.Runner.train

    def watched(self, **options):
        parts = {kind: {name: told(part) for name, part in options[kind].items()} for kind in ("callbacks", "loggers")}
        calls.append((type(self), options | parts))
        train(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(dl.Runner, "train", watched)
        start()
    return calls[-1]


DIFFERENT = {"logdir", "file", "settings", "config", "sources", "card", "beside", "seconds", "description"}
"""What a run from a file has of its own: where, what it is told apart by, what is saved beside the weights."""


def told(part):
    """A callback's or logger's kind and settings, as they were given to it."""
    kept = {key: value for key, value in vars(part).items() if key not in DIFFERENT}
    simple = {key: value for key, value in kept.items() if isinstance(value, int | float | str | dict | list | None)}
    tensors = {key: value.tolist() for key, value in kept.items() if isinstance(value, torch.Tensor)}
    return type(part), copy.deepcopy(simple | tensors)


def task_by_hand(values, taught_by):
    """Teach a classifier as notebook 06 does, one seed, one rate; return it."""
    teacher, engine = experiment.ensure_teacher(values), Engine()
    student = experiment.ensure_student(values, teacher).model
    table, tokenizer = experiment.labelled_corpus(values), teacher.tokenizer
    sizes, labels = values["PART_SIZES"], table.features["label"].names
    corpus = experiment.read_corpus(values)
    parts = data.part(table, sizes, corpus=corpus, transfer_texts=values["TRANSFER_TEXTS"])
    rows = {name: data.encode(texts, tokenizer, values["MAX_LENGTH"]) for name, texts in parts.items()}
    weights = data.balanced_weights(parts["train"]["label"], len(labels))

    def teach(encoder, train, valid, passes, rate, **losses):
        classifier, size = classification.classifier_of(encoder, labels, 0), values["FINE_TUNING_BATCH_SIZE"]
        steps = max(1, round(passes * len(train) / size / 4))
        loaders = data.label_loaders(train, valid, tokenizer, batch_size=size, steps_per_epoch=steps, seed=0)
        run = {"epochs": 4, "learning_rate": rate, "seed": 0, "engine": engine, "class_weights": weights}
        folder = f"{values['OUTPUT_DIR']}/{len(losses)}"
        classification.train_classifier(classifier, loaders, **run, **losses, logdir=folder)
        return classifier

    if taught_by == "labels":
        return teach(student, rows["train"], rows["valid"], values["FINE_TUNING_EPOCHS"], 3e-3)
    wise = teach(teacher.model, rows["train"], rows["valid"], values["FINE_TUNING_EPOCHS"], 2e-3)
    pair = [datasets.concatenate_datasets([rows["train"], rows["transfer"]]), rows["valid"]]
    options = {"batch_size": values["FINE_TUNING_BATCH_SIZE"], "engine": engine}
    pair = [data.with_teacher_logits(p, classification.predict(wise, p, tokenizer, **options)) for p in pair]
    return teach(student, *pair, values["TASK_EPOCHS"], 3e-3, loss_weights=values["TASK_LOSS_WEIGHTS"])


@pytest.mark.parametrize("name", ["distill", "mlm", "labels", "teacher"])
def test_a_config_lists_what_fit_adds_and_gives_its_weights(name, tmp_path, tiny_folder, monkeypatch):
    pipeline, makes = ("distill", "student") if name in ("distill", "mlm") else ("sentiment", "classifier")
    weights = {"LOSS_WEIGHTS": {"mlm": 1.0}} if name == "mlm" else {}
    configs = config(tmp_path, tiny_folder, pipeline=pipeline, SEED=0, **weights)
    if name == "teacher":
        configs.insert(1, CONFIGS / "task.yml")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    monkeypatch.setattr(REGISTRY, "_vars_dict", {})  # it keeps the objects of the run before
    by_config = trains_with(monkeypatch, lambda: run_from_config(configs))
    values = parameters_of(configs) | {"OUTPUT_DIR": str(tmp_path / "by hand")}
    made = []

    def start():
        if pipeline == "distill":
            made.append(experiment.ensure_student(values, experiment.ensure_teacher(values)).model)
        else:
            made.append(task_by_hand(values, name))

    by_hand = trains_with(monkeypatch, start)
    assert by_config[0] is by_hand[0]
    for kind in ("callbacks", "loggers"):
        ours, theirs = by_config[1][kind], by_hand[1][kind]
        if kind == "loggers" and pipeline != "distill":  # notebook 06 is silent in its 28 runs
            assert (ours.pop("console")[0], theirs.pop("console")[0]) == (ValidationLogger, SilentLogger)
        if kind == "callbacks":  # a notebook has a line of its own at its end
            assert ours.pop("end")[0] is launch.EndCallback
        assert ours == theirs
        assert list(ours) == list(theirs)
    names = ("num_epochs", "seed", "valid_loader", "valid_metric", "minimize_valid_metric")
    assert {key: by_config[1][key] for key in names} == {key: by_hand[1][key] for key in names}
    assert set(by_config[1]) == set(by_hand[1])
    for ours, theirs in zip(*(options["optimizer"].param_groups for _, options in (by_config, by_hand)), strict=True):
        same = {key: value for key, value in ours.items() if key not in ("params", "lr", "initial_lr")}
        assert same == {key: value for key, value in theirs.items() if key in same}
    kept = "best" if pipeline == "distill" else "last"
    weights = load_file(logdir(tmp_path, makes=makes) / kept / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(logdir(tmp_path, makes=makes) / kept)
    assert tokenizer.model_max_length == (64 if makes == "student" else values["MAX_LENGTH"])
    expected = made[0].state_dict()
    assert set(weights) <= set(expected)
    assert all(torch.equal(weight, expected[key]) for key, weight in weights.items())


def test_a_config_file_runs_on_two_processes(tmp_path, tiny_folder):
    # The teacher's head is trained by both, too; each share of a batch is computed in four parts.
    configs = config(tmp_path, tiny_folder)
    configs.insert(1, CONFIGS / "accumulate.yml")
    script = ["-m", "catalyst.contrib.scripts.run", "-C", *configs]
    out = finish(torchrun("--standalone", "--nproc-per-node=2", *script))
    assert "2 processes" in out
    assert out.count("Engine: ") == 1, "the teacher's head is trained by the run's own engine"
    losses = pd.read_csv(logdir(tmp_path) / "csv_logger" / "valid.csv")["loss"]
    assert len(losses) == 4
    assert losses.iloc[-1] < losses.iloc[0]
    (teacher,) = (tmp_path / "mine" / "02_student_extraction").glob("teacher-*/training.json")
    heads = [validation["loss"] for validation in json.loads(teacher.read_text())["history"]["validations"]]
    assert heads[-1] < heads[0]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["accumulate", "task"])
def test_a_classifier_learns_on_two_processes(overlay, tmp_path, tiny_folder):
    configs = config(tmp_path, tiny_folder, pipeline="sentiment", FINE_TUNING_EPOCHS=12)
    configs.insert(1, CONFIGS / f"{overlay}.yml")
    script = ["-m", "catalyst.contrib.scripts.run", "-C", *configs]
    out = finish(torchrun("--standalone", "--nproc-per-node=2", *script))
    assert "2 processes" in out
    valid = pd.read_csv(logdir(tmp_path, makes="classifier") / "csv_logger" / "valid.csv")
    assert valid["accuracy"].iloc[-1] > 0.6, "a third is chance"
    assert ("mse" in valid) == (overlay == "task")


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["amp", "fp32", "mse", "relation", "accumulate"])
def test_overlays_run(overlay, tmp_path, tiny_folder):
    configs = config(tmp_path, tiny_folder)
    out = finish(catalyst_run([configs[0], CONFIGS / f"{overlay}.yml", *configs[1:]]))
    losses = pd.read_csv(logdir(tmp_path) / "csv_logger" / "valid.csv")
    assert losses["loss"].iloc[-1] < losses["loss"].iloc[0]
    assert ("bfloat16" in out) or overlay != "amp"
    assert ("mse" in losses) == (overlay == "mse")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yml")), ids=lambda file: file.stem)
def test_config_files_name_what_is_there(file):
    pipeline = "sentiment.yml" if file.stem in ("sentiment", "task") else "distill.yml"
    merged = process_configs([CONFIGS / pipeline, file])
    assert list(launch.config_faults(merged)) == []
    for name, value in merged["parameters"].items():
        assert not name.isupper() or PARAMETERS[name][0](value), name


def test_what_a_config_names_wrongly_is_said_with_the_nearest(tmp_path, tiny_folder, monkeypatch, capsys):
    file = tmp_path / "wrong.yml"
    file.write_text(
        "calbacks: {}\nstudent: {layrs: 2}\nrunner: {_target_: helpers.runner.DistilMLMRuner}\n"
        "callbacks: {kl: {_target_: helpers.calbacks.KLDivLossCallback}}\nparameters: {MAX_STEPZ: 3}\n"
    )
    configs = [CONFIGS / "distill.yml", file]
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    monkeypatch.setenv("WORLD_SIZE", "1")
    values = parameters_of(configs)

    def said_at_the_end():
        with pytest.raises(SystemExit):
            launch.parameters(**values)
        return capsys.readouterr().err

    message = said_at_the_end()
    for said in (
        "wrong.yml: there is no section 'calbacks'; did you mean callbacks?",
        "student: student takes no 'layrs'. There are: trained, values.",
        "runner: there is no helpers.runner.DistilMLMRuner; did you mean helpers.runner.DistilMLMRunner?",
        "callbacks.kl: there is no helpers.calbacks.KLDivLossCallback; did you mean helpers.callbacks?",
        "MAX_STEPZ is no parameter of any notebook; did you mean MAX_STEPS?",
    ):
        assert said in message
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", str(configs[0])])
    del values["MAX_STEPZ"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "distill.yml: BATCH_SIZE is 64: 3 processes cannot share it evenly" in said_at_the_end()
    monkeypatch.setenv("WORLD_SIZE", "1")
    file.write_text("parameters: {CORPUS: nowhere.csv}")
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    assert "nowhere.csv: no such file" in said_at_the_end()


def test_values_mean_in_a_config_what_they_mean_in_a_notebook(tmp_path, tiny_folder, monkeypatch):
    """Of the same type, and a dict replaced as a whole."""
    file = tmp_path / "own.yml"
    written = {"LOSS_WEIGHTS": {"mlm": "1e-1"}, "LEARNING_RATE": "5e-4", "LAYERS": "[0, 3]", "TEXT_FIELD": 0}
    file.write_text(json.dumps({"parameters": written | {"OUTPUT_DIR": str(tmp_path)}}))
    configs = [CONFIGS / "distill.yml", file]
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    made = launch.parameters(**parameters_of(configs))
    assert (made.LOSS_WEIGHTS, made.loss_weights) == ({"mlm": 0.1}, {"mlm": 0.1})
    assert (made.LEARNING_RATE, made.LAYERS, made.TEXT_FIELD) == (5e-4, [0, 3], "0")
    assert made.values == {name: getattr(made, name) for name in made.values}
    assert made.config["parameters"]["LOSS_WEIGHTS"] == {"mlm": "1e-1"}, "the logdir's config runs as these files do"


def made_by(monkeypatch, *configs):
    """What `launch.parameters` makes of these files, as `catalyst-run` calls it."""
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    return launch.parameters(**parameters_of(configs))


@pytest.mark.parametrize("pipeline", ["distill", "sentiment"])
def test_a_parameter_file_means_to_catalyst_run_what_it_means_to_papermill(pipeline, tmp_path, monkeypatch):
    """As under `parameters`, in order with the other files; without effect where the pipeline has no such name."""
    first, laptop = CONFIGS / f"{pipeline}.yml", ROOT / "notebooks" / "parameters" / "laptop.yaml"
    alone, own = tmp_path / "alone.yml", tmp_path / "own.yaml"
    alone.write_text(f"parameters: {{OUTPUT_DIR: {tmp_path}}}")
    by_default = made_by(monkeypatch, first, alone)
    with_file = made_by(monkeypatch, first, laptop, alone)
    assert with_file.logdir == by_default.logdir, "laptop.yaml spells out the defaults"
    assert (with_file.config, with_file.values) == (by_default.config, by_default.values)
    assert ("LABELLED_CORPUS" in with_file.values) == (pipeline == "sentiment")
    assert "SENTENCES" not in with_file.values
    own.write_text("LOSS_WEIGHTS: {mlm: 1}\nLAYERS: '[0, 3]'\nTEXT_FIELD: 0\nSENTENCES: ['[MASK]']\nSEED: 7\n")
    later = tmp_path / "later.yml"
    later.write_text("parameters: {SEED: 8}")
    made = made_by(monkeypatch, first, alone, laptop, own, later)
    assert (made.LOSS_WEIGHTS, made.LAYERS, made.TEXT_FIELD, made.SEED) == ({"mlm": 1}, [0, 3], "0", 8)
    assert not [name for name in made.config if name.isupper()]
    assert made.config["parameters"]["SEED"] == 8
    assert made_by(monkeypatch, first, alone, later, own).SEED == 7, "the last file counts, of whichever form"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("MAX_STEPZ: 3", "MAX_STEPZ is no parameter of any notebook; did you mean MAX_STEPS?"),
        ("SEEDS: 3", "SEEDS is 3; it has to be a list of different whole numbers"),
        ("MAX_STEPS: 0", "MAX_STEPS is 0; it has to be a whole number, at least 1."),
    ],
)
def test_what_a_parameter_file_gives_wrongly_is_said(written, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.yaml").write_text(f"{written}\n")
    with pytest.raises(SystemExit):
        made_by(monkeypatch, CONFIGS / "distill.yml", tmp_path / "own.yaml")
    assert f"own.yaml: {said}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        made_by(monkeypatch, tmp_path / "own.yaml", CONFIGS / "distill.yml")
    assert "own.yaml: a parameter file changes the values of a pipeline; name" in capsys.readouterr().err


def test_catalyst_run_distils_from_a_parameter_file(tmp_path, tiny_folder, parameters):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(parameters | {"OUTPUT_DIR": str(tmp_path / "mine")}))
    finish(catalyst_run([CONFIGS / "distill.yml", file]))
    losses = pd.read_csv(logdir(tmp_path) / "csv_logger" / "valid.csv")["loss"]
    assert len(losses) == 4
    assert losses.iloc[-1] < losses.iloc[0]
    kept = sorted(path.name for path in (logdir(tmp_path) / "run-1").iterdir())
    assert "config.json" in kept


def last_lines(process, count=1):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    return out.splitlines()[-count:]


def test_an_error_is_the_last_line_and_its_traceback_in_the_file_that_the_line_names(tmp_path, tiny_folder):
    (line,) = last_lines(catalyst_run(config(tmp_path, tiny_folder, TEXT_FIELD="txt")))
    said = re.fullmatch(r"ValueError: (\S+): no column 'txt'\. .*TEXT_FIELD to one of them\. \(traceback: (.+)\)", line)
    assert said, line
    kept = Path(said[2]).read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in kept
    assert "ensure_teacher" in kept
    Path(said[2]).unlink()


def test_under_torchrun_an_error_stands_in_its_report_once(tmp_path, tiny_folder):
    script = ["-m", "catalyst.contrib.scripts.run", "-C", *config(tmp_path, tiny_folder, TEXT_FIELD="txt")]
    lines = last_lines(torchrun("--standalone", "--nproc-per-node=2", *script), count=1000)
    told = [number for number, line in enumerate(lines) if "no column 'txt'" in line]
    assert told == [len(lines) - 2], "the line before the last, which is torchrun's own"
    assert "Factory" not in "".join(lines)
    Path(re.search(r"\(traceback: (.+)\)", lines[-2])[1]).unlink()


@pytest.mark.parametrize(("written", "found"), [("", "empty"), ("[a, b]", "['a', 'b']"), ("3", "3")])
@pytest.mark.parametrize("section", ["parameters", "callbacks"])
def test_a_section_that_holds_no_names_is_said(section, written, found, tmp_path, monkeypatch, capsys):
    file = tmp_path / "own.yml"
    file.write_text(f"{section}: {written}\n")
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", str(CONFIGS / "distill.yml"), str(file)])
    monkeypatch.setattr(REGISTRY, "_vars_dict", {})
    with pytest.raises(SystemExit):
        run_from_config([CONFIGS / "distill.yml", file])
    assert (
        capsys.readouterr().err
        == f"{file}: section {section!r} is {found}: write names and values under it, or drop it.\n"
    )


@pytest.mark.parametrize("kind", [torch.cuda, torch.backends.mps])
def test_more_processes_than_gpus_are_refused(kind, monkeypatch):
    monkeypatch.setattr(kind, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(kind is torch.cuda))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        ValueError, match="4 processes on this machine, but 1 GPU: start torchrun with --nproc-per-node=1"
    ):
        Engine("no")


DIES_AMID_A_WRITE = """
import os, signal
import torch
from catalyst.contrib.scripts import run

save, written = torch.save, []


def half(state, file):
    save(state, file)
    if "05_multi_gpu_launch" in str(file):  # what the run needs is trained first, and has states, too
        written.append(file)
    if len(written) == 2:
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


torch.save = half
run.main()
"""


def start_and_kill(configs, folder, moment, makes):
    """Kill -9 a run at (epochs done, seconds after that), or, for "write", when half of its second state is written."""
    if moment == "write":
        process = catalyst_run(configs, DIES_AMID_A_WRITE)
    else:
        process, (epochs, seconds) = catalyst_run(configs), moment

        def rows():
            files = folder.glob(f"05*/{makes}-*/csv_logger/valid.csv")
            return [row for file in files for row in file.read_text().split()]

        while not list(folder.glob(f"05*/{makes}-*/run-1")) or len(rows()) <= epochs > 0:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL


def killed_and_resumed(tmp_path, tiny_folder, moments, pipeline="distill", **changes):
    """Whether each killed run, gone on with, ends with the weights of one that was not killed."""
    makes = "classifier" if pipeline == "sentiment" else "student"
    changes |= {"pipeline": pipeline}
    finish(catalyst_run(config(tmp_path, tiny_folder, "whole", **changes)))
    whole = load_file(logdir(tmp_path, "whole", makes) / "last" / "model.safetensors")
    outcomes = []
    for number, moment in enumerate(moments):
        name = f"killed-{number}"
        configs = config(tmp_path, tiny_folder, name, **changes)
        start_and_kill(configs, tmp_path / name, moment, makes)
        if moment == "write":
            assert list((tmp_path / name).glob(f"05*/{makes}-*/.writing-state.pt"))
        out = finish(catalyst_run(configs))
        weights = load_file(logdir(tmp_path, name, makes) / "last" / "model.safetensors")
        outcomes.append((moment, "Goes on" in out, all(torch.equal(w, weights[key]) for key, w in whole.items())))
    return outcomes


def test_a_killed_run_goes_on(tmp_path, tiny_folder):
    ((_, went_on, equal),) = killed_and_resumed(tmp_path, tiny_folder, ["write"], MAX_STEPS=60)
    assert went_on
    assert equal


@pytest.mark.slow
def test_ten_killed_runs_go_on(tmp_path, tiny_folder):
    generator = random.Random(0)
    # Of four epochs of a hundred steps, two are left at least: they take longer than the half second.
    moments = ["write", "write", *((generator.randrange(3), 0.5 * generator.random()) for _ in range(8))]
    outcomes = killed_and_resumed(tmp_path, tiny_folder, moments, MAX_STEPS=400)
    print(outcomes)
    assert all(equal for _, _, equal in outcomes)
    assert sum(went_on for _, went_on, _ in outcomes) >= 5


@pytest.mark.slow
def test_three_killed_classifiers_go_on(tmp_path, tiny_folder):
    generator = random.Random(1)
    moments = ["write", *((generator.randrange(1, 3), 0.5 * generator.random()) for _ in range(2))]
    outcomes = killed_and_resumed(tmp_path, tiny_folder, moments, "sentiment", FINE_TUNING_EPOCHS=80)
    print(outcomes)
    assert all(went_on and equal for _, went_on, equal in outcomes)


def gpu_steps(precision, tiny, loaders, folder):
    """The student's output types and the losses of a distillation on a GPU."""
    types, head = set(), models.MaskedPositionLM.head

    def watched(self, hidden):
        logits = head(self, hidden)
        types.add(logits.dtype)
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.MaskedPositionLM, "head", watched)
        student = models.extract_student(tiny[0], [0, 3])
        history = training.distill(tiny[0], student, loaders, engine=Engine(precision), logdir=folder, **OPTIONS)
    return types, history.validations


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_on_a_gpu(precision, dtype, tiny, loaders, tmp_path):
    types, validations = gpu_steps(precision, tiny, loaders, tmp_path / "mixed")
    assert types == {dtype}
    _, reference = gpu_steps("no", tiny, loaders, tmp_path / "float32")
    assert validations[-1]["loss"] == pytest.approx(reference[-1]["loss"], rel=0.05)


@pytest.mark.gpu
def test_nccl_with_one_process(alone, program, tmp_path):
    out = finish(torchrun("--standalone", "--nproc-per-node=1", *program(tmp_path / "logs", gpu=True)))
    assert "cuda" in out
    assert result(tmp_path / "logs")["losses"] == pytest.approx(result(alone)["losses"], abs=1e-3)
