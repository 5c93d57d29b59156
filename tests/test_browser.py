"""JupyterLab, the report of `make tutorial` and the page of `make demo`, in headless Chromium: `make test-browser`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import pytest
import torch

from conftest import ROOT
from helpers import compression
from helpers.catalyst_today.saving import save_folder
from helpers.classification import classifier_of
from helpers.models import extract_student
from helpers.runs import answer

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import demo
import html_report
import run

pytestmark = pytest.mark.browser
SCREENSHOTS = ROOT / "artifacts" / "browser"
TOKEN = "of-this-test"
MINUTES = 60_000  # in milliseconds, as Playwright counts


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright  # installed by make test-browser alone

    options = "--no-sandbox --disable-gpu --disable-quic --no-first-run"
    options += " --disable-background-networking --disable-component-update --disable-sync"
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options.split())
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    with closing(chromium.new_context(viewport={"width": 1440, "height": 900})) as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's notebooks and helpers, so that what a run writes stays out of the reader's."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("notebooks", "helpers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def server(copy, tmp_path_factory):
    """The address of a JupyterLab from this environment, without the settings of whoever runs the test."""
    own = tmp_path_factory.mktemp("jupyter")
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # or it asks about them
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, in sight or not
    }
    for name, values in settings.items():
        file = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --no-browser --allow-root"
    command = [sys.executable, "-m", "jupyter", "lab", *options.split(), f"--IdentityProvider.token={TOKEN}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
    }
    with (own / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=copy / "notebooks", env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert process.poll() is None, (own / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


def run_all_cells(page, server, name):
    """Open a notebook in JupyterLab, with its kernel, and run it from the menu."""
    page.goto(f"{server}/lab/tree/{name}?token={TOKEN}")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=2 * MINUTES)  # before that it runs nothing
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()


def wait_for_the_end(page, text):
    """Wait for `text` in the last cell's output, and then for the kernel."""
    last = page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
    last.filter(has_text=text).wait_for(timeout=10 * MINUTES)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=MINUTES)


def test_notebook_01_runs_in_jupyterlab_to_its_last_cell(page, server, copy):
    path = copy / "notebooks" / "01_dataset_dicts.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)  # what is seen below, this run has made

    run_all_cells(page, server, path.name)
    wait_for_the_end(page, "Written: 01_dataset_dicts/metrics.json")

    page.locator("[data-id=table-of-contents]").click()
    headings = page.locator(".jp-TableOfContents .jp-tocItem-content")
    headings.last.wait_for()
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    sections = [line.lstrip("# ") for line in lines if line.startswith(("# ", "## "))]
    assert headings.all_inner_texts() == sections
    assert len(sections) > 5

    assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    pictures = page.locator(".jp-OutputArea-output img")
    assert pictures.count() == 2
    for picture in pictures.all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 300
    pictures.last.scroll_into_view_if_needed()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "jupyterlab.png")

    page.keyboard.press("Control+s")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_a_training_run_shows_its_progress_as_a_widget_that_is_gone_at_the_end(page, server, copy, tiny_folder):
    source = f"""
from helpers import data, models, training
from helpers.catalyst_today.engine import Engine

teacher, tokenizer = models.load_teacher({str(tiny_folder)!r})
texts = data.read_texts({str(ROOT / "tests" / "data" / "sentences.csv")!r})
loaders = data.masked_lm_loaders(texts, tokenizer, max_length=16, batch_size=16, steps_per_epoch=50)
engine = Engine("no", cpu=True)
history = training.train_masked_lm(teacher, loaders, epochs=4, learning_rate=1e-3, seed=0, engine=engine)
print("steps taken:", len(history.steps))
"""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())], metadata=kernel)
    nbformat.write(notebook, copy / "notebooks" / "scratch.ipynb")

    run_all_cells(page, server, "scratch.ipynb")
    bar = page.locator(".jp-OutputArea-output .jupyter-widgets.widget-hprogress")
    bar.wait_for(timeout=2 * MINUTES)
    assert bar.count() == 1
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "progress.png")
    wait_for_the_end(page, "steps taken: 200")
    bar.wait_for(state="hidden")
    printed = page.locator(".jp-OutputArea-output[data-mime-type*=stdout]").all_inner_texts()
    assert "it/s" not in "".join(printed)  # no bar of text beside it


@pytest.mark.parametrize("width", [390, 1440])
def test_the_report_is_whole_and_nothing_is_cut_off(chromium, tmp_path, width):
    front = html_report.write(run.committed([]), tmp_path / "report")
    said, asked, followed, pictures = [], [], 0, 0
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with closing(chromium.new_context(viewport={"width": width, "height": 900})) as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        waiting, seen = [front.as_uri()], set()
        while waiting:
            address = waiting.pop()
            seen.add(address)
            page.goto(address)  # raises where there is no such file
            found = page.evaluate(LOOK)
            assert found["broken"] == [], address
            assert found["cut"] == [], address
            assert found["width"] <= width, address
            pictures += found["pictures"]
            followed += len(found["links"])
            page.screenshot(path=SCREENSHOTS / f"report-{Path(address).stem}-{width}.png", full_page=True)
            waiting += {link.partition("#")[0] for link in found["links"]} - seen - set(waiting)
    assert said == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert seen == {path.as_uri() for path in front.parent.iterdir()}
    print(f"{width} pixels: {len(seen)} pages, {followed} links, {pictures} pictures")


LOOK = """() => {
    const cut = element => {
        const style = getComputedStyle(element);
        const hides = ["hidden", "clip"].includes(style.overflowX) || style.textOverflow === "ellipsis";
        return hides && element.scrollWidth > element.clientWidth;
    };
    document.querySelectorAll("details").forEach(details => { details.open = true; });
    const images = [...document.images];
    const text = element => element.outerHTML.slice(0, 200);
    return {
        pictures: images.length,
        broken: images.filter(image => !image.complete || image.naturalWidth === 0).map(text),
        cut: [...document.querySelectorAll("body *")].filter(cut).map(text),
        width: document.scrollingElement.scrollWidth,
        links: [...document.links].map(link => link.href).filter(href => href.startsWith("file:")),
    };
}"""
"""What a page shows: its pictures and those not loaded, elements that hide a part of their text, the width, links."""


TYPED = ["Das ist ein Satz.", "Это русская фраза.", "A film that nobody will forget.", "zzz"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served_demo(tiny, tmp_path):
    """(address of the page, the folder of its student), a tiny one that gives `TYPED` different classes of three."""
    teacher, tokenizer = tiny
    folder, site = tmp_path / "student", tmp_path / "demo"
    classifier = classifier_of(extract_student(teacher, [0, 3]), ["english", "german", "russian"], seed=0)
    with torch.no_grad():
        classifier.classifier.weight *= 30  # or all classes would be as likely
        inputs = tokenizer(TYPED, padding=True, return_tensors="pt")
        logits = classifier(inputs["input_ids"], inputs["attention_mask"]).logits
        classifier.classifier.bias -= logits.mean(0)  # or the same would win each time
    save_folder(folder, classifier, tokenizer)
    compression.export_onnx(classifier, folder / "onnx" / "model.onnx")
    compression.quantize(folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx")
    demo.lay(folder, site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()


def test_the_demo_answers_in_the_page_as_python_does_and_asks_no_other_machine(page, served_demo):
    address, folder = served_demo
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator("#time", has_text="Ready.").wait_for(timeout=2 * MINUTES)
    classify, said = answer.Classifier(folder), {}
    for text in TYPED:
        page.locator("#text").fill("")
        page.locator("#text").press_sequentially(text)
        page.wait_for_function("text => document.getElementById('answer').dataset.text === text", arg=text)
        found = page.evaluate("({...document.getElementById('answer').dataset})")
        label, probability = classify(text)
        assert found["label"] == page.locator("#answer .row").first.locator("span").first.inner_text() == label
        assert float(found["score"]) == pytest.approx(probability, abs=0.02)
        assert 0 < float(found["milliseconds"]) < 1000
        said[text] = (label, round(probability, 3), f"{float(found['milliseconds']):.1f} ms")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "demo.png")
    assert len({label for label, *_ in said.values()}) > 1
    assert errors == []
    assert all(url.startswith(address) for url in asked), asked
    print(said, f"{len(asked)} requests, all to this machine")
