"""Make the records of the controls in notebooks/records: `make controls PARTS="recipe layers"`.

Each finished run is an entry in the record of its part, written at once: the same command goes on
with the next one. `python notebooks/tools/controls.py --table layers` prints a record's table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
import yaml
from control_plan import PARTS, TASK
from control_runs import make_part
import stale
import tiny
from helpers.catalyst_today.provenance import git
from helpers.runs.controls import by_label, table
from helpers.runs.parameters import defaults
from sources import Repository

ROOT = Path(__file__).resolve().parents[2]
APART = ("SENTENCES", "SEED", "CONTROL")
"""Parameters of notebook 03 that the controls have no use for, or of their own."""


def shared_parameters(changes: dict) -> dict:
    """The defaults of notebook 03, and of 06 for its task, with changes; and SEEDS."""
    notebooks = ROOT / "notebooks"
    task = defaults(notebooks / "06_sentiment_evaluation.ipynb")
    own = defaults(notebooks / "03_runner.ipynb") | {name: task[name] for name in TASK}
    values = {name: changes.get(name, value) for name, value in own.items() if name not in APART}
    if isinstance(values["LAYERS"], int):
        values["LAYERS"] = f"spread:{values['LAYERS']}"
    return {**values, "SEEDS": changes["SEEDS"]}


def read(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


def record_file(part: str, root: Path = ROOT) -> Path:
    return root / stale.RECORDS / f"{part}.json"


def begun(part: str, repository: Repository) -> dict:
    """The record of a part as far as it has come, if it is fresh, or a new one.

    Raises:
        ValueError: it is stale.
    """
    file = record_file(part, repository.root)
    if file.exists():
        verdict = stale.renew(stale.check_record(file, repository))
        if verdict.reasons:
            raise ValueError(
                f"{file.name} is stale: {'; '.join(verdict.reasons)}. Move it away to have it made "
                "anew, or go back to the code that made it."
            )
        return read(file)
    sources = repository.part_sources(part)
    made_from = {
        "part": part,
        "commit": git("rev-parse", "HEAD").strip(),
        "sources": sources,
        "record": tiny.part_outcome(part, sources, repository.root)["record"],
    }
    return {"made_from": made_from}


def without_tiny_run(sources: dict) -> dict:
    """The sources of a record, of whatever part."""
    return {kind: own for kind, own in sources.items() if kind != "tiny"}


def make(part: str, base: dict, repository: Repository) -> None:
    """Make the runs that the record of a part lacks, and that no other has from the same code."""
    record = begun(part, repository)
    code = without_tiny_run(record["made_from"]["sources"])
    files = [record_file(other, repository.root) for other in PARTS if other != part]
    others = [read(file) for file in files if file.exists()]
    same = [each for each in others if without_tiny_run(each["made_from"]["sources"]) == code]
    make_part(part, base, record_file(part, repository.root), record, same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--table", metavar="PART", help="print the table of a record")
    parser.add_argument("--against", metavar="LABEL", help="its row to compare with; or the first")
    tried = {"nargs": 2, "type": Path, "metavar": ("PARAMETERS", "RECORD")}
    parser.add_argument("--tiny", **tried, help="one part on tiny data, as `make stale` tries it")
    arguments = parser.parse_args()
    named = [*arguments.parts, *([arguments.table] if arguments.table else [])]
    if unknown := sorted(set(named) - set(PARTS)):
        parser.error(f"no part called {', '.join(unknown)}: there are {', '.join(PARTS)}.")
    try:
        if arguments.table:
            record = read(record_file(arguments.table))
            against = arguments.against or next(iter(by_label(record)))
            print(table(record, against).round(3).to_string())
        elif arguments.tiny:
            parameters, file = arguments.tiny
            base = shared_parameters(yaml.safe_load(parameters.read_text(encoding="utf-8")))
            make_part(arguments.parts[0], base, file, {}, [])
        else:
            parameters = ROOT / "notebooks" / "parameters" / "controls.yaml"
            base = shared_parameters(yaml.safe_load(parameters.read_text(encoding="utf-8")))
            for part in arguments.parts or PARTS:
                make(part, base, Repository(ROOT))
    except (ValueError, FileNotFoundError, tiny.TinyRunError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on with the run that was interrupted.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
