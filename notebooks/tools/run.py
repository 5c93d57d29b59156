"""Run the notebooks in order: on copies (`make tutorial`) or in place (`make notebooks`)."""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbval.plugin import coalesce_streams

import html_report
import parameter_table
import setup_cell
from helpers.plots import distillation_schema

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "artifacts" / "tutorial"
COPY = ROOT / "artifacts" / "regenerated"
GOES_ON = "The same command goes on from here: notebooks and models that are finished are kept."


class Shown(NotebookClient):
    """Shows the sections as they start, and what the cells print, progress bars included."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def show_heading(cell, cell_index):
    for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
        if line.startswith("## "):
            print(f"\n  {line[3:]}", flush=True)


def let_interrupts_through(notebook):
    """Take back nbclient's answer to Ctrl-C, which ends in an AssertionError of its own.

    The kernel is shut down all the same, when this process exits.
    """
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def committed(numbers: list[str]) -> list[Path]:
    """The notebooks in reading order; with numbers such as "01", those alone."""
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    known = {path.name[:2]: path for path in paths}
    unknown = [number for number in numbers if number not in known]
    if unknown:
        sys.exit(f"There is no notebook {', '.join(unknown)}. There are {', '.join(known)}.")
    return [known[number] for number in sorted(set(numbers))] or paths


def imported_helpers(code: str) -> set[str]:
    """The helpers that a piece of Python imports, by module name."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "helpers"
        ):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("helpers.")
            }
    return names


def as_python(cell: str) -> str:
    """A cell as Python parses it: shell and magic as calls, the body of a %%cell by itself."""
    body = cell.partition("\n")[2] if cell.startswith("%%") else cell
    return TransformerManager().transform_cell(body)


def sources_sha256(notebook: nbformat.NotebookNode) -> str:
    """A hash of the notebook's code and of every helper that it imports, directly or not.

    Not of the set-up cell, which does nothing here: another address makes no output stale.
    """
    cells = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", [])
    ]
    found, new = set(), imported_helpers("\n".join(map(as_python, cells)))
    while new:
        found |= new
        texts = [(ROOT / "helpers" / f"{name}.py").read_text(encoding="utf-8") for name in new]
        new = set().union(*map(imported_helpers, texts)) - found
    digest = hashlib.sha256("\0".join(cells).encode())
    for name in sorted(found):
        digest.update((ROOT / "helpers" / f"{name}.py").read_bytes())
    return digest.hexdigest()


def minutes(notebook: nbformat.NotebookNode) -> str:
    """What the title cell says of the time: "about 5 minutes on two CPU cores"."""
    found = re.search(r"about [\w.]+ minutes? on two CPU cores", notebook.cells[0].source)
    return found.group() if found else "no time given"


def record_of(path: Path, root: Path) -> dict:
    """What the notebook wrote to its metrics.json."""
    file = root / "artifacts" / path.stem / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8"))


def execute(path: Path, target: Path, root: Path) -> bool:
    """Run a notebook, `root` being the repository, and write it to `target`; True if it ran.

    The notebook keeps its record. One that failed goes to artifacts/stopped.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = Shown(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # or it warns of its own local port
        record_timing=False,
        resources={"metadata": {"path": str(root / "notebooks")}},
        on_notebook_start=let_interrupts_through,
        on_cell_start=show_heading,
    )
    error = None
    try:
        client.execute(env={**os.environ, "PYTHONPATH": str(root)})
    except CellExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}"
    except DeadKernelError:
        error = f"The kernel died, perhaps for want of memory (see BATCH_SIZE). {GOES_ON}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = coalesce_streams(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = re.sub(r" +\r?$", "", output.text)  # where a progress bar was
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sources_sha256": sources_sha256(notebook),
    }
    if error is not None:
        target = ROOT / "artifacts" / "stopped" / path.name
        print(f"\n{error}\nThe notebook up to there: {target.relative_to(ROOT)}")
    else:
        record = record_of(path, root)
        notebook.metadata |= {"timings": record.pop("timings"), "record": record}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return error is None


def tutorial(numbers: list[str]) -> int:
    def is_done(path: Path) -> bool:
        copy = COPIES / path.name
        if not copy.exists():
            return False
        made_from = nbformat.read(copy, as_version=4).metadata.get("sources_sha256")
        return made_from == sources_sha256(nbformat.read(path, as_version=4))

    paths = committed(numbers)
    done = {path: is_done(path) for path in paths}
    print("The tutorial: each notebook runs as a copy, in artifacts/tutorial/.")
    for path in paths:
        state = "already run" if done[path] else minutes(nbformat.read(path, as_version=4))
        print(f"  {path.stem:24} {state}")
    for path in paths:
        if done[path]:
            continue
        print(f"\n{path.stem}", flush=True)
        start = time.monotonic()
        if not execute(path, COPIES / path.name, ROOT):
            return 1
        print(f"\n{path.stem}: {(time.monotonic() - start) / 60:.1f} minutes")
    print("\nDone. The notebooks are in artifacts/tutorial/, models and records in artifacts/.")
    whole = [COPIES / path.name for path in committed([]) if is_done(path)]
    front = html_report.write(whole, ROOT / "artifacts" / "report")
    print(f"The report, for a browser: {front}")
    return 0


def regenerate(numbers: list[str]) -> int:
    """Run in a copy of the working tree, so that no run of the reader's shows.

    The copy's own artifacts go before all notebooks are run; a few find in them what the last
    run of all has left.
    """
    paths = committed(numbers)
    setup_cell.write()
    parameter_table.write()
    clean_copy(keep_artifacts=bool(numbers))
    for path in paths:
        print(f"\n{path.stem}", flush=True)
        if not execute(path, path, COPY):
            return 1
    draw_schema(ROOT / "notebooks" / "images" / "distillation.png")
    return 0


def clean_copy(keep_artifacts: bool) -> None:
    """Copy to `COPY` what git tracks or would add."""
    COPY.mkdir(parents=True, exist_ok=True)
    for old in COPY.iterdir():
        if not (keep_artifacts and old.name == "artifacts"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True)
    for name in done.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY / name)


def draw_schema(target: Path) -> None:
    """The README's picture: the article's case, twelve layers to six."""
    figure, ax = plt.subplots(figsize=(10, 4.4))
    distillation_schema(12, 6, ax)
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120, bbox_inches="tight", facecolor="white")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tutorial", "regenerate"])
    parser.add_argument(
        "numbers",
        nargs="*",
        metavar="NN",
        help="which notebooks, such as 01 03; all by default",
    )
    arguments = parser.parse_args()
    try:
        return {"tutorial": tutorial, "regenerate": regenerate}[arguments.what](arguments.numbers)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {GOES_ON}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
