"""Write the set-up cell of every notebook and the README's badges from pyproject's address.

`make notebooks` calls this. `make address REPOSITORY=https://github.com/me/my-copy` writes another
address into pyproject first.
"""

from __future__ import annotations

import re
import sys
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
ADDRESS = re.compile(r'^(Repository = )"(.+)"', flags=re.MULTILINE)
BADGES = re.compile(r"(\(notebooks/(\w+\.ipynb)\).*<!-- badges -->).*(<!-- /badges -->)")


def repository() -> str:
    """The address in pyproject's [project.urls]."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ((_, address),) = ADDRESS.findall(text)
    return checked(address)


def checked(address: str) -> str:
    """The address, if it is one that badges can be made from.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(GITHUB + r"[\w.-]+/[\w.-]+", address) or address.endswith(".git"):
        raise ValueError(
            f"Repository is {address}; Colab opens notebooks from {GITHUB} alone. "
            f"It has to be as {GITHUB}me/my-copy."
        )
    return address


def settle(address: str) -> None:
    """Write the address into pyproject."""
    file = ROOT / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(ADDRESS.sub(rf'\g<1>"{checked(address)}"', text), encoding="utf-8")


def source() -> str:
    """The set-up cell's text."""
    return TEMPLATE.replace("{address}", repository())


def badges(notebook: str) -> str:
    """Markdown that opens a notebook, by its file's name, in Colab, on Kaggle and on Binder.

    Nothing while the address is the placeholder: such links lead nowhere.
    """
    if "/OWNER/" in repository():
        return ""
    colab, kaggle = "https://colab.research.google.com", "https://kaggle.com"
    binder = "https://mybinder.org"
    name = repository().removeprefix(GITHUB)
    blob = f"{name}/blob/main/notebooks/{notebook}"
    found = {
        "Open in Colab": (f"{colab}/assets/colab-badge.svg", f"{colab}/github/{blob}"),
        "Open in Kaggle": (
            f"{kaggle}/static/images/open-in-kaggle.svg",
            f"{kaggle}/kernels/welcome?src={GITHUB}{blob}",
        ),
        "Open on Binder, which gives 2 GB": (
            f"{binder}/badge_logo.svg",
            f"{binder}/v2/gh/{name}/main?labpath=notebooks/{notebook}",
        ),
    }
    return " ".join(f"[![{text}]({picture})]({link})" for text, (picture, link) in found.items())


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
    try:
        for given in sys.argv[1:]:
            settle(given)
        write()
    except ValueError as error:
        sys.exit(str(error))
