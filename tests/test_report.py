"""The report of `make tutorial`, built from the committed notebooks, which have outputs."""

from __future__ import annotations

import sys
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import drawings
import html_report
import run

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in run.committed([])}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """File name to parsed page, of a report of all notebooks."""
    front = html_report.write(run.committed([]), tmp_path_factory.mktemp("report") / "report")
    texts = {path.name: path.read_text(encoding="utf-8") for path in front.parent.iterdir()}
    return {name: BeautifulSoup(text, "html.parser") for name, text in texts.items()}


def test_every_notebook_is_a_page_that_the_front_page_leads_to(pages):
    linked = {link["href"] for link in pages["index.html"].select("h3 a")}
    assert linked == {f"{stem}.html" for stem in NOTEBOOKS} <= set(pages)
    for stem, notebook in NOTEBOOKS.items():
        heading = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        assert pages[f"{stem}.html"].title.text == pages[f"{stem}.html"].h1.text == heading


def test_every_link_leads_to_a_page_and_place_that_exist(pages):
    ids = {name: {element["id"] for element in page.select("[id]")} for name, page in pages.items()}
    followed = 0
    for name, page in pages.items():
        for link in page.select("a[href]"):
            parts = urlsplit(link["href"])
            if parts.scheme not in ("http", "https"):
                target = parts.path or name
                assert target in pages, f"{name}: {link['href']}"
                assert not parts.fragment or unquote(parts.fragment) in ids[target], f"{name}: {link['href']}"
                followed += 1
    assert followed > 4 * len(NOTEBOOKS)  # from the front page and back, to the next and to the one before


def test_the_pages_ask_nothing_of_a_network(pages):
    for name, page in pages.items():
        assert not page.select("script, iframe, object, embed, video, audio"), name
        for element in page.select("[src], link[href]"):
            assert element.get("src", element.get("href")).startswith("data:"), f"{name}: {element.name}"
        assert not any("url(" in style.text or "@import" in style.text for style in page.select("style")), name


def test_every_picture_of_a_notebook_is_in_its_page_with_its_text(pages):
    for stem, notebook in NOTEBOOKS.items():
        alts = []
        for cell in notebook.cells:
            alts += [alt for alt, _ in drawings.NAMED.findall(cell.source)]
            made = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
            alts += [output.metadata["image/png"]["alt"] for output in made]
        assert [image["alt"] for image in pages[f"{stem}.html"].select("img")] == alts
    shown = [image["alt"] for image in pages["index.html"].select("img")]
    assert len(shown) == 1 + len(html_report.RESULTS)  # the schema, and a picture beside each table


def test_formulas_are_mathml_and_none_is_left_as_latex(pages):
    written = shown = 0
    for stem, notebook in NOTEBOOKS.items():
        page = pages[f"{stem}.html"]
        written += sum(cell.source.count("$$") // 2 for cell in notebook.cells if cell.cell_type == "markdown")
        shown += len(page.select("math[display=block]"))
        prose = [text for text in page.main.find_all(string=True) if not text.find_parent(["pre", "code"])]
        assert "$" not in "".join(prose), stem
        assert not any("\\" in formula.text for formula in page.select("math")), stem
    assert shown == written > 0


def test_shell_and_magic_lines_are_not_marked_as_errors(pages):
    assert "!{run} {mine}" in pages["05_multi_gpu_launch.html"].text
    assert not [name for name, page in pages.items() if page.select(".highlight .err")]


def test_the_front_page_says_what_the_records_say(pages):
    student, control, contenders = pages["index.html"].select("table")
    record = NOTEBOOKS["03_runner"].metadata["record"]
    overlaps = {"student": record["top5_overlap_after"], "control": record["control_top5_overlap"]}
    for row, (name, overlap) in zip(student.select("tr")[-2:], overlaps.items(), strict=True):
        assert [cell.text for cell in row.select("td")][1:] == [
            f"{record[f'{name}_accuracy_at_mask']:.1%}",
            f"{record[f'{name}_masked_accuracy']:.1%}",
            f"{record[f'{name}_perplexity']:.1f}",
            f"{overlap:.2f}",
        ]
    record = NOTEBOOKS["04_loss_callbacks"].metadata["record"]
    assert [row.td.text for row in control.select("tbody tr")] == list(record["steps"])
    record = NOTEBOOKS["06_sentiment_evaluation"].metadata["record"]
    means = {name: np.mean(each["test_accuracy"]) for name, each in record["contenders"].items()}
    assert [row.td.text for row in contenders.select("tbody tr")] == sorted(means, key=means.get, reverse=True)


def test_a_report_of_some_notebooks_says_which_are_missing(tmp_path):
    front = html_report.write(run.committed(["01", "03"]), tmp_path / "report")
    page = BeautifulSoup(front.read_text(encoding="utf-8"), "html.parser")
    assert {link["href"] for link in page.select("h3 a")} == {"01_dataset_dicts.html", "03_runner.html"}
    assert len(page.select("table")) == 1  # 03's
    (line,) = [paragraph.text for paragraph in page.select("p") if paragraph.text.startswith("Not run yet")]
    assert all((stem in line) == (stem[:2] not in ("01", "03")) for stem in NOTEBOOKS)
    following = BeautifulSoup((front.parent / "03_runner.html").read_text(encoding="utf-8"), "html.parser")
    links = [link["href"] for link in following.select("a[href]")]
    assert "04_loss_callbacks.html" not in links  # it leads to the front page instead
    assert "01_dataset_dicts.html" in links


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A\n\nB\n\n[C](configs/none.yml)")])
    nbformat.write(notebook, tmp_path / "09_one.ipynb")
    front = html_report.write(run.committed(["01"]), tmp_path / "report")
    before = front.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"none\.yml"):
        html_report.write([tmp_path / "09_one.ipynb"], tmp_path / "report")
    assert front.read_bytes() == before, "the report that was there stays"
