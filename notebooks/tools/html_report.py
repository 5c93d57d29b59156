"""The report of `make tutorial`: every notebook that it has run, as pages that need no network.

`make pages` makes the same pages of the committed notebooks.
"""

from __future__ import annotations

import base64
import html
import mimetypes
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import unquote, urlsplit
import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from traitlets.config import Config
import results
from helpers.catalyst_today.saving import WRITING

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
NUMBERED = "[0-9][0-9]_*.ipynb"
BACK = '<a href="index.html">Report</a>'
TITLE = "BERT distillation with Catalyst"
OPENING = f"""# {TITLE}

The notebooks as they ran here, and what they measured.

![Teacher and student read one sentence; a loss compares their probabilities](images/idea.png)
"""
STYLE = """
* { box-sizing: border-box; }
body { margin: 0; color: #222; background: #fff; line-height: 1.6; overflow-wrap: anywhere;
  font-family: system-ui, sans-serif; }
header, main { max-width: 58rem; margin: auto; padding: .5rem 1rem; }
header { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; border-bottom: 1px solid #ddd; }
main { padding-bottom: 4rem; }
header details { flex-basis: 100%; }
header:empty { display: none; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .6rem; }
h1 { font-size: 1.8rem; margin-top: 1rem; }
a { color: #0b57a4; }
img { display: block; max-width: 100%; height: auto; margin: .5rem 0; }
pre { overflow-x: auto; margin: .5rem 0; padding: .6rem .8rem; font-size: .85rem;
  line-height: 1.45; overflow-wrap: normal; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; }
.highlight { background: #f6f7f8; border-radius: 4px; }
.output_wrapper pre { padding-left: 0; }
.scroll { display: block; overflow-x: auto; margin: .8rem 0; overflow-wrap: normal; }
.formula { display: inline-block; max-width: 100%; overflow-x: auto; overflow-y: hidden;
  vertical-align: middle; }
table { border: 0; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; border: 0; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
tbody th, header:empty + main td { white-space: nowrap; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; }
details { margin: .8rem 0; padding: .3rem .8rem; border: 1px solid #ddd; border-radius: 4px; }
summary { cursor: pointer; }
/* On a phone a picture keeps a size at which its labels can be read, and scrolls in its box. */
@media (max-width: 40rem) { .scroll > img { max-width: 42rem; } }
"""


def formula(latex: str, display: str = "inline") -> str:
    """LaTeX as MathML, which browsers lay out by themselves."""
    # The converter leaves out the space that TeX sets beside a function's name.
    log = '<mo lspace="0.167em" rspace="0.167em">log</mo>'
    return convert(latex, display=display).replace("<mi>log</mi>", log)


class Renderer(IPythonRenderer):
    """nbconvert's, with formulas as MathML where nbconvert leaves them to a script."""

    def inline_math(self, body: str) -> str:
        return formula(body)

    def block_math(self, body: str) -> str:
        return f'<div class="scroll">{formula(body, "block")}</div>'


class Exporter(HTMLExporter):
    """Notebook to the inside of a page."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments = context["cell"].get("attachments", {})
        return MarkdownWithMath(Renderer(escape=False, attachments=attachments)).render(source)


class Report:
    """The pages of one report, all in one folder."""

    def __init__(self, paths: list[Path], target: Path):
        self.target = target
        self.notebooks = {path.stem: nbformat.read(path, as_version=4) for path in paths}
        # The set-up cell does nothing where the report is made.
        no_setup = {"enabled": True, "remove_cell_tags": {"setup"}}
        self.exporter = Exporter(
            config=Config({"TagRemovePreprocessor": no_setup}),
            template_name="basic",
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )

    def write(self) -> Path:
        """Write all pages; the front page's path."""
        self.target.mkdir(parents=True)
        for stem, notebook in self.notebooks.items():
            soup = self.convert(notebook)
            header = self.neighbours(stem) + contents(soup)
            self.write_html(f"{stem}.html", title(notebook), header, soup)
        self.write_html("index.html", TITLE, "", self.convert(front_page(self.notebooks)))
        return self.target / "index.html"

    def neighbours(self, stem: str) -> str:
        """Links to the front page and to the pages before and after."""
        stems = list(self.notebooks)
        place = stems.index(stem)
        links = [BACK]
        for arrow, other in (("←", stems[:place][-1:]), ("→", stems[place + 1 : place + 2])):
            for name in other:
                text = html.escape(title(self.notebooks[name]))
                links.append(f'<a href="{name}.html">{arrow} {text}</a>')
        return "".join(links)

    def convert(self, notebook: nbformat.NotebookNode) -> BeautifulSoup:
        """The inside of a notebook's page."""
        # Python's own lexer takes ! and % for errors.
        notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
        body, _ = self.exporter.from_notebook_node(notebook)
        soup = BeautifulSoup(body, "html.parser")
        for mark in soup.select("a.anchor-link"):
            mark.decompose()
        for table in soup.select("table"):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for wide in soup.select("p > math, li > math"):
            if len(wide.get_text()) > 20:
                wide.wrap(soup.new_tag("span", attrs={"class": "formula"}))
        for image in soup.select("img"):
            image.wrap(soup.new_tag("span", attrs={"class": "scroll"}))
            self.embed(image)
        for link in soup.select("a[href]"):
            link["href"] = self.address(link["href"])
        return soup

    def write_html(self, name: str, heading: str, header: str, body: object) -> None:
        style = STYLE + HtmlFormatter().get_style_defs(".highlight")
        page = (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'  # or browsers ask for /favicon.ico
            f"<title>{html.escape(heading)}</title><style>{style}</style></head>"
            f"<body><header>{header}</header><main>{body}</main></body></html>\n"
        )
        (self.target / name).write_text(page, encoding="utf-8")

    def embed(self, image) -> None:
        """A picture of the repository goes into the page; of another, such as a badge, its text."""
        source = image["src"]
        if urlsplit(source).scheme in ("http", "https"):
            image.replace_with(image["alt"])
        elif urlsplit(source).scheme != "data":
            path = NOTEBOOKS / unquote(source)
            data = base64.b64encode(path.read_bytes()).decode()
            image["src"] = f"data:{mimetypes.guess_type(path.name)[0]};base64,{data}"

    def address(self, link: str) -> str:
        """Where a notebook's link leads in the report.

        Raises:
            FileNotFoundError: it leads nowhere in the repository either.
        """
        parts = urlsplit(link)
        if parts.scheme or not parts.path:
            return link
        path = (NOTEBOOKS / unquote(parts.path)).resolve()
        if path.stem in self.notebooks:
            return f"{path.stem}.html" + (f"#{parts.fragment}" if parts.fragment else "")
        if path.suffix == ".ipynb" or path == ROOT / "README.md":
            return "index.html"
        return self.write_file(path)

    def write_file(self, path: Path) -> str:
        """A page of a text file; its name."""
        relative = path.relative_to(ROOT)
        name = "-".join(relative.parts) + ".html"
        text = highlight(
            path.read_text(encoding="utf-8"), get_lexer_for_filename(path.name), HtmlFormatter()
        )
        body = f"<h1>{html.escape(relative.as_posix())}</h1>{text}"
        self.write_html(name, relative.as_posix(), BACK, body)
        return name


def contents(soup: BeautifulSoup) -> str:
    """A folded list of links to a page's sections."""
    items = [
        f'<li><a href="#{html.escape(heading["id"])}">{html.escape(heading.text)}</a></li>'
        for heading in soup.select("h2")
    ]
    return f"<details><summary>Contents</summary><ol>{''.join(items)}</ol></details>"


def title(notebook: nbformat.NotebookNode) -> str:
    return notebook.cells[0].source.partition("\n")[0].removeprefix("# ")


def front_page(notebooks: dict[str, nbformat.NotebookNode]) -> nbformat.NotebookNode:
    """As a notebook of Markdown cells: results, their pictures, and what each notebook is."""
    cells = [nbformat.v4.new_markdown_cell(OPENING)]
    for stem, (heading, table, picture) in RESULTS.items():
        if "record" in notebooks.get(stem, nbformat.v4.new_notebook()).metadata:
            cells.append(result(stem, notebooks[stem], heading, table, picture))
    lines = ["## The notebooks"]
    for stem, notebook in notebooks.items():
        promise = notebook.cells[0].source.split("\n\n")[1]
        lines += [f"### [{title(notebook)}]({stem}.ipynb)", promise]
    missing = [path.stem for path in sorted(NOTEBOOKS.glob(NUMBERED)) if path.stem not in notebooks]
    if missing:
        numbers = " ".join(stem[:2] for stem in missing)
        lines.append(
            f'Not run yet: {", ".join(missing)}. `make tutorial NOTEBOOKS="{numbers}"` runs them.'
        )
    cells.append(nbformat.v4.new_markdown_cell("\n\n".join(lines)))
    return nbformat.v4.new_notebook(cells=cells)


def result(
    stem: str,
    notebook: nbformat.NotebookNode,
    heading: str,
    table: Callable[[dict], str],
    picture: str,
) -> nbformat.NotebookNode:
    """A cell of the front page: what a notebook measured, and its picture.

    Args:
        table: from the notebook's metadata, with its record, to Markdown.
        picture: how the text alternative of the picture begins.
    """
    alt, png = results.picture(notebook, picture)
    text = [
        f"## {heading}",
        table(notebook.metadata),
        f"![{alt}](attachment:result.png)",
        f"From [{title(notebook)}]({stem}.ipynb).",
    ]
    cell = nbformat.v4.new_markdown_cell("\n\n".join(text))
    cell.attachments = {"result.png": {"image/png": png}}
    return cell


def student_table(metadata: dict) -> str:
    return results.masked_lm_table(metadata["record"])


def control_table(metadata: dict) -> str:
    record = metadata["record"]
    measures = {
        "accuracy_at_mask": ("accuracy at [MASK]", "{:.1%}"),
        "perplexity": ("perplexity", "{:.1f}"),
        "kl_to_teacher": ("KL to the teacher", "{:.3f}"),
        "top5_overlap": ("top-5 overlap", "{:.3f}"),
    }
    lines = [["mix of losses", "steps", *(head for head, _ in measures.values())]]
    for name, steps in record["steps"].items():
        line = [f"`{name}`", str(steps)]
        for measure, (_, form) in measures.items():
            values = record["mixes"][name][measure]
            spread = f" ± {form.format(stdev(values))}" if len(values) > 1 else ""
            line.append(form.format(mean(values)) + spread)
        lines.append(line)
    return results.rows(*lines)


def contender_table(metadata: dict) -> str:
    return results.table(metadata["record"], metadata["timings"])


RESULTS = {
    "03_runner": (
        "What the student has learned",
        student_table,
        results.GUESSES,
    ),
    "04_loss_callbacks": ("What the teacher adds", control_table, "Points of seven mixes"),
    "06_sentiment_evaluation": (
        "What the student is worth on a task",
        contender_table,
        "Accuracy against milliseconds",
    ),
}
"""The front page's: heading, table, and how the text alternative of the picture begins."""


def write(paths: list[Path], target: Path) -> Path:
    """Write the report of these executed notebooks; its front page.

    What was in `target` goes, when all of the new report is there.
    """
    beside = target.with_name(f"{WRITING}{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    front = Report(paths, beside).write()
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)
    return target / front.name


if __name__ == "__main__":
    print(write(sorted(NOTEBOOKS.glob(NUMBERED)), ROOT / "artifacts" / "pages"))
