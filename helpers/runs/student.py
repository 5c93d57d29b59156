"""Your own model in one command: `python -m helpers.runs.student CORPUS=my.csv TEXT_FIELD=body TEACHER=...`

It runs notebook 03. With LABELLED_CORPUS, LABELLED_TEXT_FIELD and LABEL_FIELD it goes on to the classifier (06), and
with COMPRESS=1 to a file that answers without PyTorch (07). With HIDDEN_WORDS=false it leaves out 03, and distils the
task alone. Any other parameter of these notebooks may be given, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from helpers.catalyst_today.provenance import ROOT
from helpers.models import check_width, trim_vocabulary
from helpers.runs import experiment, task
from helpers.runs.parameters import PARAMETERS, as_meant, as_spelled, check_parameters, defaults, did_you_mean
from helpers.runs.records import below_root, from_root, record_name

NOTEBOOKS = ("03_runner", "06_sentiment_evaluation", "07_compression")


def read(arguments: list[str]) -> dict[str, Any]:
    """From ``NAME=value`` to values: numbers, and lists and dicts as YAML; other values are texts.

    Raises:
        ValueError: an argument has no name.
    """
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (name and equals):
            raise ValueError(f"{argument!r}: write NAME=value, such as CORPUS=my.csv.")
        given[name] = as_meant(name, as_spelled(value))
    return given


def plan(given: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """The notebooks to run, in order, and all parameters of each.

    Raises:
        ValueError: COMPRESS is not right, CORPUS is missing beside labelled texts of one's own, no notebook of these
            has a name, or a value is out of its range.
    """
    compress = given.pop("COMPRESS", 0)
    if compress not in (0, 1) or (compress and "LABELLED_CORPUS" not in given):
        raise ValueError(f"COMPRESS is {compress}: 1 compresses the classifier, so it needs LABELLED_CORPUS, too.")
    words = given.get("HIDDEN_WORDS", True)
    if words is False and "LABELLED_CORPUS" not in given:
        raise ValueError("HIDDEN_WORDS is False: then the task alone is distilled, so it needs LABELLED_CORPUS, too.")
    if given.get("LABELLED_CORPUS", "bundled") != "bundled" and "CORPUS" not in given:
        raise ValueError(
            "CORPUS is missing: name your texts without labels, too. CORPUS=bundled reads the packaged English reviews."
        )
    chosen = NOTEBOOKS[words is False : 1 + ("LABELLED_CORPUS" in given) + compress]
    quick = {"CONTROL": False, "MORE_CONTENDERS": []}  # one student, and as soon as may be
    plans = {}
    for path in (ROOT / "notebooks" / f"{name}.ipynb" for name in chosen):
        if not path.is_file():
            raise ValueError(f"{path} is missing: give this command in a clone of the repository.")
        own = defaults(path)
        plans[path] = own | {name: value for name, value in {**quick, **given}.items() if name in own}
    known = {name for values in plans.values() for name in values}
    for name in given:
        if name in PARAMETERS and name not in known:
            ran = " and ".join(each[:2] for each in chosen)
            raise ValueError(f"{name} has no effect on {ran}; LABELLED_CORPUS adds notebook 06, and COMPRESS=1 07.")
        if name not in known:
            raise ValueError(f"{name} is no parameter{did_you_mean(name.upper(), sorted(known))}")
    return {path: check_parameters(values) for path, values in plans.items()}


def check(plans: dict[Path, dict[str, Any]]) -> None:
    """Read the texts and the teacher, so that what is wrong with the last notebook's is said before the first.

    Raises:
        OSError, ValueError: what the readers of texts, `prepare_teacher`, `task.parted` and `trim_vocabulary` find.
    """
    values = list(plans.values())[-1]
    if "LABELLED_CORPUS" in values:
        task.check_models(values)
        task.parted(values)
    corpus, (teacher, tokenizer) = experiment.read_corpus(values), experiment.prepare_teacher(values)
    if "SMALL" in values:
        check_width(teacher, values["SMALL"]["FEED_FORWARD"])
        trim_vocabulary(teacher, tokenizer, corpus, values["SMALL"]["VOCABULARY"])


def show_heading(cell: Any, cell_index: int) -> None:
    """Print a section's heading when the run has come to it."""
    for line in cell.source.splitlines() if cell.cell_type == "markdown" else ():
        if line.startswith(("## ", "### ")):
            print(f"\n  {line.lstrip('# ')}", flush=True)


def run(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What a notebook measures with these parameters; it runs where it has not run with them.

    Raises:
        papermill.PapermillExecutionError: one of its cells fails.
    """
    name = record_name(values)
    folder = from_root(values["OUTPUT_DIR"]) / path.stem
    record, copy = folder / f"metrics-{name}.json", folder / f"run-{name}.ipynb"
    if record.is_file():
        print(f"\n{path.stem} has already run with these values.")
    else:
        print(f"\n{path.stem} runs. You can read it in {below_root(copy)}.", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        options = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"], "cwd": path.parent}
        options |= {"progress_bar": False, "stdout_file": sys.stdout, "on_cell_start": show_heading}
        options["shutdown_kernel"] = "immediate"  # else it would still answer after Ctrl-C, find nobody, and say so
        papermill.execute_notebook(path, copy, values, **options)
    return json.loads(record.read_text(encoding="utf-8"))


def use(path: Path, values: dict[str, Any], record: dict[str, Any]) -> str:
    """The folder that a notebook has left, and the three lines that use what is in it."""
    output = from_root(values["OUTPUT_DIR"])
    if path.stem == "07_compression":
        folder = below_root(output / path.stem / record["folder"])
        lines = ["from helpers.runs.answer import Classifier", f"answer = Classifier({str(folder)!r})"]
        return "\n".join(["", f"The classifier as a file: {folder}", "", *lines, 'print(answer("Your text."))'])
    task_name, what, options, text = "text-classification", "The classifier", ", truncation=True", "Your text."
    folder = output / path.stem / f"{record.get('saved')}-{record['fingerprint']}"
    if path.stem == "03_runner":
        task_name, what, options, folder = "fill-mask", "The student", "", output / record["student"]
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        text = values["SENTENCES"][0].replace("[MASK]", settings["mask_token"])
    lines = ["from transformers import pipeline"]
    lines += [
        f"answer = pipeline({task_name!r}, model={str(below_root(folder))!r}{options})",
        f"print(answer({text!r}))",
    ]
    return "\n".join(["", f"{what}: {below_root(folder)}", "", *lines])


def main(arguments: list[str]) -> int:
    """Run the notebooks; the exit status. What is wrong is said in one sentence."""
    if not arguments:
        print(__doc__)
        return 2
    try:
        plans = plan(read(arguments))
        print("Looks at texts and teacher.", flush=True)
        check(plans)
        made = {path: run(path, values) for path, values in plans.items()}
    except (PapermillExecutionError, DeadKernelError, OSError, ValueError) as error:
        said = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        print(f"\n{' '.join(said.split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here: models that are finished are kept.", file=sys.stderr)
        return 130
    for path, values in plans.items():
        print(use(path, values, made[path]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
