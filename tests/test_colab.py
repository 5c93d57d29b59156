"""The set-up cell, which lets a notebook run where there is nothing else, and what else is made from the address."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.parse
import venv

import nbformat
import pytest
import yaml

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import install
import run
import setup_cell
from sources import Repository

HERE = "Set-up: the helpers are here.\n"
WHAT_TO_SET = "Set-up: set DISTILLATION_REPOSITORY (%env) to the repository's address."


@pytest.mark.parametrize("path", run.committed([]), ids=lambda path: path.stem)
def test_set_up_cell_and_badges_agree_with_the_address(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[1].source == setup_cell.source()
    assert notebook.cells[1].metadata == setup_cell.FOLDED
    assert len(setup_cell.source().splitlines()) <= 16
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- badges -->{setup_cell.badges(path.name)}<!-- /badges -->" in readme
    assert setup_cell.with_badges(readme) == readme


def test_another_address_changes_cells_and_badges_and_makes_nothing_stale(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(run.committed(["01"])[0], tmp_path / "notebooks")
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settled = project.replace(setup_cell.repository(), "https://github.com/us/ours")
    elsewhere = project.replace(setup_cell.repository(), "https://example.org/ours")
    path = tmp_path / "notebooks" / "01_dataset_dicts.ipynb"
    before, (hashes, _) = nbformat.read(path, as_version=4), Repository(tmp_path).cells(path)
    monkeypatch.setattr(setup_cell, "ROOT", tmp_path)

    (tmp_path / "pyproject.toml").write_text(settled, encoding="utf-8")
    setup_cell.write()
    after = nbformat.read(path, as_version=4)
    assert '"https://github.com/us/ours"' in after.cells[1].source
    assert after.cells[:1] + after.cells[2:] == before.cells[:1] + before.cells[2:]
    assert Repository(tmp_path).cells(path)[0] == hashes
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "colab.research.google.com/github/us/ours/blob/main/notebooks/01_dataset_dicts.ipynb)" in readme
    assert (
        "kaggle.com/kernels/welcome?src=https://github.com/us/ours/blob/main/notebooks/01_dataset_dicts.ipynb)"
        in readme
    )
    assert "![Open on Binder, which gives 2 GB]" in readme
    assert "mybinder.org/v2/gh/us/ours/main?labpath=notebooks/01_dataset_dicts.ipynb)" in readme
    assert "/OWNER/" not in readme

    (tmp_path / "pyproject.toml").write_text(elsewhere, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("Colab opens notebooks from https://github.com/ alone")):
        setup_cell.write()


def test_an_address_is_written_into_pyproject_if_badges_can_be_made_of_it(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(run.committed(["01"])[0], tmp_path / "notebooks")
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(setup_cell, "ROOT", tmp_path)
    before = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    for wrong in (
        "https://github.com/us",
        "https://github.com/us/ours.git",
        "git@github.com:us/ours",
        'https://github.com/us/"',
    ):
        with pytest.raises(ValueError, match=r"It has to be as https://github\.com/me/my-copy\."):
            setup_cell.settle(wrong)
    setup_cell.settle("https://github.com/else/where.else")
    after = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    old, new = before.splitlines(), after.splitlines()
    assert [line for line in new if line not in old] == ['Repository = "https://github.com/else/where.else"']
    assert len(new) == len(old)
    assert setup_cell.repository() == "https://github.com/else/where.else"


def run_cell(folder, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", setup_cell.source()], cwd=folder, capture_output=True, text=True, check=False
    )


def test_set_up_cell_does_nothing_where_the_helpers_are(tmp_path):
    done = run_cell(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("/OWNER/" not in setup_cell.repository(), reason="the address is settled")
def test_set_up_cell_says_what_to_set_while_the_address_is_the_placeholder(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTILLATION_REPOSITORY", raising=False)
    done = run_cell(tmp_path, "-S", "-I")  # without site-packages, where the helpers are
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WHAT_TO_SET + "\n")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_gets_its_pin_and_the_machines_own_stays():
    there = {
        "torch": "2.8.0+cu126",
        "setuptools": "75.2.0",
        "numpy": "2.0.2",
        "tqdm": "4.70.1",
        "scipy": "1.17.1+local",
    }
    dependencies = ["torch==2.13.0", "setuptools==84.2.1", "jupyterlab==4.6.6", "ipywidgets==8.1.9", "numpy==2.4.6"]
    dependencies += ["tqdm==4.70.1", "scipy==1.17.1", "catalyst==22.4", "pandas==3.1.1; python_version < '3.0'"]
    wanted, kept = install.plan(dependencies, there.get)
    assert wanted == ["ipywidgets==8.1.9", "numpy==2.4.6", "catalyst==22.4"]
    assert kept == ["torch==2.8.0+cu126", "setuptools==75.2.0"]


def test_a_kernel_that_holds_what_was_exchanged_has_to_be_restarted(monkeypatch, capsys):
    versions = {"numpy": "2.0.2"}
    monkeypatch.setattr(install, "installed", versions.get)
    monkeypatch.setattr(install, "plan", lambda dependencies, installed: (["numpy==2.4.6"], []))
    monkeypatch.setattr(install, "pip_install", lambda wanted, kept: versions.update(numpy="2.4.6"))
    monkeypatch.setattr(install, "packages_distributions", lambda: {"sys": ["numpy"], "not_loaded": ["pandas"]})
    folder, path = os.getcwd(), list(sys.path)
    with pytest.raises(SystemExit, match="still holds the old numpy: restart it"):
        install.main()
    assert capsys.readouterr().out == "Set-up: installing numpy==2.4.6 (some minutes, once).\n"
    assert (os.getcwd(), sys.path) == (folder, path)


def new_environment(folder, pip):
    """(python, environment variables) of a new virtual environment with this pip."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", pip], check=True)
    outside = ("PYTHONPATH", "VIRTUAL_ENV", "DISTILLATION_REPOSITORY")
    variables = {name: value for name, value in os.environ.items() if name not in outside}
    return python, variables | {"OMP_NUM_THREADS": "1"}  # tiny models are slower on two


def versions(python):
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    return {package["name"]: package["version"] for package in json.loads(done.stdout)}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """What git tracks or would add, in a folder of its own."""
    monkeypatch.setattr(run, "COPY", tmp_path / "copy")
    run.clean_copy()
    return run.COPY


@pytest.mark.slow
def test_a_notebook_alone_on_a_cloud_machine_runs_to_its_end(copy, tiny_folder, tmp_path):
    """The newest pip, the machine's own torch, an empty folder, one notebook; then a second machine, the same drive."""
    git = ["git", "-C", copy, "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "The working tree"], check=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", copy, tmp_path / "bare.git"], check=True)
    address = (tmp_path / "bare.git").as_uri()

    python, environment = new_environment(tmp_path / "machine", "pip")
    packages = ["ipykernel", "papermill", "torch==2.13.0"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    before = versions(python)
    assert tuple(map(int, before["pip"].split(".")[:2])) >= (24, 1), "this pip refuses Catalyst's metadata"
    (record,) = (tmp_path / "machine").glob("lib/python*/site-packages/torch-*.dist-info/RECORD")
    torch = [record, record.with_name("METADATA"), record.parents[1] / "torch" / "version.py"]
    stats = [(file.stat().st_mtime_ns, file.stat().st_ino) for file in torch]

    def papermill(folder, **variables):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "notebooks" / "03_runner.ipynb", folder)
        command = [python, "-m", "papermill", "03_runner.ipynb", "out.ipynb", "--no-progress-bar", "-k", "python3"]
        command += ["-f", ROOT / "notebooks" / "parameters" / "tiny.yaml", "-p", "TEACHER", tiny_folder]
        command += ["-p", "OUTPUT_DIR", tmp_path / "drive"]
        done = subprocess.run(
            command, cwd=folder, env=environment | variables, capture_output=True, text=True, check=False
        )
        streams = [
            output.text
            for cell in nbformat.read(folder / "out.ipynb", as_version=4).cells
            for output in cell.get("outputs", [])
            if output.output_type == "stream"
        ]
        return done, "".join(streams)

    first = tmp_path / "first"
    if "/OWNER/" in setup_cell.repository():
        done, _ = papermill(first)
        assert done.returncode != 0
        assert WHAT_TO_SET in done.stderr
    done, shown = papermill(first, DISTILLATION_REPOSITORY=address)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Set-up: installing " in shown
    assert HERE in shown
    metrics = json.loads((tmp_path / "drive" / "03_runner" / "metrics.json").read_text(encoding="utf-8"))
    tiny = yaml.safe_load((ROOT / "notebooks" / "parameters" / "tiny.yaml").read_text(encoding="utf-8"))
    assert metrics["parameters"]["MAX_STEPS"] == tiny["MAX_STEPS"]
    assert metrics["student_kl_to_teacher"] < 0.7 * metrics["extracted_kl_to_teacher"]

    after = versions(python)
    new = {name: version for name, version in after.items() if name not in before}
    print("\ninstalled:", ", ".join(f"{name} {version}" for name, version in new.items()))
    assert new["catalyst"] == "22.4"
    assert "jupyterlab" not in new
    assert [after[name] for name in ("torch", "pip")] == [before[name] for name in ("torch", "pip")]
    assert [(file.stat().st_mtime_ns, file.stat().st_ino) for file in torch] == stats

    # The session was cut off; the drive that holds OUTPUT_DIR is mounted on the next machine.
    done, shown = papermill(tmp_path / "second", DISTILLATION_REPOSITORY=address)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Set-up: installing " not in shown
    assert "Teacher with a trained head: found in 02_student_extraction/" in shown
    assert "Distilled student: found in 03_runner/" in shown


@pytest.mark.slow
def test_pip_part_of_environment_yml_installs(copy, tmp_path):
    """As conda does it: the lines as a requirements file, in the folder of environment.yml."""
    environment = yaml.safe_load((copy / "environment.yml").read_text(encoding="utf-8"))
    (lines,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    (pip,) = [line for line in environment["dependencies"] if str(line).startswith("pip=")]
    (index,) = [line for line in lines if line.startswith("--extra-index-url ")]
    host = urllib.parse.urlsplit(index.split()[1]).hostname
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError:
        lines.remove(index)  # or pip would try it for every package
    (copy / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    python, variables = new_environment(tmp_path / "conda", pip.replace("=", "=="))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], cwd=copy, check=True)
    imported = "import catalyst.dl, torch, papermill, helpers.training; print(torch.__version__, helpers.__file__)"
    done = subprocess.run(
        [python, "-c", imported], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    version, file = done.stdout.split()
    assert version.startswith("2.13.0")
    assert file == str(copy / "helpers" / "__init__.py")
