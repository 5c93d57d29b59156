"""Run the notebooks in order: on copies (`make tutorial`) or in place (`make notebooks`)."""

from __future__ import annotations

import argparse
import asyncio
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
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbval.plugin import coalesce_streams
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
import drawings
import html_report
import parameter_table
import setup_cell
import stale
import tiny
from helpers.catalyst_today.provenance import git
from helpers.catalyst_today.saving import write_json
from helpers.runs.student import show_heading
from sources import Repository

ROOT = Path(__file__).resolve().parents[2]
COPIES = ROOT / "artifacts" / "tutorial"
COPY = ROOT / "artifacts" / "regenerated"
MADE = COPY / "made"
"""What the last runs of those notebooks have left whose models others read."""
GOES_ON = "The same command goes on from here: notebooks and models that are finished are kept."
READS = {"03": {"02"}, "04": {"02"}, "05": {"02"}, "06": {"02", "03"}}
READS |= {"07": {"02", "03", "06"}, "08": {"02"}}
"""Whose models a notebook takes, by their numbers."""
LONG = {
    "long_task": ("06", "long_task"),
    "second_task": ("06", "second_task"),
}
"""From a parameter file to the notebook that is run with it, and to the record that is kept."""


class Shown(NotebookClient):
    """Shows the sections as they start, and what the cells print, progress bars included."""

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


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


def minutes(notebook: nbformat.NotebookNode) -> str:
    """What the title cell says of the time: "3 to 5 minutes on two CPU cores", or "about 5 ..."."""
    found = re.search(
        r"(?:about [\w.]+|\d+ to \d+) minutes? on two CPU cores", notebook.cells[0].source
    )
    return found.group() if found else "no time given"


def record_of(path: Path, root: Path) -> dict:
    """What the notebook wrote to its metrics.json."""
    file = root / "artifacts" / path.stem / "metrics.json"
    return json.loads(file.read_text(encoding="utf-8"))


def execute(path: Path, target: Path, root: Path, **metadata: str | bool) -> bool:
    """Run a notebook, `root` being the repository, and write it to `target`; True if it ran.

    The notebook keeps its record, and the `metadata`. One that failed goes to artifacts/stopped.
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
    except KeyboardInterrupt:
        # Asked to end, the kernel would still answer for its cell, find nobody there, and say so.
        client.shutdown_kernel = "immediate"
        raise
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = coalesce_streams(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = re.sub(r" +\r?$", "", output.text)  # where a progress bar was
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        **metadata,
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
    repository = Repository(ROOT)

    def is_done(path: Path) -> bool:
        copy = COPIES / path.name
        if not copy.exists():
            return False
        made_from = nbformat.read(copy, as_version=4).metadata.get("sources")
        return made_from == repository.sha256(path.stem)

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
        made_from = {"sources": repository.sha256(path.stem), "alone": is_alone()}
        if not execute(path, COPIES / path.name, ROOT, **made_from):
            return 1
        print(f"\n{path.stem}: {(time.monotonic() - start) / 60:.1f} minutes")
    print("\nDone. The notebooks are in artifacts/tutorial/, models and records in artifacts/.")
    whole = [COPIES / path.name for path in committed([]) if is_done(path)]
    front = html_report.write(whole, ROOT / "artifacts" / "report")
    print(f"The report, for a browser: {front}")
    return 0


def is_alone() -> bool:
    """True if artifacts/ holds what finished copies of the tutorial have left, and nothing else."""
    copies = {copy.stem: nbformat.read(copy, as_version=4) for copy in COPIES.glob("*.ipynb")}
    known = {name for name, copy in copies.items() if copy.metadata.get("alone")}
    known |= {COPIES.name, "report", "stopped"}
    return {folder.name for folder in COPIES.parent.glob("*")} <= known


def regenerate(numbers: list[str]) -> int:
    """Run what is stale, and what reads from it, or the notebooks of these numbers.

    All run in a copy of the working tree, so that no run of the reader's shows. Models that they
    read, and that are not there as the committed notebook made them, are made there first. Of what
    is stale, that is taken which `make tutorial` has run already.
    """
    setup_cell.write()
    parameter_table.write()
    drawings.write()
    chosen = {path.name[:2] for path in committed(numbers)} if numbers else stale_ones()
    if not chosen:
        print("No notebook is stale.")
        return 0
    clean_copy()
    repository = Repository(COPY)
    for path in committed(sorted(chosen | makers(chosen))):
        is_chosen, own = path.name[:2] in chosen, COPY / "notebooks" / path.name
        if is_chosen and not numbers and taken_over(path, repository.sha256(path.stem)):
            print(f"\n{path.stem}: as `make tutorial` has run it", flush=True)
        elif is_chosen or not is_made(path):
            print(f"\n{path.stem}", flush=True)
            if not execute_alone(own, path if is_chosen else own):
                return 1
        if is_chosen:
            outcome = tiny.outcome(path.stem, repository.sources(path.stem), COPY)
            stale.write(stale.tiny_record(path.stem, ROOT), outcome)
    return 0


def taken_over(path: Path, sources: str) -> bool:
    """Take a notebook's outputs, and what it left, from the tutorial's run of the same code.

    Not from one that found anything in artifacts/ but what the tutorial itself had left there.
    """
    copy = COPIES / path.name
    if not copy.exists():
        return False
    ran, notebook = (nbformat.read(each, as_version=4) for each in (copy, path))
    if not ran.metadata.get("alone") or ran.metadata["sources"] != sources:
        return False
    of_cells = {cell.id: cell for cell in ran.cells}
    for cell in notebook.cells:  # their texts may have changed since then
        if cell.cell_type == "code":
            cell.outputs = of_cells[cell.id].outputs
            cell.execution_count = of_cells[cell.id].execution_count
    kept = ("kernelspec", "language_info", "timings", "record")
    notebook.metadata = {key: ran.metadata[key] for key in kept}
    nbformat.write(notebook, path)
    if is_read(path):
        finished = copy.stat().st_mtime

        def later(folder: str, names: list[str]) -> list[str]:
            """What other notebooks have left there: theirs are made anew where they are run."""
            return [name for name in names if (Path(folder) / name).stat().st_mtime > finished]

        left = MADE / path.stem
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(ROOT / "artifacts" / path.stem, left, ignore=later)
        record = {**ran.metadata["record"], "timings": ran.metadata["timings"]}
        write_json(left / "metrics.json", record)
    return True


def is_read(path: Path) -> bool:
    """True if another notebook takes a model from this one."""
    return path.name[:2] in set().union(*READS.values())


def execute_alone(path: Path, target: Path, texts: str | None = None) -> bool:
    """`execute` in the copy, where there is nothing but what the notebook is to read.

    `texts` is the path of a file under artifacts/ that it reads as well.
    """
    artifacts, number = COPY / "artifacts", path.name[:2]
    shutil.rmtree(artifacts, ignore_errors=True)
    if texts is not None:
        (COPY / texts).parent.mkdir(parents=True)
        shutil.copy(ROOT / texts, COPY / texts)
    for maker in makers({number}):
        (folder,) = MADE.glob(f"{maker}_*")
        shutil.copytree(folder, artifacts / folder.name)
    if not execute(path, target, COPY):
        return False
    if is_read(path):
        shutil.rmtree(MADE / path.stem, ignore_errors=True)
        shutil.move(artifacts / path.stem, MADE / path.stem)
    return True


def stale_ones() -> set[str]:
    """The numbers of the stale notebooks and of those that read from them; why is printed."""
    repository, found = Repository(ROOT), set()
    for path in committed([]):
        verdict = stale.renew(stale.check(path.stem, repository))
        stale.show(verdict)
        found |= {path.name[:2]} if verdict.reasons else set()
    return with_readers(found)


def with_readers(numbers: set[str]) -> set[str]:
    """The notebooks, and those that take models from them, directly or not."""
    readers = {number for number, makers in READS.items() if makers & numbers}
    return numbers if readers <= numbers else with_readers(numbers | readers)


def makers(numbers: set[str]) -> set[str]:
    """The notebooks that these take models from, directly or not."""
    found = set().union(*(READS.get(number, set()) for number in numbers))
    return found | makers(found) if found else set()


def is_made(path: Path) -> bool:
    """True if `MADE` holds what the committed run of this notebook has left."""
    file = MADE / path.stem / "metrics.json"
    if not file.exists():
        return False
    left = json.loads(file.read_text(encoding="utf-8"))
    committed_record = nbformat.read(path, as_version=4).metadata.get("record")
    return {key: value for key, value in left.items() if key != "timings"} == committed_record


def long_record(name: str) -> int:
    """Run a notebook with a parameter file of `LONG`, and keep its record in notebooks/records."""
    number, kept = LONG[name]
    parameters = ROOT / "notebooks" / "parameters" / f"{name}.yaml"
    changes = yaml.safe_load(parameters.read_text(encoding="utf-8"))
    texts = changes.get("LABELLED_CORPUS")
    if texts is not None and not (ROOT / texts).is_file():
        sys.exit(f"{texts} is missing. The first lines of {name}.yaml say how it is made.")
    clean_copy()
    (path,) = committed([number])
    repository, own = Repository(COPY), COPY / "notebooks" / path.name
    sources = repository.sources(path.stem)
    tiny_record = tiny.outcome(path.stem, sources, COPY)["record"]
    for maker in committed(sorted(makers({number}))):
        if not is_made(maker) and not execute_alone(maker, COPY / "notebooks" / maker.name):
            return 1
    nbformat.write(parameterize_notebook(load_notebook_node(str(own)), changes), own)
    if not execute_alone(own, own, texts):
        return 1
    metadata = nbformat.read(own, as_version=4).metadata
    made_from = {
        "notebook": path.stem,
        "parameters": parameters.name,
        "commit": git("rev-parse", "HEAD").strip(),
        "teacher": record_of(committed(["02"])[0], COPY)["fingerprint"],
        "sources": stale.of_record(sources, path.stem),
        "record": tiny_record,
    }
    record = {**metadata["record"], "timings": metadata["timings"], "made_from": made_from}
    stale.write(ROOT / "notebooks" / "records" / f"{kept}.json", record)
    return 0


def clean_copy() -> None:
    """Copy to `COPY` what git tracks or would add; what is in `MADE` stays."""
    COPY.mkdir(parents=True, exist_ok=True)
    for old in COPY.iterdir():
        if old != MADE:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True)
    for name in done.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tutorial", "regenerate", "long-record"])
    parser.add_argument(
        "numbers",
        nargs="*",
        metavar="NN",
        help="which notebooks, such as 01 03; by default all, and of the committed ones the stale; "
        f"of a long record its parameter file: {', '.join(LONG)}",
    )
    arguments = parser.parse_args()
    try:
        if arguments.what == "long-record":
            if not arguments.numbers or set(arguments.numbers) - set(LONG):
                parser.error(f"which long record? There are {', '.join(LONG)}.")
            return max(long_record(name) for name in arguments.numbers)
        return {"tutorial": tutorial, "regenerate": regenerate}[arguments.what](arguments.numbers)
    except tiny.TinyRunError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {GOES_ON}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
