"""Notebook 08 stopped half-way and run again, with a run among its grid that cannot succeed."""

import json
import subprocess
import sys
import time
from contextlib import suppress

import papermill
import psutil
import pytest
import yaml

from conftest import ROOT
from helpers.catalyst_today.saving import WRITING

TINY = yaml.safe_load((ROOT / "notebooks" / "parameters" / "tiny.yaml").read_text(encoding="utf-8"))
NOTEBOOK = ROOT / "notebooks" / "08_experiments.ipynb"


@pytest.mark.slow
def test_a_grid_that_was_killed_repeats_no_finished_run_and_names_what_failed(tmp_path, tiny_folder):
    output = tmp_path / "artifacts"
    values = {**TINY, "TEACHER": str(tiny_folder), "OUTPUT_DIR": str(output), "TEACHER_STEPS": 100, "MAX_STEPS": 20}
    # Layers of which the tiny teacher has four.
    values |= {"GRID": {"LAYERS": [[0, 3], [0, 9]], "SEED": [0, 1]}}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    records, copies = output / "03_runner", output / "08_experiments" / "runs"

    def finished():
        made = [
            *records.glob("metrics-*.json"),
            *copies.glob("[!.]*.ipynb"),
            *records.glob("student-*/model.safetensors"),
        ]
        return {path: path.stat().st_mtime_ns for path in made}

    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "killed.ipynb"), "-k", "python3"]
    process = subprocess.Popen([*command, "-f", str(file), "--no-progress-bar"], stderr=subprocess.DEVNULL)

    def second_run_is_under_way():
        """A copy has been begun since the first one came to its end."""
        done = [file.stat().st_mtime_ns for file in copies.glob("[!.]*.ipynb")]
        return done and any(file.stat().st_mtime_ns > min(done) for file in copies.glob(f"{WRITING}*"))

    while not second_run_is_under_way():
        assert process.poll() is None, "it came to its end"
        time.sleep(0.1)
    for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        with suppress(psutil.NoSuchProcess):  # a child ends with its parent
            each.kill()
    process.wait()
    before = finished()
    assert len(before) == 3, "a record, a copy and a student"

    copy = tmp_path / "again.ipynb"
    papermill.execute_notebook(NOTEBOOK, copy, values, progress_bar=False, kernel_name="python3")
    after = finished()
    assert {path: after[path] for path in before} == before
    assert len(after) == 6, "the two seeds of the layers that there are, beside each other"

    record = json.loads((output / "08_experiments" / "metrics.json").read_text(encoding="utf-8"))
    assert [run["varied"] for run in record["runs"].values()] == [{"LAYERS": [0, 3], "SEED": seed} for seed in (0, 1)]
    assert len({run["student"] for run in record["runs"].values()}) == 2
    assert len({run["student_perplexity"] for run in record["runs"].values()}) == 2
    assert len(record["failed"]) == 2
    assert all("layers 0 to 3" in said for said in record["failed"].values())
    assert {path.name for path in copies.glob(f"{WRITING}*")} >= {f"{WRITING}{name}.ipynb" for name in record["failed"]}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"TEMPERATUR": [1.0], "MAX_STEPS": [0, 1]},
            r"MAX_STEPS is 0; it has to be .*\nTEMPERATUR is .* did you mean TEMPERATURE\?",
        ),
        ({"TASK_EPOCHS": [1, 2]}, "notebook 03 has no parameter TASK_EPOCHS"),
    ],
)
def test_a_grids_fault_is_said_before_any_work(tmp_path, grid, message):
    output = tmp_path / "artifacts"
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            NOTEBOOK,
            tmp_path / "copy.ipynb",
            {"GRID": grid, "OUTPUT_DIR": str(output)},
            progress_bar=False,
            kernel_name="python3",
        )
    assert not list(output.iterdir())
