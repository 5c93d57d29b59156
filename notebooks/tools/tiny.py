"""The tiny run of a notebook: a minute, and but for rounding the same numbers on any processor.

The tests make it of each notebook, `make stale` where hashes cannot tell, and `make notebooks`
after the real run. What it gave is kept under artifacts/tiny_runs until the sources change.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import nbformat
import yaml
from nbval.plugin import coalesce_streams

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # sums in one order
    "ACCELERATE_MIXED_PRECISION": "no",  # float32: bfloat16 would round a hundred times as coarsely
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Of every tiny run, whatever the machine."""
SHORTER = {  # the control of notebook 04 trains seven students for each seed
    "00": {"MAX_STEPS": 60, "TEACHER_STEPS": 100},
    "04": {"MAX_STEPS": 40, "TEACHER_STEPS": 100},
    "05": {"MAX_STEPS": 12, "TEACHER_STEPS": 40},
    "08": {"MAX_STEPS": 20, "TEACHER_STEPS": 100},
}
"""What differs from tiny.yaml, by the notebook's number."""
FINGERPRINT = re.compile(r"\b[0-9a-f]{10}\b")


class TinyRunError(Exception):
    """A notebook that does not come to its end on tiny data."""


def folder_of(name: str, root: Path = ROOT) -> Path:
    """Where the tiny run of a notebook works: its path in the repository stands in the outputs."""
    return root / "artifacts" / "tiny_runs" / name


def environment(root: Path = ROOT) -> dict[str, str]:
    """The variables of a process that makes a tiny run of the helpers in `root`."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)}


def parameters(name: str, root: Path = ROOT) -> dict:
    """Those of tiny.yaml, shorter where the notebook trains often; paths are from the root."""
    text = (root / "notebooks" / "parameters" / "tiny.yaml").read_text(encoding="utf-8")
    folder = folder_of(name, root).relative_to(root).as_posix()
    return {
        **yaml.safe_load(text),
        **SHORTER.get(name[:2], {}),
        "TEACHER": f"{folder}/teacher",
        "OUTPUT_DIR": f"{folder}/output",
        "BASELINE": "baseline",  # notebook 06 takes this one from the kernel's folder
    }


def inputs(name: str, root: Path = ROOT) -> list:
    """What makes a tiny run another one, apart from the notebook and the helpers."""
    folder = root / "tests"
    files = [folder / "tiny_teacher.py", *sorted((folder / "data").glob("*.csv"))]
    return [
        parameters(name, root),
        ENVIRONMENT,
        *(file.read_text(encoding="utf-8") for file in files),
    ]


def execute(name: str, root: Path = ROOT) -> Path:
    """Run a notebook on tiny data, from an empty folder; the executed copy.

    Raises:
        TinyRunError: with the end of what papermill said.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_teacher  # here: it takes seconds, and where hashes are equal it is not needed

    folder = folder_of(name, root)
    for old in ("teacher", "baseline", "output"):
        shutil.rmtree(folder / old, ignore_errors=True)
    tiny_teacher.build(folder / "teacher")
    tiny_teacher.build_baseline(folder / "baseline")
    values = folder / "parameters.yaml"
    values.write_text(yaml.safe_dump(parameters(name, root)), encoding="utf-8")
    copy = folder / "copy.ipynb"
    command = [sys.executable, "-m", "papermill", root / "notebooks" / f"{name}.ipynb", copy]
    command += ["-f", values, "-k", "python3", "--no-progress-bar"]
    done = subprocess.run(
        command, cwd=folder, env=environment(root), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise TinyRunError(f"{name} fails on tiny data:\n{done.stderr[-5000:]}")
    return copy


def masked(value):
    """The same with fingerprints of parameters and files as ten stars; keys that are one, numbered.

    They are other ones wherever a file was written by another processor.
    """
    if isinstance(value, str):
        return FINGERPRINT.sub("*" * 10, value)
    if isinstance(value, list):
        return [masked(each) for each in value]
    if isinstance(value, dict):
        return {
            f"{masked(key)} {number}" if FINGERPRINT.search(key) else key: masked(each)
            for number, (key, each) in enumerate(value.items(), 1)
        }
    return value


def read_record(name: str, root: Path = ROOT) -> dict:
    """What the tiny run wrote to its metrics.json, without timings."""
    file = folder_of(name, root) / "output" / name / "metrics.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in record.items() if key != "timings"}


def plain(html: str) -> str:
    """The cells of an HTML table, without its style."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL))


def texts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """What the cells show as text, by their ids: streams, tables, Markdown; words one space apart.

    Not pictures, and not what a cell's tag says differs from run to run.
    """
    found = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or {"setup", "nbval-ignore-output"} & set(tags):
            continue
        shown = []
        for output in coalesce_streams(cell.outputs):
            data = output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                shown.append(output.text)
            elif not any(mime.startswith("image/") for mime in data):
                forms = {"text/html": plain, "text/markdown": str, "text/plain": str}
                shown += [form(data[mime]) for mime, form in forms.items() if mime in data][:1]
        if shown:
            found[cell.id] = masked(" ".join(" ".join(shown).split()))
    return found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, be it a test's or `make stale`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def outcome(name: str, sources: dict, root: Path = ROOT) -> dict:
    """What the tiny run shows: ``record`` and ``outputs``; that of these sources is made once.

    Raises:
        TinyRunError: see `execute`.
    """
    folder = folder_of(name, root)
    kept = folder / "outcome.json"
    with alone(folder):
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["sources"] == sources:
                return found
        kept.unlink(missing_ok=True)
        notebook = nbformat.read(execute(name, root), as_version=4)
        found = {
            "sources": sources,
            "record": masked(read_record(name, root)),
            "outputs": texts(notebook),
        }
        kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found
