"""What makes a committed notebook stale, on small made-up repositories, and what two tiny runs may show differently."""

import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import sources
import stale
import tiny
import tolerance
from sources import LISTED, Code, Repository
from syntax import Dump, definition, hash_of

LOSS = '''
def loss(logits, targets, scale=2.0):
    """What it is."""
    picked = [row.max() for row in logits]  # the largest
    total = 0.0
    for value in picked:
        total += value * scale
    return total
'''


def of(code):
    return hash_of(Dump()(ast.parse(code).body))


SAME = {
    "docstring": ('"""What it is."""', '"""Another text, and longer."""'),
    "no docstring": ('    """What it is."""\n', ""),
    "comment": ("  # the largest", ""),
    "layout": ("total += value * scale", "total += (\n            value\n            * scale\n        )"),
    "local": ("total", "summed"),
    "loop variable": ("value", "each"),
    "of a comprehension": ("row.max() for row in", "line.max() for line in"),
    "quotes and numbers": ("0.0", "0.00"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_matter_changes_no_hash(change):
    changed = LOSS.replace(*SAME[change])
    assert changed != LOSS
    assert of(changed) == of(LOSS)


OTHER = {
    "constant": ("scale=2.0", "scale=2.5"),
    "integer for a float": ("0.0", "0"),
    "operator": ("value * scale", "value / scale"),
    "parameter": ("scale", "factor"),
    "name of the function": ("def loss", "def losses"),
    "attribute": ("row.max()", "row.min()"),
    "another of two locals": ("return total", "return value"),
    "one local for two": ("value", "total"),
    "global": ("row.max() for row in logits", "biggest(row) for row in logits"),
    "order": ("    total = 0.0\n", ""),
    "local for a global": ("for row in logits", "for row in LOGITS"),
    "a default that is given": ("row.max()", "row.max(dim=0)"),
    "keyword": ("row.max()", "row.max(axis=0)"),
    "annotation": ("targets,", "targets: int,"),
}


@pytest.mark.parametrize("change", OTHER)
def test_what_may_matter_changes_the_hash(change):
    changed = LOSS.replace(*OTHER[change])
    assert changed != LOSS
    assert of(changed) != of(LOSS)


RENAMED = [
    ("def f(a):\n    {0} = a\n    def g(x):\n        return {0} + x\n    return g", True),  # closed over
    ("def f(a):\n    {0} = a\n    return lambda: {0}", True),
    ("def f(a):\n    return [{0} for {0} in a if {0}]", True),
    ("def f(a):\n    return {{{0}: 1 for {0} in a}}", True),
    ("x = [{0} for {0} in y]", True),
    ("def f(a):\n    try:\n        a()\n    except E as {0}:\n        print({0})", True),
    ("def f(a):\n    with a as {0}:\n        return {0}", True),
    ("def f(a):\n    if ({0} := a()):\n        return {0}", True),
    ("def f(a):\n    match a:\n        case [1, {0}]:\n            return {0}", True),
    ("def f(a):\n    return [b for b in a if ({0} := b)] and {0}", True),
    ("class C:\n    def f(self):\n        {0} = self\n        return {0}", True),
    ("def f(a):\n    {0} = a\n    class C:\n        x = {0}\n    return C", True),
    ("{0} = 1", False),  # a module's own name
    ("def f({0}):\n    return {0}", False),  # a parameter, which may be given by name
    ("f = lambda {0}: {0}", False),
    ("class C:\n    {0} = 1", False),  # an attribute
    ("def f():\n    global {0}\n    {0} = 1", False),
    ("def f():\n    {0} = 1\n    def g():\n        nonlocal {0}\n        {0} = 2\n    return g", False),
    ("def f():\n    {0} = 1\n    return locals()", False),
    ("def f():\n    {0} = 1\n    return eval('one')", False),
    ("def f():\n    {0} = 1\n    return f'{{{0}=}}'", False),  # its text holds the name
    ("def f():\n    import {0}\n    return {0}", False),
    ("def f():\n    def {0}():\n        pass\n    return {0}", False),  # it may be pickled
    ("def f():\n    {0} = 1\n    get_ipython().system('echo {{{0}}}')", False),
]


@pytest.mark.parametrize(("code", "may_be_renamed"), RENAMED)
def test_a_name_may_be_another_where_nothing_outside_can_know_it(code, may_be_renamed):
    one, other = code.format("one"), code.format("other")
    assert (of(one) == of(other)) is may_be_renamed


def test_a_local_is_not_taken_for_what_hides_it():
    inner = "def f():\n    a = 1\n    def g(a):\n        return a\n    return g"
    outer = "def f():\n    a = 1\n    def g(b):\n        return a\n    return g"
    assert of(inner) != of(outer)
    own = "def f(x):\n    a = 1\n    return [a for a in x], a"
    assert of(own) == of(own.replace("a for a", "b for b"))
    assert of(own) != of(own.replace("[a for a", "[a for b"))
    hidden = (
        "def f():\n    a = 1\n    class C:\n        a = 2\n        def g(self):\n            return a\n    return C"
    )
    assert of(hidden) == of(hidden.replace("    a = 1", "    b = 1").replace("return a", "return b"))


def test_pythons_that_cut_an_f_string_otherwise_give_one_hash():
    whole = ast.parse("f'a b {x}'").body
    pieces = ast.parse("f'a b {x}'").body
    joined = pieces[0].value
    joined.values = [ast.Constant("a "), ast.Constant("b "), ast.Constant(""), *joined.values[1:]]
    assert Dump()(pieces) == Dump()(whole)


def test_what_chooses_a_type_is_found_and_a_new_local_is_none():
    before = Code("def f(x):\n    return x.float() + _wide(x)\n\ndef g(x):\n    return x\n")
    assert [bool(before.casts[name]) for name in ("f", "g")] == [True, False]
    more = Code("def f(x):\n    y = 1\n    z = x\n    return z.float() + _wide(x)\n")
    first = Code("def f(x):\n    z = x\n    return z.float() + _wide(x)\n")
    assert more.casts["f"] == first.casts["f"]
    assert Code("def f(x):\n    return x + _wide(x)\n").casts["f"] != before.casts["f"]


HELPERS = {
    "__init__": "",
    "data": "def read(path):\n    print('read')\n    return path\n",
    "losses": "from helpers.data import read\n" + LOSS,
    "plots": "def draw(x):\n    return x\n",
    "runs.__init__": "",
    "runs.launch": "def start():\n    from helpers import losses\n    return losses\n",
    "unused": "x = 1\n",
}
CELLS = ["from helpers import losses, plots", "losses.loss([], [])", "# a note\nprint(plots.draw(1))"]


@pytest.fixture
def repository(tmp_path):
    """A working tree with one notebook, which has never been run."""
    write_helpers(tmp_path, HELPERS)
    (tmp_path / "tests" / "data").mkdir(parents=True)
    (tmp_path / "tests" / "tiny_teacher.py").write_text("", encoding="utf-8")
    (tmp_path / "notebooks" / "parameters").mkdir(parents=True)
    (tmp_path / "notebooks" / "parameters" / "tiny.yaml").write_text("SEED: 0\n", encoding="utf-8")
    project = 'dependencies = [\n    "torch==2.13.0",\n    "tqdm==4.70.1",\n]\n'
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    write_notebook(tmp_path, CELLS)
    return tmp_path


def write_helpers(root, modules):
    for name, text in modules.items():
        file = root.joinpath("helpers", *name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def write_notebook(root, cells, name="01_one"):
    cells = [
        nbformat.v4.new_code_cell(source, id=f"c{number:02}", execution_count=number + 1)
        for number, source in enumerate(cells)
    ]
    cells[-1].outputs = [nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


def edit(file, *change):
    text = file.read_text(encoding="utf-8")
    assert change[0] in text
    file.write_text(text.replace(*change), encoding="utf-8")


RECORD = {"valid_masked_tokens": 40, "perplexity": 30.0, "masked_accuracy": 0.5}
SHOWN = {"record": RECORD, "outputs": {"c02": "perplexity 30.0"}}


@pytest.fixture
def committed(repository):
    """The same, its notebook committed with a tiny record."""
    found = {"sources": Repository(repository).sources("01_one"), **SHOWN}
    stale.write(stale.tiny_record("01_one", repository), found)
    return repository


@pytest.fixture
def tiny_run(monkeypatch):
    """What the next tiny run shows; without it there may be none."""

    def outcome(name, sources, root):
        return {"sources": sources, **shown.pop()}

    shown = []
    monkeypatch.setattr(tiny, "outcome", outcome)
    return shown


def verdict(root):
    return stale.check("01_one", Repository(root))


def test_what_a_notebook_reaches(repository):
    write_notebook(repository, ["%env A=1\n!{run} -C", "%%program\nfrom helpers.runs import launch", "plots = 1"])
    found = Repository(repository).sources("01_one")
    assert list(found["helpers"]) == [
        *("helpers", "helpers.data", "helpers.losses", "helpers.runs", "helpers.runs.launch")
    ]
    assert list(found["cells"]) == ["c00", "c01", "c02"]
    assert found["pins"]["torch"] == "==2.13.0"
    assert "tqdm" not in found["pins"]


def test_modules_are_reached_by_every_way_of_naming_them():
    ways = ["import helpers.a.b", "from helpers.a import b", "from helpers.a.b import c", "x = 'helpers.a.b.C'"]
    for way in ways:
        assert {"helpers", "helpers.a", "helpers.a.b"} <= Code(way).modules, way
    assert "helpers.a" not in Code('def f():\n    """See helpers.a."""').modules


def test_files_that_a_string_names_are_reached_and_what_they_name(repository):
    configs = repository / "notebooks" / "configs"
    configs.mkdir()
    (configs / "run.yml").write_text("_target_: helpers.runs.launch.start\n", encoding="utf-8")
    write_notebook(repository, ["from helpers import data"], name="02_two")
    write_notebook(repository, ["x = 'notebooks/configs/run.yml'", "y = ROOT / '02_two.ipynb'", "'metrics.json'"])
    found = Repository(repository).sources("01_one")
    assert list(found["files"]) == ["notebooks/02_two.ipynb", "notebooks/configs/run.yml"]
    assert {"helpers.data", "helpers.runs.launch", "helpers.losses"} <= found["helpers"].keys()


def test_a_record_that_a_notebook_reads_counts_without_what_it_was_made_from(repository):
    kept = repository / "notebooks" / "records" / "few.json"
    kept.parent.mkdir()
    write_notebook(repository, ["x = 'notebooks/records/few.json'"])

    def found(**parts):
        kept.write_text(json.dumps({"entries": {"teacher": 1.0}} | parts), encoding="utf-8")
        return Repository(repository).sources("01_one")

    first = found(made_from={"sources": {"helpers": {"helpers.runs.launch": "a hash"}}})
    assert "notebooks/records/few.json" in first["files"]
    assert "helpers.runs.launch" not in first["helpers"]
    assert found(made_from={"sources": {"helpers": {"helpers.losses": "another"}}}) == first
    assert found(entries={"teacher": 2.0})["files"] != first["files"]


def test_the_one_hash_is_the_same_in_every_process():
    code = "import sources; print(sources.Repository().sha256('03_runner'))"
    tools = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'notebooks' / 'tools'}"}

    def told(seed):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=tools | {"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout

    assert told("1") == told("2")


def test_a_program_that_a_string_names_counts_as_code(repository):
    program = repository / "notebooks" / "tools" / "program.py"
    program.parent.mkdir()

    def reached(text):
        program.write_text(text, encoding="utf-8")
        return Repository(repository).sources("01_one")

    write_notebook(repository, ["!python {ROOT / 'notebooks/tools/program.py'}", "x = 'notebooks/tools/program.py'"])
    found = reached("from helpers.runs import launch\n")
    assert {"helpers.runs.launch", "helpers.losses"} <= found["helpers"].keys()
    assert reached("# A note.\nfrom helpers.runs import launch\n")["files"] == found["files"]
    assert reached("from helpers.runs import launch as one\n")["files"] != found["files"]


def test_a_cell_is_what_it_does_and_shows(repository):
    def hashes(*cells):
        write_notebook(repository, cells)
        return list(Repository(repository).cells(repository / "notebooks" / "01_one.ipynb")[0].values())

    one = hashes("x = 1  # one\nx")
    assert hashes("x = 1\n\nx\n") == one
    assert hashes("x = 1\nx;") != one
    assert hashes("x = 1\nx\n'shown'") != hashes("x = 1\nx\n'also shown'")
    assert hashes("%%program\nx = 1") != hashes("%%another\nx = 1")
    assert hashes("%%html\n<b>") != hashes("%%html\n<i>")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("helpers/losses.py", ('"""What it is."""', '"""Another."""')),
        ("helpers/losses.py", ("  # the largest", "")),
        ("helpers/losses.py", ("picked", "chosen")),
        ("helpers/unused.py", ("1", "2")),
        ("notebooks/01_one.ipynb", ("# a note", "# another")),
        ("pyproject.toml", ("tqdm==4.70.1", "tqdm==4.70.2")),
        ("notebooks/parameters/tiny.yaml", ("0", "1")),
    ],
)
def test_what_no_output_depends_on_leaves_it_fresh_without_a_run(committed, tiny_run, file, change):
    edit(committed / file, *change)
    found = verdict(committed)
    assert (found.reasons, found.note) == ([], "")


def test_a_message_makes_a_tiny_run_which_finds_it_fresh_once(committed, tiny_run):
    edit(committed / "helpers/data.py", "'read'", "'I have read'")
    tiny_run.append({**SHOWN, "record": RECORD | {"perplexity": 30.0001}})
    found = stale.renew(verdict(committed))
    assert found.reasons == []
    assert re.fullmatch(r"changed: helpers\.data; its tiny run shows the same \(\d+ s\)", found.note)
    assert (verdict(committed).reasons, verdict(committed).note) == ([], "")
    kept = json.loads(stale.tiny_record("01_one", committed).read_text(encoding="utf-8"))
    assert {key: kept[key] for key in SHOWN} == SHOWN, "only the run that writes the outputs writes these"


def test_another_number_is_named(committed, tiny_run, capsys):
    edit(committed / "helpers/losses.py", "value * scale", "value")
    tiny_run.append({"record": RECORD | {"perplexity": 31.0}, "outputs": {"c02": "perplexity 31.0"}})
    found = verdict(committed)
    assert found.reasons == [
        "changed: helpers.losses; its tiny run shows perplexity: 30 committed, 31 now (and 1 more)"
    ]
    stale.show(found)
    assert capsys.readouterr().out == f"01_one is stale: {found.reasons[0]}\n"


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (
            "notebooks/01_one.ipynb",
            ("draw(1)", "draw(2)"),
            "code cells changed, and no tiny run can judge them: c02",
        ),
        ("pyproject.toml", ("torch==2.13.0", "torch==2.14.0"), "pins changed: torch"),
        (
            "helpers/plots.py",
            ("return x", "return -x"),
            "changed, and no tiny run takes it as the real one does: helpers.plots.draw (pictures are not compared)",
        ),
        (
            "helpers/losses.py",
            ("row.max()", "row.float().max()"),
            "what chooses the type of numbers changed, and the tiny run is in float32: helpers.losses.loss",
        ),
    ],
)
def test_what_no_tiny_run_can_tell_is_stale_without_one(committed, tiny_run, file, change, reason):
    edit(committed / file, *change)
    assert verdict(committed).reasons == [reason]


def test_a_cell_that_shows_text_is_judged_by_the_tiny_run(committed, tiny_run):
    edit(committed / "notebooks/01_one.ipynb", "loss([], [])", "loss([], [], scale=1.0)")
    tiny_run.append({"record": RECORD, "outputs": {"c02": "perplexity 31.0"}})
    assert verdict(committed).reasons[0].startswith("changed: c01; its tiny run shows")
    tiny_run.append(SHOWN)
    assert stale.renew(verdict(committed)).reasons == []
    assert verdict(committed).note == ""


@pytest.mark.parametrize("how", ["never run", "parameters", "differs from run to run", "new"])
def test_a_cell_that_no_tiny_run_shows_is_stale_without_one(committed, tiny_run, how):
    path = committed / "notebooks/01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = notebook.cells[1]
    cell.source = "losses.loss([], [], scale=1.0)"
    if how == "never run":
        cell.execution_count = None
    elif how == "new":
        cell.id, cell.execution_count = "new", None
    else:
        cell.metadata["tags"] = ["parameters" if how == "parameters" else "nbval-ignore-output"]
    nbformat.write(notebook, path)
    assert verdict(committed).reasons[0].startswith("code cells changed, and no tiny run can judge them: ")


def test_the_message_of_an_error_in_a_listed_part_is_left_to_the_tiny_run(repository, tiny_run, monkeypatch):
    monkeypatch.setitem(LISTED, "helpers.data.read", "a reason")
    with (repository / "helpers/data.py").open("a", encoding="utf-8") as file:
        file.write("    raise ValueError('no')\n")
    found = {"sources": Repository(repository).sources("01_one"), **SHOWN}
    stale.write(stale.tiny_record("01_one", repository), found)
    edit(repository / "helpers/data.py", "'no'", "'not at all'")
    tiny_run.append(SHOWN)
    assert verdict(repository).reasons == []
    edit(repository / "helpers/data.py", "    raise ValueError('not at all')\n", "")
    assert "helpers.data.read (a reason)" in verdict(repository).reasons[0]


def test_a_new_function_is_no_reason_by_itself(committed, tiny_run):
    with (committed / "helpers/plots.py").open("a", encoding="utf-8") as file:
        file.write("\ndef show(x):\n    return x.float()\n")
    tiny_run.append(SHOWN)
    assert verdict(committed).reasons == []


def test_a_source_that_is_shown_counts_to_the_letter(committed, tiny_run):
    write_notebook(committed, ["import inspect\nfrom helpers import losses", "inspect.getsource(losses.loss)"])
    sources = Repository(committed).sources("01_one")
    assert list(sources["printed"]) == ["helpers.losses.loss"]
    stale.write(stale.tiny_record("01_one", committed), {"sources": sources, **SHOWN})
    edit(committed / "helpers/losses.py", "# the largest", "# the smallest")
    assert verdict(committed).reasons == ["changed, and its source is shown: helpers.losses.loss"]


def test_a_source_that_a_folder_of_modules_hands_on_is_found_where_it_is_defined(repository):
    write_helpers(
        repository,
        {
            "shapes.__init__": "from helpers.shapes.circles import Circle\n",
            "shapes.circles": "class Circle:\n    def area(self):\n        return 3\n",
        },
    )
    shown = ["inspect.getsource(shapes.Circle)", "inspect.getsource(shapes.Circle.area)"]
    write_notebook(repository, ["import inspect\nfrom helpers import shapes", *shown])
    printed = Repository(repository).sources("01_one")["printed"]
    assert list(printed) == ["helpers.shapes.Circle", "helpers.shapes.Circle.area"]


def test_a_picture_that_a_notebook_does_not_draw_makes_it_not_stale(committed, tiny_run):
    edit(committed / "helpers/plots.py", "return x", "return _twice(x)\n\n\ndef _twice(x):\n    return x, x")
    assert verdict(committed).reasons
    before = Repository(committed).sources("01_one")
    assert {"helpers.plots.draw", "helpers.plots._twice"} <= set(before["listed"])
    write_notebook(committed, [CELLS[0], CELLS[1]])
    sources = Repository(committed).sources("01_one")
    assert [name for name in sources["listed"] if name.startswith("helpers.plots.")] == ["helpers.plots."]
    stale.write(stale.tiny_record("01_one", committed), {"sources": sources, **SHOWN})
    edit(committed / "helpers/plots.py", "return x, x", "return x, x, x")
    tiny_run.append(SHOWN)
    assert verdict(committed).reasons == []


def test_a_part_that_is_listed_later_counts_from_then_on(committed, tiny_run, monkeypatch):
    monkeypatch.setitem(LISTED, "helpers.data.read", "a reason")
    assert verdict(committed).reasons == []
    edit(committed / "helpers/data.py", "'read'", "'I have read'")
    (reason,) = verdict(committed).reasons
    assert reason.endswith(": helpers.data.read (a reason)")


def test_a_listed_part_that_has_moved_or_is_listed_no_more_is_no_reason(repository, tiny_run, monkeypatch):
    monkeypatch.setitem(LISTED, "helpers.data.read", "a reason")
    found = {"sources": Repository(repository).sources("01_one"), **SHOWN}
    stale.write(stale.tiny_record("01_one", repository), found)
    write_helpers(repository, {"data": "from helpers.files import read\n", "files": HELPERS["data"]})
    tiny_run.append(SHOWN)
    (reason,) = verdict(repository).reasons
    assert "helpers.data.read (a reason)" in reason
    monkeypatch.setitem(LISTED, "helpers.files.read", "a reason")
    tiny_run.append(SHOWN)
    assert verdict(repository).reasons == []
    monkeypatch.delitem(LISTED, "helpers.data.read")
    tiny_run.append(SHOWN)
    assert verdict(repository).reasons == []
    edit(repository / "helpers/files.py", "'read'", "'I have read'")
    (reason,) = verdict(repository).reasons
    assert reason.endswith(": helpers.files.read (a reason)"), "moved, and changed"
    edit(repository / "helpers/files.py", "'I have read'", "'read'")
    monkeypatch.delitem(LISTED, "helpers.files.read")
    tiny_run.append(SHOWN)
    assert verdict(repository).reasons == []


def test_a_notebook_without_a_tiny_record_one_that_fails_and_another_tiny_run_are_stale(committed, monkeypatch):
    edit(committed / "helpers/data.py", "'read'", "'I have read'")

    def fails(*arguments):
        raise tiny.TinyRunError("01_one fails on tiny data:\nValueError: no")

    monkeypatch.setattr(tiny, "outcome", fails)
    assert verdict(committed).reasons == ["changed: helpers.data; 01_one fails on tiny data:\nValueError: no"]
    edit(committed / "notebooks/parameters/tiny.yaml", "0", "1")
    assert verdict(committed).reasons == ["changed: helpers.data; and the tiny run is another than the committed one"]
    stale.tiny_record("01_one", committed).unlink()
    assert verdict(committed).reasons == ["it has no tiny record: `make notebooks` writes it"]


def test_a_long_record_is_stale_where_its_tiny_record_is_another(committed, tiny_run):
    sources = Repository(committed).sources("01_one")
    made = {"notebook": "01_one", "sources": stale.of_record(sources, "01_one"), "record": RECORD}
    file = committed / "notebooks" / "records" / "long.json"
    stale.write(file, {"perplexity": 10.0, "made_from": made})

    def check():
        return stale.check_record(file, Repository(committed))

    assert (check().reasons, check().note) == ([], "")
    edit(committed / "notebooks/01_one.ipynb", "draw(1)", "draw(2)")
    tiny_run.append({"record": RECORD, "outputs": {"c02": "another text, which is not in the record"}})
    assert stale.renew(check()).note.startswith("changed: notebooks/01_one.ipynb; its tiny run shows the same")
    assert (check().reasons, check().note) == ([], "")
    edit(committed / "helpers/losses.py", "value * scale", "value")
    tiny_run.append({"record": RECORD | {"perplexity": 31.0}, "outputs": {}})
    (reason,) = check().reasons
    assert reason.endswith("its tiny run shows perplexity: 30 committed, 31 now")
    tiny_run.append({"record": RECORD | {"got since then": 1}, "outputs": {}})
    assert check().reasons == [], "what it has more"
    tiny_run.append({"record": {key: RECORD[key] for key in RECORD if key != "perplexity"}, "outputs": {}})
    (reason,) = check().reasons
    assert reason.endswith("its tiny run shows perplexity: 30 committed, nothing now")


def test_all_that_is_listed_is_there():
    repository = Repository(ROOT)
    for name in LISTED:
        if name.startswith("helpers"):
            parts = name.split(".")
            modules = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            module = next(each for each in modules if repository.module(each))
            rest = name.removeprefix(module).removeprefix(".")
            assert not rest or definition(repository.module(module).tree, rest), name
        else:
            assert (ROOT / name).is_file(), name


def test_every_pin_that_counts_is_there():
    pins = Repository(ROOT).pins(sources.PINNED + sources.EXPORT)
    assert all(pin.startswith("==") for pin in pins.values())
    assert set(pins) == {*sources.PINNED, *sources.EXPORT}


def differences(committed, now):
    return [str(each) for each in tolerance.record_differences(committed, now)[0]]


def test_what_another_processor_changes_of_a_record_passes_and_no_more():
    old = {
        "parameters": {"LEARNING_RATE": 0.001, "LOSS_WEIGHTS": {"kl": 0.5}},
        "valid_masked_tokens": 40,
        "student_perplexity": 30.0,
        "student_masked_accuracy": 0.5,
        "largest_logit_difference_bert_base": 2e-6,
        "validations": [{"loss": 0.8, "lr": 0.001, "step": 5}],
        "from_few_rows": {"cross-entropy": 3.7, "KL to the teacher": 0.1},
        "labels": ["good", "bad"],
    }

    def changed(key, value):
        return differences(old, {**old, key: value})

    assert differences(old, json.loads(json.dumps(old))) == []
    assert changed("student_perplexity", 30.002) == []
    assert changed("student_perplexity", 30.004) == ["student_perplexity: 30 committed, 30.004 now"]
    assert changed("student_masked_accuracy", 0.5 + 1 / 40) == []
    assert changed("student_masked_accuracy", 0.5 + 2 / 40) == ["student_masked_accuracy: 0.5 committed, 0.55 now"]
    assert changed("largest_logit_difference_bert_base", 9e-5) == []
    assert len(changed("largest_logit_difference_bert_base", 2e-4)) == 1
    assert changed("validations", [{"loss": 0.80005, "lr": 0.001, "step": 5}]) == []
    assert changed("validations", [{"loss": 0.8, "lr": 0.0010005, "step": 5}]) != []
    assert changed("validations", [{"loss": 0.8, "lr": 0.001, "step": 6}]) != []
    assert changed("validations", []) != []
    assert changed("from_few_rows", {"cross-entropy": 3.7003, "KL to the teacher": 0.100009}) == []
    assert len(changed("from_few_rows", {"cross-entropy": 3.7005, "KL to the teacher": 0.10002})) == 2
    assert changed("valid_masked_tokens", 41) == ["valid_masked_tokens: 40 committed, 41 now"]
    assert changed("labels", ["bad", "good"]) != []
    assert changed("parameters", {"LEARNING_RATE": 0.001, "LOSS_WEIGHTS": {"kl": 0.5001}}) != []
    assert changed("student_perplexity", None) == ["student_perplexity: 30 committed, None now"]
    assert changed("new", 1) == ["new: nothing committed, 1 now"]
    assert len(differences(old, {key: old[key] for key in old if key != "labels"})) == 2


def test_nan_and_true_are_no_numbers_near_another():
    assert differences({"loss": 1.0}, {"loss": float("nan")}) != []
    assert differences({"resumed_equals_whole": True}, {"resumed_equals_whole": False}) != []
    assert differences({"steps_to_95": 5}, {"steps_to_95": None}) != []


def test_a_classifiers_scores_may_flip_one_of_their_fewest_texts():
    old = {"parts": {"train": 40, "valid": 20, "test": 40}, "contenders": {"teacher": {"test_accuracy": [0.5]}}}
    assert tolerance.scored(old) == 20
    now = json.loads(json.dumps(old))
    now["contenders"]["teacher"]["test_accuracy"] = [0.55]
    assert tolerance.record_differences(old, now) == ([], pytest.approx(0.05))


def text(committed, now, flip=0.0):
    return tolerance.text_difference("here", committed, now, flip)


@pytest.mark.parametrize(
    ("committed", "now"),
    [
        ("loss 0.4352, perplexity 31.9", "loss 0.4353, perplexity 31.8"),
        ("perplexity 49,418.25", "perplexity 49,419.01"),
        ("differs by 8e-08 at most", "differs by 3e-07 at most"),
        ("-0.25 0.30", "-0.24 0.31"),
    ],
)
def test_a_printed_decimal_may_have_another_last_digit(committed, now):
    assert text(committed, now) is None


@pytest.mark.parametrize(
    ("committed", "now", "what"),
    [
        ("loss 0.435", "loss 0.437", "here: 0.435 committed, 0.437 now"),
        ("12 texts of 40", "13 texts of 40", "here: '12' committed, '13' now"),
        ("torch 2.13.0", "torch 2.13.1", "here: '2.13.0' committed, '2.13.1' now"),
        ("a word 0.1", "a verb 0.1", "here: 'word' committed, 'verb' now"),
        ("differs by 8e-08", "differs by 2e-03", "here: 8e-08 committed, 2e-03 now"),
        ("one", "one more", "here: '' committed, 'more' now"),
        ("0.25", "-0.25", "here: 0.25 committed, -0.25 now"),
    ],
)
def test_any_other_difference_of_a_text_is_named(committed, now, what):
    assert str(text(committed, now)) == what


def test_where_a_score_has_flipped_what_is_printed_of_it_may_follow():
    assert text("accuracy 50.0%, share 0.500", "accuracy 55.0%, share 0.550", flip=0.05) is None
    assert str(text("accuracy 50.0%", "accuracy 55.0%")) == "here: 50.0 committed, 55.0 now"
    assert text("loss 0.5", "loss 3.5", flip=0.05) is not None


def test_the_whole_of_two_runs_is_compared():
    old = {"record": {"loss": 1.0}, "outputs": {"c01": "one", "c02": "two"}}
    now = {"record": {"loss": 2.0}, "outputs": {"c01": "one", "c03": "three"}}
    assert [each.where for each in tolerance.differences(old, now)] == [
        "loss",
        "the text of cell c02",
        "the text of cell c03",
    ]


def test_fingerprints_are_masked_and_keys_that_are_one_stay_apart():
    record = {"student": "03_runner/student-0123456789", "runs": {"00363f8b86": 1, "240b6db1a5": 2}, "n": "12345"}
    assert tiny.masked(record) == {
        "student": "03_runner/student-**********",
        "runs": {"********** 1": 1, "********** 2": 2},
        "n": "12345",
    }


def test_texts_are_streams_tables_and_markdown_of_cells_that_repeat():
    def cell(number, *outputs, tags=()):
        cell = nbformat.v4.new_code_cell("x", id=f"c{number}", metadata={"tags": list(tags)})
        cell.outputs = list(outputs)
        return cell

    def data(**kinds):
        data = {kind.replace("_", "/"): value for kind, value in kinds.items()}
        return nbformat.v4.new_output("execute_result", data=data)

    def stream(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    table = "<style>td {color: red}</style><table><tr><td>1.50</td>\n<td>two</td></tr></table>"
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell(0, stream("Set-up"), tags=["setup"]),
            cell(1, stream("bar 10%\rbar 20%\rdone \n"), stream("warning", "stderr")),
            cell(2, data(text_html=table, text_plain="1.50 two")),
            cell(3, data(text_markdown="**a**", text_plain="<Markdown>")),
            cell(4, data(image_png="", text_plain="<Figure size 1x1>")),
            cell(5, stream("7.3 ms"), tags=["nbval-ignore-output"]),
            cell(6, stream("student-0123456789: found")),
        ]
    )
    assert tiny.texts(notebook) == {
        "c1": "done",
        "c2": "1.50 two",
        "c3": "**a**",
        "c6": "student-**********: found",
    }


def test_a_tiny_run_is_kept_for_its_sources_alone(tmp_path, monkeypatch):
    made = []

    def execute(name, root):
        made.append(name)
        copy = tiny.folder_of(name, root) / "copy.ipynb"
        nbformat.write(nbformat.v4.new_notebook(), copy)
        output = tiny.folder_of(name, root) / "output" / name
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text('{"loss": 1.0, "timings": {"seconds": 3}}', encoding="utf-8")
        return copy

    monkeypatch.setattr(tiny, "execute", execute)
    for sources_then in ({"cells": {"c": "1"}}, {"cells": {"c": "1"}}, {"cells": {"c": "2"}}):
        found = tiny.outcome("01_one", sources_then, tmp_path)
        assert found == {"sources": sources_then, "record": {"loss": 1.0}, "outputs": {}}
    assert made == ["01_one", "01_one"]
