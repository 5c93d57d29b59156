"""What stands in two places has to agree, and the script behind `make tutorial` has to do what the README says."""

import importlib.metadata
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import tomllib
import urllib.parse

import nbformat
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from transformers import AutoModelForMaskedLM

from conftest import ROOT
from helpers.models import extract_student, load_teacher
from helpers.runner import DistilMLMRunner

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import results
import run
import stale
from sources import Repository


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_environment_yml_installs_from_pyproject():
    environment = yaml.safe_load(read("environment.yml"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert [line for line in pip if not line.startswith("--")] == ["-e .[dev,compress]"]
    assert "pip=24.0" in conda
    assert "pip==24.0" in read("Makefile")
    python = next(line for line in conda if line.startswith("python=")).removeprefix("python=")
    assert 'requires-python = ">=3.11,<3.14"' in read("pyproject.toml")
    assert (3, 11) <= tuple(map(int, python.split("."))) < (3, 14)


def test_every_requirement_is_pinned():
    requirements = [Requirement(line) for line in importlib.metadata.requires("bert-distillation-catalyst")]
    assert {"torch", "catalyst", "transformers", "nbval"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement


def test_ci_calls_make_test_and_nothing_else():
    commands = [line for line in read(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]


def test_the_pages_results_are_those_of_the_notebooks():
    texts = results.sections()
    for file, names in results.PAGES.items():
        for name in names:
            assert results.between(name).findall(read(file)) == [texts[name]], name
    record = results.metadata("03_runner")["record"]
    assert f"{record['validations'][-1]['step']} steps" in read("docs/results.md")
    assert f"{record['valid_masked_tokens']:,} tokens" in read("docs/results.md")


def test_readmes_first_distillation_is_notebook_00s():
    (code,) = re.findall(r"```python\n(def .*?)```", read("README.md"), re.DOTALL)
    first = nbformat.read(ROOT / "notebooks" / "00_first_distillation.ipynb", as_version=4)
    assert any(code.strip() in cell.source for cell in first.cells if cell.cell_type == "code")
    assert len(code.splitlines()) == 19, "notebook 03 calls it a function of 19 lines"


def test_what_the_pages_conclude_is_what_notebook_06_measured():
    record = results.metadata("06_sentiment_evaluation")["record"]
    page = read("docs/results.md")
    for label in ("distilled_task, against extracted", "distilled_task, against teacher"):
        found = record["differences"][label]
        said = "{:.1f} percentage points (97.5% interval {:.1f} to {:.1f})".format(
            *(100 * found[key] for key in ("difference", "low", "high"))
        )
        assert said in read("README.md")
        assert said in page
    differences = record["differences"]

    def said_of(label, form):
        return form.format(*results.points(differences[label]))

    brackets = "{:.1f} ({:.1f} to {:.1f})"
    readme = read("README.md")
    assert f"it gave {said_of('extracted_task, against extracted', '{:.1f} points ({:.1f} to {:.1f})')}" in readme
    longer = "{:.1f} points less (95% interval {:.1f} to {:.1f})"
    assert said_of("extracted_task, against extracted_longer", longer) in readme
    assert said_of("extracted_task_one, against extracted", "the gain was {:.1f} points ({:.1f} to {:.1f})") in readme
    shown = {"extracted_task, against extracted", "distilled_task, against distilled"}
    for label in shown | {"distilled, against extracted", "distilled, against mlm_only"}:
        assert said_of(label, brackets) in page, label
    pages = (page, read("notebooks/08_experiments.ipynb").replace("−", "-"))
    for label in (
        "extracted_task, against extracted_longer",
        "extracted_task, against extracted_hard",
        "extracted_task, against extracted_task_one",
        "extracted_task_one, against extracted",
    ):
        assert all(said_of(label, "({1:.1f} to {2:.1f})") in each for each in pages), label
    higher = {label for label, found in differences.items() if found["low"] > 0}
    others = {"distilled_task, against extracted", "distilled_task, against baseline"}
    others |= {"extracted_task, against extracted_longer", "extracted_task_one, against extracted"}
    others |= {"extracted_task, against baseline"}
    assert higher == shown | others, "of no other pair is a difference shown"
    assert not [label for label, found in differences.items() if found["high"] < 0]
    means = {name: statistics.mean(each["test_accuracy"]) for name, each in record["contenders"].items()}
    best = sorted(means, key=means.get, reverse=True)
    assert best[:3] == ["teacher", "distilled_task", "extracted_task"]
    for name in ("random", "extracted"):
        assert f"{record['contenders'][name]['share_kept'][1]:.1%}" in page.split("## In short")[1].split("\n## ")[0]


def test_what_the_pages_conclude_is_what_the_long_record_of_notebook_06_measured():
    differences = results.record_of("long_task")["differences"]
    for label, said in {
        "distilled_task_labelled, against distilled_longer": "{:.1f} points ({:.1f} to {:.1f}",
        "distilled_task, against distilled_task_labelled": "{:.1f} more ({:.1f} to {:.1f})",
    }.items():
        found = said.format(*results.points(differences[label]))
        for page in ("docs/results.md", "notebooks/08_experiments.ipynb"):
            assert found in read(page), (label, page)
    own, low, high = results.points(differences["distilled_task, against teacher"])
    assert high < 0, "the student is lower than its teacher"
    assert f"{-own:.1f} points less (97.5% interval {-high:.1f} to {-low:.1f})" in read("README.md")


def test_what_the_pages_conclude_of_the_second_task_is_what_its_record_has():
    record = results.record_of("second_task")
    in_06, in_08, in_results = map(
        read, ("notebooks/06_sentiment_evaluation.ipynb", "notebooks/08_experiments.ipynb", "docs/results.md")
    )
    for one, other in (
        ("distilled_task", "extracted"),
        ("extracted_task", "extracted_longer"),
        ("distilled_task", "distilled_task_labelled"),
        ("extracted_hard", "extracted_longer"),
        ("extracted_task", "extracted_hard"),
        ("extracted_task", "extracted_task_one"),
        ("distilled_task", "extracted_task"),
    ):
        own, low, high = results.points(record["differences"][f"{one}, against {other}"])
        signed = f"| {own:+.1f} | {low:.1f} to {high:.1f}".replace("-", "−")
        assert signed in in_06, (one, other)
        for page in (in_08, in_results):
            said = re.search(
                rf"{own:.1f}[^|;(]* \((97\.5 ?%( interval|:) )?{low:.1f} to {high:.1f}", page.replace("−", "-")
            )
            assert said, (one, other)
    low, kept, high = (f"{100 * share:.1f}" for share in record["contenders"]["distilled_task"]["share_kept"])
    assert f"it keeps {kept} % of its accuracy ({low} to {high})" in in_06


def test_the_pages_few_lines_distil(tiny_folder, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(from helpers import .*?)```", read("docs/your_own_texts.md"), re.DOTALL)
    for theirs, ours in {
        "bert-base-uncased": str(tiny_folder),
        "[0, 1, 2, 3, 4, 5]": "[0, 3]",
        '"my_reviews.csv", text_field="body"': f'"{ROOT}/tests/data/sentences.csv", text_field="text"',
        "batch_size=32, steps_per_epoch=500": "max_length=16, batch_size=8, steps_per_epoch=2",
        '"kl": 0.625, ': "",  # of a teacher whose head is not trained
    }.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    saved = AutoModelForMaskedLM.from_pretrained(tmp_path / "my_student")
    start = extract_student(load_teacher(tiny_folder)[0], [0, 3]).state_dict()
    assert any(not torch.equal(weight, start[name]) for name, weight in saved.state_dict().items())


def test_uv_lock_is_what_pyproject_asks_for():
    """`uv lock --check`, which needs no network where the lock is right."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    command = [sys.executable, "-m", "uv", "lock", "--check", "--offline", "--no-config", "--python", sys.executable]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nuv lock writes it anew."


def test_uv_lock_names_no_machine_and_has_each_python_that_is_supported():
    text = read("uv.lock")
    lock = tomllib.loads(text)
    assert lock["requires-python"] == ">=3.11, <3.14"
    hosts = {urllib.parse.urlsplit(url).hostname for url in re.findall(r'"(\w+://[^"]*)"', text)}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    (own,) = [package for package in lock["package"] if "registry" not in package["source"]]
    assert own["source"] == {"editable": "."}
    # Catalyst imports distutils, which Python dropped in 3.12 and setuptools brings.
    assert {"name": "setuptools", "marker": "python_full_version >= '3.12'"} in own["dependencies"]
    (torch,) = [package for package in lock["package"] if package["name"] == "torch"]
    for python, system in itertools.product(("cp311", "cp312", "cp313"), ("macosx", "manylinux")):
        assert any(f"-{python}-{python}-{system}" in wheel["url"] for wheel in torch["wheels"]), (python, system)


def notebook(*code, title="# 01 Title\n\nTime: about 1 minute on two CPU cores"):
    cells = [nbformat.v4.new_markdown_cell(title), *map(nbformat.v4.new_code_cell, code)]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of two notebooks; the second one fails while `broken` is there."""
    for folder in ("notebooks/parameters", "helpers", "tests/data"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("pyproject.toml", "notebooks/parameters/tiny.yaml", "tests/tiny_teacher.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "helpers" / "losses.py").write_text('"""A helper."""\n', encoding="utf-8")
    (tmp_path / "broken").touch()
    counting = "with open('../count', 'a') as file:\n    _ = file.write('x')\nprint('a\\rb')"
    imports = "import json\nfrom pathlib import Path\nfrom helpers import losses"
    record = "folder = Path('../artifacts/{}')\nfolder.mkdir(parents=True)\n"
    record += "_ = (folder / 'metrics.json').write_text(json.dumps({{'answer': 42, 'timings': {{}}}}))"
    one = notebook("1 + 1", counting, imports, record.format("01_one"))
    two = notebook(imports, "assert not Path('../broken').exists(), 'not yet'", record.format("02_two"))
    nbformat.write(one, tmp_path / "notebooks" / "01_one.ipynb")
    nbformat.write(two, tmp_path / "notebooks" / "02_two.ipynb")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "COPIES", tmp_path / "artifacts" / "tutorial")
    return tmp_path


def test_tutorial_says_what_it_does_works_on_copies_and_goes_on_where_it_was(repository, capsys):
    before = {path: path.read_bytes() for path in (repository / "notebooks").glob("*.ipynb")}
    assert run.tutorial([]) == 1
    out = capsys.readouterr().out
    assert re.search(r"01_one +about 1 minute on two CPU cores", out)
    assert "AssertionError: not yet" in out
    assert (repository / "artifacts" / "stopped" / "02_two.ipynb").exists()

    (repository / "broken").unlink()
    (repository / "helpers" / "losses.py").write_text("# Only a comment.\n", encoding="utf-8")
    assert run.tutorial([]) == 0
    assert re.search(r"01_one +already run", capsys.readouterr().out)
    assert (repository / "count").read_text() == "x"
    assert {path: path.read_bytes() for path in (repository / "notebooks").glob("*.ipynb")} == before
    copy = nbformat.read(repository / "artifacts" / "tutorial" / "01_one.ipynb", as_version=4)
    assert copy.cells[2].outputs[0].text == "b\n"
    assert copy.metadata.record == {"answer": 42}

    (repository / "helpers" / "losses.py").write_text("answer = 42\n", encoding="utf-8")
    shutil.rmtree(repository / "artifacts" / "01_one")
    shutil.rmtree(repository / "artifacts" / "02_two")
    assert run.tutorial([]) == 0
    assert (repository / "count").read_text() == "xx"


def test_what_the_tutorial_has_run_alone_need_not_be_run_again(repository, monkeypatch, capsys):
    (repository / "broken").unlink()
    for name, value in {"COPY": repository / "copy", "MADE": repository / "copy" / "made"}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run, "READS", {"02": {"01"}})
    assert run.tutorial([]) == 0
    path = repository / "notebooks" / "01_one.ipynb"
    written = nbformat.read(path, as_version=4)
    written.cells[0].source = another = written.cells[0].source.replace("Title", "Another title")
    nbformat.write(written, path)
    sources = Repository(repository).sha256("01_one")
    left = repository / "artifacts" / "01_one"
    (left / "model").touch()
    os.utime(left / "model", (1, 1))
    (left / "metrics.json").write_text("of a later run with other parameters", encoding="utf-8")
    assert run.taken_over(path, sources)
    taken = nbformat.read(path, as_version=4)
    assert taken.cells[0].source == another, "the text of now"
    assert [cell.execution_count for cell in taken.cells[1:]] == [1, 2, 3, 4]
    assert taken.cells[2].outputs[0].text == "b\n"
    assert set(taken.metadata) == {"kernelspec", "language_info", "timings", "record"}
    made = {file.name: file.read_text() for file in (run.MADE / "01_one").iterdir()}
    assert made.keys() == {"model", "metrics.json"}
    assert json.loads(made["metrics.json"]) == {"answer": 42, "timings": {}}
    assert run.is_made(path)

    assert not run.taken_over(path, "of other code")
    (repository / "helpers" / "losses.py").write_text("answer = 42\n", encoding="utf-8")
    for name in ("01_one", "02_two"):
        shutil.rmtree(repository / "artifacts" / name)
    (repository / "artifacts" / "of_the_reader").mkdir()
    assert run.tutorial([]) == 0
    assert not run.taken_over(path, Repository(repository).sha256("01_one")), "a reader's run may show in it"


def test_tutorial_takes_some_and_refuses_what_is_not_there(repository, capsys):
    assert run.tutorial(["01"]) == 0
    assert (repository / "count").read_text() == "x"
    report = repository / "artifacts" / "report"
    assert str(report / "index.html") in capsys.readouterr().out
    assert {path.name for path in report.iterdir()} == {"index.html", "01_one.html"}
    with pytest.raises(SystemExit, match=r"no notebook 09\. There are 01, 02"):
        run.tutorial(["09"])


def test_tutorial_that_is_interrupted_says_so_and_stops(repository):
    sleeping = notebook("print('asleep')\nimport time\ntime.sleep(60)")
    nbformat.write(sleeping, repository / "notebooks" / "01_one.ipynb")
    code = f"import run, pathlib, sys; run.ROOT = pathlib.Path({str(repository)!r}); run.COPIES = run.ROOT / 'copies'; "
    command = [sys.executable, "-c", code + "sys.argv = ['run', 'tutorial', '01']; sys.exit(run.main())"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "notebooks" / "tools")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    shown = ""
    while "asleep" not in shown:
        shown += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest == f"\nInterrupted. {run.GOES_ON}\n"
    assert said == ""
    assert not (repository / "copies" / "01_one.ipynb").exists()


def test_whoever_takes_a_model_is_listed_as_its_reader():
    code = {path.name[:2]: Repository(ROOT).cells(path)[1].text for path in run.committed([])}
    for call, maker in (("ensure_teacher(parameters", "02"), ("ensure_student(parameters", "03")):
        callers = {number for number, text in code.items() if call in text} - {maker}
        assert callers == {number for number, makers in run.READS.items() if maker in makers}


@pytest.fixture
def regenerated(tmp_path, monkeypatch):
    """(what has run: name, whether in place, the artifacts it found; the stale notebooks; the folder of models)."""

    def execute(path, target, root):
        artifacts = root / "artifacts"
        ran.append((path.stem, target.parent.parent == tmp_path, sorted(each.name for each in artifacts.glob("*"))))
        (artifacts / path.stem).mkdir(parents=True)
        (artifacts / path.stem / "metrics.json").write_text('{"answer": 42, "timings": {}}', encoding="utf-8")
        made = notebook("1")
        made.metadata["record"] = {"answer": 42}
        nbformat.write(made, target)
        return True

    def check(name, repository):
        return stale.Verdict(name, ["changed"] if name in its else [], "", tmp_path, {})

    ran, its = [], set()
    (tmp_path / "notebooks").mkdir()
    for name in ("02_two", "03_three", "06_six"):
        nbformat.write(notebook("1"), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "COPY", tmp_path / "copy")
    monkeypatch.setattr(run, "MADE", tmp_path / "copy" / "made")
    monkeypatch.setattr(run, "READS", {"03": {"02"}, "06": {"02", "03"}})
    monkeypatch.setattr(run, "execute", execute)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(
        run,
        "clean_copy",
        lambda: shutil.copytree(tmp_path / "notebooks", tmp_path / "copy" / "notebooks", dirs_exist_ok=True),
    )
    monkeypatch.setattr(run.setup_cell, "write", lambda: None)
    monkeypatch.setattr(run.parameter_table, "write", lambda: None)
    monkeypatch.setattr(run.drawings, "write", lambda: None)
    monkeypatch.setattr(run.Repository, "sources", lambda self, name: {})
    monkeypatch.setattr(stale, "check", check)
    monkeypatch.setattr(run.tiny, "outcome", lambda name, sources, root: {"record": {"of": name}})
    return ran, its, run.MADE


def test_what_is_stale_is_run_with_what_reads_from_it_and_finds_what_its_makers_left(regenerated, tmp_path, capsys):
    ran, its, made = regenerated
    assert run.regenerate([]) == 0
    assert (ran, capsys.readouterr().out) == ([], "No notebook is stale.\n")

    its.add("02_two")
    assert run.regenerate([]) == 0
    assert ran == [("02_two", True, []), ("03_three", True, ["02_two"]), ("06_six", True, ["02_two", "03_three"])]
    records = {file.name: json.loads(file.read_text()) for file in (tmp_path / stale.RECORDS / "tiny").iterdir()}
    assert records["06_six.json"] == {"record": {"of": "06_six"}}
    assert len(records) == 3

    ran.clear()
    its.clear()
    its.add("06_six")
    assert run.regenerate([]) == 0
    assert ran == [("06_six", True, ["02_two", "03_three"])]

    ran.clear()
    (made / "03_three" / "metrics.json").write_text('{"answer": 41, "timings": {}}', encoding="utf-8")
    assert run.regenerate(["06"]) == 0
    assert ran == [("03_three", False, ["02_two"]), ("06_six", True, ["02_two", "03_three"])]


def test_a_long_record_is_that_of_its_notebook_with_its_parameters(regenerated, tmp_path, monkeypatch):
    ran, *_ = regenerated
    written = notebook("STEPS = 1")
    written.cells[1].metadata["tags"] = ["parameters"]
    written.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(written, tmp_path / "notebooks" / "06_six.ipynb")
    parameters = tmp_path / "notebooks" / "parameters" / "longer.yaml"
    parameters.parent.mkdir()
    parameters.write_text("STEPS: 100\nLABELLED_CORPUS: artifacts/own/texts.csv\n", encoding="utf-8")
    (tmp_path / "artifacts" / "own").mkdir(parents=True)
    (tmp_path / "artifacts" / "own" / "texts.csv").write_text("text,label\n", encoding="utf-8")
    execute, seen = run.execute, []

    def watched(path, target, root):
        seen.append((nbformat.read(path, as_version=4), (root / "artifacts" / "own" / "texts.csv").is_file()))
        execute(path, target, root)
        ended = nbformat.read(target, as_version=4)
        ended.metadata["timings"] = {"seconds": 1}
        nbformat.write(ended, target)
        return True

    monkeypatch.setattr(run, "execute", watched)
    monkeypatch.setattr(run, "LONG", {"longer": ("06", "kept")})
    monkeypatch.setattr(run, "record_of", lambda path, root: {"fingerprint": "of the teacher"})
    monkeypatch.setattr(stale, "of_record", lambda sources, name: {"of": name})
    assert run.long_record("longer") == 0
    assert [name for name, *_ in ran] == ["02_two", "03_three", "06_six"], "its makers are made first"
    with_parameters, has_texts = seen[-1]
    assert has_texts
    (injected,) = [cell.source for cell in with_parameters.cells if "injected" in str(cell.metadata)]
    assert "STEPS = 100" in injected
    record = json.loads((tmp_path / stale.RECORDS / "kept.json").read_text(encoding="utf-8"))
    assert record["answer"] == 42
    assert record["made_from"]["notebook"] == "06_six"
    assert record["made_from"]["parameters"] == "longer.yaml"
    assert record["made_from"]["sources"] == {"of": "06_six"}


def test_each_long_record_has_its_parameters_and_its_notebook():
    for name, (number, _) in run.LONG.items():
        assert (ROOT / "notebooks" / "parameters" / f"{name}.yaml").is_file()
        assert len(run.committed([number])) == 1


PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]


def anchors(page):
    """The places of a page that a link can lead to: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", read(page))
    links = [(link, place) for link, place in links if not link.startswith("http")]
    assert links
    for link, place in links:
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        assert not place or place in anchors(target), place


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_commands_are_make_targets(page):
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", read(page))) <= targets


def test_the_handle_batch_that_notebook_03_shows_is_the_runners():
    cells = nbformat.read(ROOT / "notebooks" / "03_runner.ipynb", as_version=4).cells
    (shown,) = [
        found for cell in cells for found in re.findall(r"```python\n(def handle_batch.*?)```", cell.source, re.S)
    ]
    assert shown == textwrap.dedent(inspect.getsource(DistilMLMRunner.handle_batch))
