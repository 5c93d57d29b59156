"""Write the set-up cell of every notebook and the README's badges from pyproject's address.

`make notebooks` calls this; where the address alone has changed,
`python notebooks/tools/setup_cell.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
import nbformat

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = """\
# @title Set-up: installs the helpers on Colab; does nothing where they are installed
import importlib.util
import os
import runpy
import subprocess
from pathlib import Path

if not importlib.util.find_spec("helpers"):
    address = "{address}"
    address = os.environ.get("DISTILLATION_REPOSITORY", address)
    folder = Path("..") if Path("tools/install.py").exists() else Path("bert-distillation-catalyst")
    if not folder.exists() and "/OWNER/" in address:
        raise SystemExit("Set-up: set DISTILLATION_REPOSITORY (%env) to the repository's address.")
    if not folder.exists():
        subprocess.run(["git", "clone", "--depth=1", address, str(folder)], check=True)
    runpy.run_path(str(folder / "notebooks" / "tools" / "install.py"), run_name="__main__")"""
FOLDED = {"tags": ["setup"], "cellView": "form", "jupyter": {"source_hidden": True}}
"""The cell's metadata: Colab shows its title alone, JupyterLab a dot that unfolds it."""
GITHUB = "https://github.com/"
BADGES = re.compile(r"(\(notebooks/(\w+\.ipynb)\).*<!-- badges -->).*(<!-- /badges -->)")


def repository() -> str:
    """The address in pyproject's [project.urls]."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (address,) = re.findall(r'^Repository = "(.+)"', text, flags=re.MULTILINE)
    if not address.startswith(GITHUB):
        raise ValueError(f"Repository is {address}; Colab opens notebooks from {GITHUB} alone.")
    return address


def source() -> str:
    """The set-up cell's text."""
    return TEMPLATE.replace("{address}", repository())


def badges(notebook: str) -> str:
    """Markdown that opens a notebook, by its file's name, in Colab and on Binder.

    Nothing while the address is the placeholder: such links lead nowhere.
    """
    if "/OWNER/" in repository():
        return ""
    name = repository().removeprefix(GITHUB)
    colab = "https://colab.research.google.com"
    binder = "https://mybinder.org"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
        f"({colab}/github/{name}/blob/main/notebooks/{notebook}) "
        f"[![Open on Binder]({binder}/badge_logo.svg)]"
        f"({binder}/v2/gh/{name}/main?labpath=notebooks/{notebook})"
    )


def with_badges(readme: str) -> str:
    """The README's text, its rows of notebooks with their badges."""
    return BADGES.sub(lambda found: found[1] + badges(found[2]) + found[3], readme)


def with_setup_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the set-up cell after its title."""
    cell = notebook.cells[1]
    if "setup" not in cell.metadata.get("tags", []):
        cell = nbformat.v4.new_code_cell(id="setup")
        notebook.cells.insert(1, cell)
    cell.source, cell.metadata = source(), dict(FOLDED)
    return notebook


def write() -> None:
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        nbformat.write(with_setup_cell(nbformat.read(path, as_version=4)), path)
    readme = ROOT / "README.md"
    readme.write_text(with_badges(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
