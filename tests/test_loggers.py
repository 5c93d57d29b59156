"""Runs that are logged to Trackio, Weights & Biases and MLflow, offline, and what each of them has stored."""

import csv
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from helpers.catalyst_today import loggers

LOGGERS = {
    "trackio": "TrackioLogger(project='films', name='first')",
    "wandb": "WandbLogger(project='films', name='first')",
    "mlflow": "MLflowLogger(experiment='films', run='first', tracking_uri='sqlite:///mlflow.db')",
}
"""The one line of each, in the notebook API."""
SECTIONS = {
    "trackio": {"_target_": "helpers.catalyst_today.loggers.TrackioLogger", "project": "films", "name": "first"},
    "wandb": {"_target_": "helpers.catalyst_today.loggers.WandbLogger", "project": "films", "name": "first"},
    "mlflow": {"_target_": "helpers.catalyst_today.loggers.MLflowLogger", "experiment": "films", "run": "first"},
}
"""The same in the Config API."""

PROGRAM = """
import sys
from pathlib import Path
import torch
from helpers import data, models, training
from helpers.catalyst_today import loggers
from helpers.catalyst_today.engine import Engine

teacher, tokenizer = models.load_teacher(sys.argv[1])
texts = data.read_texts(sys.argv[2])
loaders = data.masked_lm_loaders(texts, tokenizer, max_length=16, batch_size=4, steps_per_epoch=5, valid_masks=100)
options = {"epochs": 3, "learning_rate": 5e-3, "seed": 0, "engine": Engine("no", cpu=True), "logdir": Path("logs")}
own = {"own": eval("loggers." + sys.argv[3])}
training.train_masked_lm(models.extract_student(teacher, [0, 3]), loaders, loggers=own, **options)
"""


def environment(folder):
    """Nothing of what is logged leaves `folder`."""
    names = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TRACKIO_DIR": str(folder / "trackio")}
    names |= {"WANDB_SILENT": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **names}


def run(command, folder, cwd=None):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd or folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def logged_rows(file):
    """What Catalyst's CSV logger has written of a loader, a dict an epoch."""
    with Path(file).open(encoding="utf-8") as opened:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(opened)]


def by_trackio(folder):
    """(parameters, {epoch: {"valid/loss": value}}) of the one run that Trackio has stored."""
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
from trackio import Api
(run,) = Api().runs("films")
assert run.name == "first"
print(json.dumps([run.config, SQLiteStorage.get_logs("films", "first")], default=str))
"""
    config, rows = json.loads(run([sys.executable, "-c", code], folder).splitlines()[-1])
    return config, {row["step"]: row for row in rows}


def records_of_wandb(file):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def by_wandb(folder):
    """The same of the one run that W&B has stored."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    config, rows = {}, {}
    for record in records_of_wandb(file):
        if record.WhichOneof("record_type") == "run":
            assert (record.run.project, record.run.display_name) == ("films", "first")
        updates = record.config.update if record.WhichOneof("record_type") == "config" else []
        config |= {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in updates}
        if record.WhichOneof("record_type") == "history":
            items = {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in record.history.item}
            row = rows.setdefault(items["_step"], {})
            row |= {"/".join(reversed(key.replace("_epoch/", "/").split("/"))): each for key, each in items.items()}
    return config, rows


def by_mlflow(folder, uri="sqlite:///mlflow.db"):
    """The same of the one run that MLflow has stored."""
    code = f"""
import json
from mlflow import MlflowClient
client = MlflowClient({uri!r})
(run,) = client.search_runs([client.get_experiment_by_name("films").experiment_id])
assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
rows = {{key: [[each.step, each.value] for each in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics}}
print(json.dumps([run.data.params, rows]))
"""
    config, series = json.loads(run([sys.executable, "-c", code], folder).splitlines()[-1])
    rows = {}
    for key, pairs in series.items():
        name, loader, _ = key.split("/")
        for step, value in pairs:
            rows.setdefault(step, {})[f"{loader}/{name}"] = value
    return config, rows


STORED = {"trackio": by_trackio, "wandb": by_wandb, "mlflow": by_mlflow}


def assert_stored(rows, logs):
    """Every metric of every epoch is stored as Catalyst's own CSV logger has it."""
    for loader in ("train", "valid"):
        written = logged_rows(logs / "csv_logger" / f"{loader}.csv")
        assert sorted(rows) == [row["step"] for row in written]
        for row in written:
            stored = rows[row.pop("step")]
            assert {key: stored[f"{loader}/{key}"] for key in row} == pytest.approx(row, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGERS)
def test_a_run_is_logged_by_one_line(name, tiny_folder, tmp_path):
    pytest.importorskip(name)
    import tiny_teacher

    run([sys.executable, "-c", PROGRAM, tiny_folder, tiny_teacher.SENTENCES, LOGGERS[name]], tmp_path)
    config, rows = STORED[name](tmp_path)
    assert_stored(rows, tmp_path / "logs")
    assert float(config["learning_rate"]) == 5e-3
    assert int(config["epochs"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_from_a_config_file_is_logged_by_one_section_and_once(name, processes, tiny_folder, tmp_path):
    pytest.importorskip(name)
    section = SECTIONS[name] | ({"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"} if name == "mlflow" else {})
    parameters = {"TEACHER": str(tiny_folder), "OUTPUT_DIR": str(tmp_path / "mine"), "SEED": 4}
    own = tmp_path / "own.yml"
    own.write_text(yaml.safe_dump({"parameters": parameters, "loggers": {name: section}}))
    configs = [ROOT / "notebooks" / "configs" / "distill.yml", ROOT / "notebooks" / "configs" / "tiny.yml", own]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run([*torchrun, "-m", "catalyst.contrib.scripts.run", "-C", *configs], tmp_path, cwd=ROOT)
    config, rows = STORED[name](tmp_path)
    (logs,) = (tmp_path / "mine" / "05_multi_gpu_launch").glob("student-*")
    assert_stored(rows, logs)
    assert int(config["SEED"]) == 4


@pytest.mark.parametrize("made", LOGGERS.values())
def test_a_logger_whose_package_is_missing_says_what_to_install(made, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=r"is not installed: pip install -e '\.\[loggers\]'"):
        eval(f"loggers.{made}")


def test_the_loggers_are_those_of_the_extra():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = text[text.index("\nloggers = [") :].split("\n]")[0]
    assert all(f'"{name}==' in extra for name in LOGGERS)
