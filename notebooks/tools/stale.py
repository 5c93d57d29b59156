"""Say which committed notebooks and long records are stale, and why: `make stale`.

One is stale when what it shows could be another. Hashes of its code, of the helpers that it reaches
and of the pins tell in seconds that nothing has changed; where something has, the notebook's tiny
run decides, unless it is something that no tiny run takes or shows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
import nbformat
import tiny
from sources import LISTED, Repository
from syntax import hash_of
from tolerance import Difference, differences, record_differences

ROOT = Path(__file__).resolve().parents[2]
RECORDS = "notebooks/records/"
ALWAYS = {
    "cells": "code cells changed, and no tiny run can judge them: {}",
    "pins": "pins changed: {}",
    "listed": "changed, and no tiny run takes it as the real one does: {}",
    "casts": "what chooses the type of numbers changed, and the tiny run is in float32: {}",
    "printed": "changed, and its source is shown: {}",
}
"""What makes stale by itself, by its kind in `Repository.sources`."""


class Verdict(NamedTuple):
    """What was found out about a notebook or a long record.

    Attributes:
        name: of the notebook, or of the record's file.
        reasons: why it is stale; none where it is fresh.
        note: how a tiny run found it fresh; empty where none was needed.
        file: what was committed is in it.
        renewed: what to write there where it is fresh: the same, with today's hashes.
    """

    name: str
    reasons: list[str]
    note: str
    file: Path
    renewed: dict


def write(file: Path, value: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def names(root: Path = ROOT) -> list[str]:
    """The notebooks in reading order."""
    return [path.stem for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))]


def changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The names under which two sets of hashes differ. In another order, all of them."""
    if list(old.items()) == list(new.items()):
        return []
    return [name for name in {**old, **new} if old.get(name) != new.get(name)] or list(new)


def for_tiny_run(before: dict, now: dict) -> list[str]:
    """What has changed of that which a tiny run takes."""
    kinds = ("cells", "helpers", "files")
    return [name for kind in kinds for name in changed(before[kind], now[kind])]


def cells_beyond_tiny_runs(path: Path) -> set[str]:
    """The ids of the code cells whose change no tiny run can judge.

    Those that show a picture, or what differs from run to run; the parameters, which a tiny run has
    of its own; and those that have not been run since they were written.
    """
    found = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        shown = {mime for output in cell.outputs for mime in output.get("data", {})}
        tags = {"parameters", "nbval-ignore-output"} & set(cell.metadata.get("tags", []))
        if tags or cell.execution_count is None or any("image/" in mime for mime in shown):
            found.add(cell.id)
    return found


def changed_listed(before: dict, now: dict) -> list[str]:
    """What is in `LISTED`, has been reached before, and is not there any more as it was.

    A new function of a listed module changes nothing by itself, and neither does a move to another
    module. What has been listed since then has changed if its module has.
    """

    def entry(name: str) -> str | None:
        return next((each for each in LISTED if f"{name}.".startswith(f"{each}.")), None)

    old, new = before["listed"], now["listed"]
    known, touched = {entry(name) for name in old}, tuple(for_tiny_run(before, now))
    found = [name for name in old if entry(name) and old[name] not in new.values()]
    later = [name for name in new if entry(name) not in known and new[name] not in old.values()]
    found += [name for name in later if name.startswith(touched)]
    return [f"{name.rstrip('.')} ({LISTED[entry(name)]})" for name in found]


def changed_casts(before: dict, now: dict) -> list[str]:
    """Where numbers may have got another type; a new function changes nothing by itself."""
    old, new = before["casts"], now["casts"]
    lost = [name for name in old if old[name] and old[name] not in new.values()]
    return lost + [name for name in old if not old[name] and new.get(name)]


def always(before: dict, now: dict, beyond: set[str]) -> list[str]:
    """Why a notebook is stale whatever its tiny run says; `beyond` are `cells_beyond_tiny_runs`."""
    found = {
        "cells": [each for each in changed(before["cells"], now["cells"]) if each in beyond],
        "pins": changed(before["pins"], now["pins"]),
        "listed": changed_listed(before, now),
        "casts": changed_casts(before, now),
        "printed": changed(before["printed"], now["printed"]),
    }
    return [ALWAYS[kind].format(", ".join(parts)) for kind, parts in found.items() if parts]


def judge(
    before: dict,
    now: dict,
    tiny_differences: Callable[[], list[Difference]],
    beyond: set[str] = frozenset(),
) -> tuple[list[str], str]:
    """The reasons and the note of a `Verdict`.

    Args:
        before: the sources that what is committed was made from.
        now: those of today.
        tiny_differences: how a tiny run of today differs from the committed one.
        beyond: the notebook's `cells_beyond_tiny_runs`.
    """
    if reasons := always(before, now, beyond):
        return reasons, ""
    if not (parts := for_tiny_run(before, now)):
        return [], ""
    what = f"changed: {', '.join(parts)}"
    if before["tiny"] != now["tiny"]:
        return [f"{what}; and the tiny run is another than the committed one"], ""
    began = time.monotonic()
    try:
        found = tiny_differences()
    except tiny.TinyRunError as error:
        return [f"{what}; {error}"], ""
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return [f"{what}; its tiny run shows {found[0]}{more}"], ""
    return [], f"{what}; its tiny run shows the same ({time.monotonic() - began:.0f} s)"


def tiny_record(name: str, root: Path = ROOT) -> Path:
    """The committed tiny record of a notebook: ``sources``, ``record`` and ``outputs``."""
    return root / RECORDS / "tiny" / f"{name}.json"


def check(name: str, repository: Repository) -> Verdict:
    """Whether a committed notebook is stale. Its tiny run is made only where hashes differ."""
    file, now = tiny_record(name, repository.root), repository.sources(name)
    if not file.exists():
        return Verdict(name, ["it has no tiny record: `make notebooks` writes it"], "", file, {})
    committed = json.loads(file.read_text(encoding="utf-8"))

    def tiny_differences() -> list[Difference]:
        return list(differences(committed, tiny.outcome(name, now, repository.root)))

    beyond = cells_beyond_tiny_runs(repository.root / "notebooks" / f"{name}.ipynb")
    reasons, note = judge(committed["sources"], now, tiny_differences, beyond)
    return Verdict(name, reasons, note, file, {**committed, "sources": now})


def of_record(sources: dict, notebook: str) -> dict:
    """The sources of a long record: of its notebook's, without what is only shown there."""
    files = {file: own for file, own in sources["files"].items() if not file.startswith(RECORDS)}
    files[f"notebooks/{notebook}.ipynb"] = hash_of(list(sources["cells"].items()))
    listed = {each: own for each, own in sources["listed"].items() if not each.startswith(RECORDS)}
    return {**sources, "cells": {}, "printed": {}, "listed": listed, "files": files}


def as_far_as(old, new):
    """Of a newer record, what an older one has, too: what it has got since then is no reason."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: as_far_as(own, new[key]) for key, own in old.items() if key in new}
    return new


def check_record(file: Path, repository: Repository) -> Verdict:
    """Whether a long record is stale."""
    record = json.loads(file.read_text(encoding="utf-8"))
    made = record["made_from"]
    if "part" in made:
        return check_part(file, record, repository)
    sources = repository.sources(made["notebook"])
    now = of_record(sources, made["notebook"])

    def tiny_differences() -> list[Difference]:
        found = tiny.outcome(made["notebook"], sources, repository.root)
        return record_differences(made["record"], as_far_as(made["record"], found["record"]))[0]

    reasons, note = judge(made["sources"], now, tiny_differences)
    renewed = {**record, "made_from": {**made, "sources": now}}
    return Verdict(file.name, reasons, note, file, renewed)


def check_part(file: Path, record: dict, repository: Repository) -> Verdict:
    """The same of a record of the controls. Runs that the part has got since then are no reason."""
    made = record["made_from"]
    now, today = repository.part_sources(made["part"]), {}

    def tiny_differences() -> list[Difference]:
        found = tiny.part_outcome(made["part"], now, repository.root)["record"]
        entries = {key: found["entries"].get(key, "nothing") for key in made["record"]["entries"]}
        today.update(found)
        return record_differences(made["record"], {**found, "entries": entries})[0]

    reasons, note = judge(made["sources"], now, tiny_differences)
    renewed = {**record, "made_from": {**made, "sources": now, "record": today}}
    return Verdict(file.name, reasons, note, file, renewed)


def verdicts(repository: Repository) -> Iterator[Verdict]:
    """Check every notebook and long record; the hashes of those that are fresh are renewed."""
    for name in names(repository.root):
        yield renew(check(name, repository))
    for file in sorted((repository.root / RECORDS).glob("*.json")):
        yield renew(check_record(file, repository))


def renew(verdict: Verdict) -> Verdict:
    if verdict.note:
        write(verdict.file, verdict.renewed)
    return verdict


def show(verdict: Verdict) -> None:
    """Print why something is stale, or how a tiny run found it fresh; else nothing."""
    for reason in verdict.reasons:
        print(f"{verdict.name} is stale: {reason}", flush=True)
    if verdict.note:
        print(f"{verdict.name} is fresh: {verdict.note}", flush=True)


def main() -> int:
    is_stale = False
    for verdict in verdicts(Repository()):
        show(verdict)
        is_stale |= bool(verdict.reasons)
    return int(is_stale)


if __name__ == "__main__":
    sys.exit(main())
