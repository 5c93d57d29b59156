"""The rooms of the house: what a module may import, and how long a reader's evening gets."""

import ast
import re

import pytest

import helpers
from conftest import ROOT

FRONT = ["data", "models", "losses", "callbacks", "runner", "training", "classification", "evaluation"]
FRONT += ["compression", "plots"]
"""The front rooms in reading order: each imports only what stands before it."""
BACK = ["files", "catalyst_today", "runs"]
MAY_USE_BACK_ROOMS = {
    "data": {"files"},
    "models": {"files"},
    "training": {"catalyst_today"},
    "classification": {"catalyst_today"},
    "runs": {"catalyst_today"},
}
"""Which room may import which back room; `runs` may be imported by notebooks alone."""
WITHOUT_CATALYST = ["data", "models", "losses", "evaluation", "compression", "plots", "files"]


def modules():
    """From a module's dotted name to its file, packages by their own name."""
    found = {}
    for file in sorted((ROOT / "helpers").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported(name):
    """(modules of this repository, other top-level packages) that a module imports, wherever in it."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [each if each in MODULES else node.module for each in whole]
        for each in names:
            (ours if each.split(".")[0] == "helpers" else others).add(each)
    return ours, {other.split(".")[0] for other in others}


def room(name):
    return name.split(".")[1]


def rooms(name):
    """The other rooms that a module imports from."""
    return {room(other) for other in imported(name)[0] if other != "helpers"} - {room(name)}


INSIDE = [name for name in MODULES if name != "helpers"]


def test_there_are_no_other_rooms():
    assert {room(name) for name in INSIDE} == {*FRONT, *BACK}


@pytest.mark.parametrize("name", INSIDE)
def test_a_module_imports_from_rooms_that_it_may(name):
    own = room(name)
    allowed = set(FRONT if own in BACK else FRONT[: FRONT.index(own)]) | MAY_USE_BACK_ROOMS.get(own, set())
    assert rooms(name) <= allowed


def test_no_circle_leads_from_a_module_to_itself():
    reached = {name: imported(name)[0] - {name} for name in INSIDE}
    for _ in INSIDE:
        reached = {
            name: found.union(*(reached.get(other, set()) for other in found)) for name, found in reached.items()
        }
    # A package and its own modules are one room: `helpers.data` names what its modules hold.
    circles = [name for name, found in reached.items() if name in found]
    assert not circles
    by_room = {own: set().union(*(rooms(name) for name in INSIDE if room(name) == own)) for own in [*FRONT, *BACK]}
    for _ in by_room:
        by_room = {own: found.union(*(by_room[other] for other in found)) for own, found in by_room.items()}
    assert not [own for own, found in by_room.items() if own in found]


@pytest.mark.parametrize("own", WITHOUT_CATALYST)
def test_what_has_to_outlive_catalyst_does_not_reach_it(own):
    reached, new = set(), {name for name in INSIDE if room(name) == own}
    while new:
        reached |= new
        new = set().union(*(imported(name)[0] for name in new)) - reached - {"helpers"}
    assert not {name for name in reached if "catalyst" in imported(name)[1]}
    assert not {name for name in reached if room(name) in ("catalyst_today", "runs")}


def test_the_page_on_catalyst_lists_all_that_import_it():
    page = (ROOT / "docs" / "catalyst_today.md").read_text(encoding="utf-8")
    listed = {f"helpers.{name.replace('/', '.')}" for name in re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE)}
    importing = {name for name in INSIDE if "catalyst" in imported(name)[1]}
    assert listed == importing
    (said,) = re.findall(r"some ([\d,]+) lines", page)
    lines = sum(len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in importing)
    assert abs(lines - int(said.replace(",", ""))) <= 100


def test_only_fit_calls_catalysts_train():
    calls = [
        (name, node.lineno)
        for name in INSIDE
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "train"
        if node.args or node.keywords  # `model.train()` goes into training mode
    ]
    assert [name for name, _ in calls] == ["helpers.training"]


def test_the_front_rooms_fit_into_an_evening():
    lines = {
        name: len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in INSIDE if room(name) in FRONT
    }
    assert sum(lines.values()) <= 3800
    assert max(lines.values()) <= 300


def test_the_list_of_rooms_is_one_list():
    listed = re.findall(r"^- `(\w+)`: (.+)$", helpers.__doc__, flags=re.MULTILINE)
    assert [name for name, _ in listed] == FRONT
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page[page.index("## The code") :].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", section, flags=re.MULTILINE) == listed
    assert re.findall(r"`helpers/(\w+)/`", section) == BACK
