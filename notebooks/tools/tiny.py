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
from collections.abc import Callable, Iterator
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
SHORTER = {  # the control of notebook 04 trains seven students for each seed; 07 runs 06
    "00": {"MAX_STEPS": 60, "TEACHER_STEPS": 100},
    "04": {"MAX_STEPS": 40, "TEACHER_STEPS": 100},
    "05": {"MAX_STEPS": 12, "TEACHER_STEPS": 40},
    "06": {
        "MAX_STEPS": 60,
        "TEACHER_STEPS": 150,
        "MORE_CONTENDERS": [
            *("random_layers", "mlm_only_task"),
            *("distilled_task_labelled", "distilled_task_left_over", "distilled_task_corpus"),
            *("distilled_task_one", "distilled_longer", "distilled_hard"),
        ],
    },
    "07": {
        **{"MAX_STEPS": 60, "TEACHER_STEPS": 150, "SEEDS": [0]},
        "FINE_TUNING_LEARNING_RATES": [3.0e-3],
    },
    "08": {"MAX_STEPS": 20, "TEACHER_STEPS": 100},
    "controls": {"MAX_STEPS": 8, "TEACHER_STEPS": 8, "SEEDS": [0]},  # a part has up to 20 runs
}
"""What differs from tiny.yaml, by the notebook's number, or of the controls."""
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
        **SHORTER.get(name.partition("_")[0], {}),
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


def prepare(name: str, root: Path = ROOT) -> Path:
    """Empty a tiny run's folder but for the models that it reads; the file of its parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny_teacher  # here: it takes seconds, and where hashes are equal it is not needed

    folder = folder_of(name, root)
    for old in ("teacher", "baseline", "output"):
        shutil.rmtree(folder / old, ignore_errors=True)
    tiny_teacher.build(folder / "teacher")
    tiny_teacher.build_baseline(folder / "baseline")
    values = folder / "parameters.yaml"
    values.write_text(yaml.safe_dump(parameters(name, root)), encoding="utf-8")
    return values


def run(name: str, command: list, root: Path = ROOT) -> None:
    """Run a command in a tiny run's folder. TinyRunError: with the end of what it said."""
    options = {"cwd": folder_of(name, root), "env": environment(root), "check": False}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)
    if done.returncode:
        raise TinyRunError(f"{name} fails on tiny data:\n{done.stderr[-5000:]}")


def execute(name: str, root: Path = ROOT) -> Path:
    """Run a notebook on tiny data, from an empty folder; the executed copy.

    Raises:
        TinyRunError: see `run`.
    """
    values, copy = prepare(name, root), folder_of(name, root) / "copy.ipynb"
    command = ["-m", "papermill", root / "notebooks" / f"{name}.ipynb", copy]
    run(name, [*command, "-f", values, "-k", "python3", "--no-progress-bar"], root)
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
        TinyRunError: see `run`.
    """

    def make() -> dict:
        notebook = nbformat.read(execute(name, root), as_version=4)
        return {"record": masked(read_record(name, root)), "outputs": texts(notebook)}

    return made_once(name, sources, make, root)


def part_outcome(part: str, sources: dict, root: Path = ROOT) -> dict:
    """The same of a part of the controls, but for ``outputs``.

    The record's entries are without what each token gave. TinyRunError: see `run`.
    """
    name = f"controls_{part}"

    def make() -> dict:
        values, file = prepare(name, root), folder_of(name, root) / "record.json"
        file.unlink(missing_ok=True)
        command = [root / "notebooks" / "tools" / "controls.py", part, "--tiny", values, file]
        run(name, command, root)
        record = json.loads(file.read_text(encoding="utf-8"))
        for entry in record["entries"].values():
            for part_of in (entry, entry.get("task", {})):
                part_of.pop("correct", None)
            del entry["fingerprint"]  # of the files' bytes, among others
        entries = record["entries"]
        kept = {"scored_masked_tokens": record["scored_masked_tokens"], "entries": entries}
        if "tested_texts" in record:
            sizes = record["parameters"]["PART_SIZES"]
            kept["parts"] = {each: sizes[each] for each in ("valid", "test")}
        return {"record": kept}

    return made_once(name, sources, make, root)


def made_once(name: str, sources: dict, make: Callable[[], dict], root: Path) -> dict:
    """What `make` gives, with the sources that it was made from; kept until these change."""
    folder = folder_of(name, root)
    kept = folder / "outcome.json"
    with alone(folder):
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["sources"] == sources:
                return found
        kept.unlink(missing_ok=True)
        found = {"sources": sources, **make()}
        kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found
