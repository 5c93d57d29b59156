"""Each figure in a notebook's text is in an output of that notebook, or figures.yaml says where it comes from.

A figure is a number with a decimal point or a comma for the thousands. Answers of exercises are left out: they come
from other parameters. This finds a figure that no output has any more; it cannot tell whether the text gives the right
meaning to one that some output has.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
ELSEWHERE = yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text(encoding="utf-8"))
NO_PROSE = re.compile(
    r"```.*?```|`[^`]*`|<details>.*?</details>|\]\([^)]*\)|arXiv:\S+|section \d[\d.]*", flags=re.DOTALL
)
FIGURE = re.compile(r"(?<![\w.,/])(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def figures(text: str) -> list[str]:
    """The figures of a text cell, as they are written."""
    return FIGURE.findall(NO_PROSE.sub(" ", text))


def numbers(notebook: nbformat.NotebookNode) -> set[float]:
    """All numbers in the code and in the text outputs of a notebook."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts.append(cell.source)
            for output in cell.outputs:
                texts.append(output.get("text", ""))
                texts += [each for mime, each in output.get("data", {}).items() if mime.startswith("text/")]
    return {float(found.replace(",", "")) for found in NUMBER.findall("\n".join(texts))}


def stands_in(figure: str, found: set[float]) -> bool:
    """True if a number, or a hundred times it (a share in percent), rounds to the figure."""
    value, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    room = 0.5 * 10**-digits * (1 + 1e-6)
    return any(abs(scale * each - value) <= room for each in found for scale in (1, 100))


def without_output(notebook: nbformat.NotebookNode) -> dict[str, list[str]]:
    """By text cell: its figures that are in no output and no code of the notebook."""
    own, found = numbers(notebook), {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            missing = [each for each in figures(cell.source) if not stands_in(each, own)]
            if missing:
                found[cell.id] = sorted(set(missing))
    return found


@pytest.fixture(scope="module")
def read():
    return {name: nbformat.read(path, as_version=4) for name, path in NOTEBOOKS.items()}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_figure_in_the_text_is_in_an_output_or_its_source_is_named(read, name):
    listed = {
        cell: sorted(each for values in sources.values() for each in values)
        for cell, sources in ELSEWHERE.get(name, {}).items()
    }
    assert without_output(read[name]) == listed


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_figure_from_another_notebook_is_in_its_outputs(read, name):
    for cell, sources in ELSEWHERE[name].items():
        for source, values in sources.items():
            if source in NOTEBOOKS:
                missing = [each for each in values if not stands_in(each, numbers(read[source]))]
                assert not missing, f"{cell}: {source} has no {missing}"


def test_a_figure_that_no_output_has_is_found():
    shown = nbformat.v4.new_output("stream", text="accuracy 0.2412, 20,936 tokens, KL 0.208")
    code = nbformat.v4.new_code_cell("print(scores)", outputs=[shown])
    right = nbformat.v4.new_markdown_cell("It has 24.1 %, on 20,936 tokens; KL 0.21 (`0.99`; section 3.1).")
    wrong = nbformat.v4.new_markdown_cell("It has 24.2 %, and 20,937. <details>5.5</details>")
    notebook = nbformat.v4.new_notebook(cells=[code, right, wrong])
    assert without_output(notebook) == {wrong.id: ["20,937", "24.2"]}
