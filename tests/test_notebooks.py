"""The notebooks as tests: run on tiny data by papermill, run again by nbval, and the committed ones looked through."""

import base64
import json
import re
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from matplotlib.testing.compare import compare_images

from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import drawings
import run
import stale
import tiny
from sources import Repository

PATHS = run.committed([])
NAMES = [path.stem for path in PATHS]


@pytest.fixture(scope="module", params=NAMES)
def executed(request):
    """(name, executed copy, its record), each notebook alone; `make stale` makes the same run, and uses this one."""
    outcome = tiny.outcome(request.param, Repository().sources(request.param))
    return request.param, tiny.folder_of(request.param) / "copy.ipynb", outcome["record"]


def check_00(record):
    assert len(record["losses"]) == 60
    assert record["losses"][-1] < 0.7 * record["losses"][0]
    assert record["kl_after"] < 0.7 * record["kl_before"]
    few = {name: values["KL to the teacher"] for name, values in record["from_few_rows"].items()}
    assert few["distilled"] < few["control"] < record["kl_before"]
    assert record["parameters_million"]["distilled"] < record["parameters_million"]["teacher"]


def check_01(record):
    assert record["texts"] == record["different_texts"] == 52
    assert 0 < record["masked_share"] < 0.4
    assert record["padding_share"]["packed, 16"] < 0.2
    assert 0 < record["pairs_across_texts"] < record["blocks_of_several_texts"] <= 1
    assert record["share_never_read"]["packed, 16"] == 0 < record["share_never_read"]["one text a row, 16"]


def check_02(record):
    assert record["largest_logit_difference"] < 1e-4
    assert record["largest_logit_difference_bert_base"] < 1e-4
    assert record["extracted_perplexity"] > 1


def check_03(record):
    assert record["student_kl_to_teacher"] < 0.7 * record["extracted_kl_to_teacher"]
    assert record["top5_overlap_after"] > record["top5_overlap_before"]
    assert record["student_kl_to_teacher"] < record["control_kl_to_teacher"] < record["extracted_kl_to_teacher"]
    assert record["validations"][-1]["loss"] < record["validations"][0]["loss"]


def check_04(record):
    alone, as_long = "masked LM alone", "masked LM alone, equal minutes"
    mixes = record["mixes"]
    assert len(mixes) == 7
    assert record["steps"] == {**dict.fromkeys(mixes, 40), as_long: 67}
    for label, values in mixes.items():
        assert len(set(values["perplexity"])) == 2, "the seeds give different students"
        if label not in (alone, as_long):
            for seed in (0, 1):
                assert values["kl_to_teacher"][seed] < 0.6 * mixes[alone]["kl_to_teacher"][seed]
                assert values["top5_overlap"][seed] > mixes[alone]["top5_overlap"][seed]
    assert record["ends"]["teacher"]["kl_to_teacher"] == 0


def check_05(record):
    assert record["sums_past_the_wrapper_differ"]
    assert record["sums_through_the_wrapper_equal"]
    assert record["largest_gradient_difference"] < 1e-5
    assert record["largest_loss_difference"] < 1e-4
    assert record["resumed_equals_whole"]
    assert len(record["validation_losses"]) == 4


def check_06(record):
    contenders = record["contenders"]
    names = ["teacher", "distilled", "mlm_only", "extracted", "random", "random_layers", "baseline"]
    names += ["distilled_task", "extracted_task", "mlm_only_task", "distilled_task_labelled"]
    names += ["distilled_task_left_over", "distilled_task_corpus", "distilled_task_one", "distilled_hard"]
    names += ["distilled_longer"]
    assert list(contenders) == names
    assert record["labels"] == ["english", "german", "russian"]
    assert record["parts"] == {"train": 40, "valid": 12, "test": 16, "transfer": 50}
    for values in contenders.values():
        assert len(values["test_accuracy"]) == len(values["test_macro_f1"]) == len(values["steps_to_95"]) == 2
        assert values["learning_rate"] in (1e-3, 3e-3)
        low, kept, high = values["share_kept"]
        assert low <= kept <= high
    # Letters tell the three languages apart; guessing would give a third.
    for name in ("teacher", "distilled", "extracted", "distilled_task"):
        assert sum(contenders[name]["test_accuracy"]) / 2 > 0.6, name
    assert contenders["distilled"]["parameters"] < contenders["teacher"]["parameters"]
    assert contenders["baseline"]["parameters"] not in (contenders[name]["parameters"] for name in names[:6])
    assert len(record["differences"]) == 26
    assert [each["level"] for each in record["differences"].values()] == [0.975] * 2 + [0.95] * 24
    steps = {name: values["valid_steps"][-1] for name, values in contenders.items()}
    as_many = {name for name in names if steps[name] == steps["distilled_task"]}
    assert as_many == {"distilled_longer", "distilled_hard", *(name for name in names if "_task" in name)}
    assert steps["distilled_longer"] > steps["distilled"]


def check_07(record):
    models, ways = record["models"], ("PyTorch", "onnxruntime", "int8")
    assert set(models) == {
        *(f"{who}, {way}" for who in ("teacher", "student") for way in ways),
        *(f"small student, {way}" for way in ways[1:]),
        "student, half zeros",
    }
    for who in ("teacher", "student"):
        in_pytorch, in_onnx, in_int8 = (models[f"{who}, {way}"] for way in ways)
        assert in_onnx["test_accuracy"] == in_pytorch["test_accuracy"]
        assert in_onnx["megabytes"] == pytest.approx(in_pytorch["megabytes"], abs=0.05)
        assert in_int8["megabytes"] < 0.5 * in_onnx["megabytes"]
    for values in models.values():
        low, kept, high = values["share_kept"]
        assert low <= kept <= high
    assert models["teacher, PyTorch"]["share_kept"] == [1, 1, 1]
    assert models["student, int8"]["test_accuracy"] > 0.6, "guessing would give a third"
    assert models["small student, int8"]["megabytes"] < models["student, int8"]["megabytes"]
    assert models["student, half zeros"]["megabytes"] == pytest.approx(
        models["student, onnxruntime"]["megabytes"], rel=0.01
    )
    assert record["largest_difference"] < 1e-4
    near = {name: values["kl_to_teacher"] for name, values in record["masked_lm"].items()}
    assert near["student, onnxruntime"] == pytest.approx(near["student, PyTorch"], rel=1e-4)
    assert near["student, int8"] == pytest.approx(near["student, PyTorch"], rel=0.3)
    assert re.fullmatch(r"small-\*{10}", record["folder"])


def check_08(record):
    varied = [{"LAYERS": [0, 3], "TEMPERATURE": 2.0}, {"LAYERS": [0, 1], "TEMPERATURE": 2.0}]
    assert [each["varied"] for each in record["runs"].values()] == varied
    assert record["failed"] == {}
    for each in record["runs"].values():
        assert each["student_perplexity"] < each["extracted_perplexity"]
        assert 0 < each["student_masked_accuracy"] < 1
    both = [each["student_kl_to_teacher"] for each in record["runs"].values()]
    assert both[0] != both[1]
    assert len(set(record["million_parameters"].values())) == 1, "two layers each"


LONG = sorted((ROOT / stale.RECORDS).glob("*.json"))
CONTROLS = [file for file in LONG if "part" in json.loads(file.read_text(encoding="utf-8")).get("made_from", {})]


@pytest.mark.parametrize("file", CONTROLS, ids=lambda file: file.stem)
def test_a_record_of_the_controls_is_not_stale(file):
    assert not stale.check_record(file, Repository()).reasons


@pytest.mark.parametrize("file", [file for file in LONG if file not in CONTROLS], ids=lambda file: file.stem)
def test_a_long_record_has_notebook_02s_teacher_and_is_not_stale(file):
    made_from = json.loads(file.read_text(encoding="utf-8"))["made_from"]
    extraction = nbformat.read(ROOT / "notebooks" / "02_student_extraction.ipynb", as_version=4).metadata["record"]
    assert made_from["teacher"] == extraction["fingerprint"]
    assert not stale.check_record(file, Repository()).reasons


def test_runs_on_tiny_data_and_repeats(executed):
    name, copy, first = executed
    checks = {
        "00": check_00,
        "01": check_01,
        "02": check_02,
        "03": check_03,
        "04": check_04,
        "05": check_05,
        "06": check_06,
        "07": check_07,
        "08": check_08,
    }
    checks[name[:2]](first)

    shutil.rmtree(copy.parent / "output")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        str(copy),
    ]
    own = {"cwd": copy.parent, "env": tiny.environment()}
    again = subprocess.run(command, **own, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout[-5000:]
    code_cells = sum(cell.cell_type == "code" for cell in nbformat.read(copy, as_version=4).cells)
    assert re.search(rf"\b{code_cells} passed\b", again.stdout)
    assert tiny.masked(tiny.read_record(name)) == first


def test_an_unknown_parameter_stops_a_notebook_before_any_work(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="MAX_STEPZ is no parameter of any notebook"):
        papermill.execute_notebook(
            PATHS[0],
            tmp_path / "copy.ipynb",
            parameters={"MAX_STEPZ": 3, "OUTPUT_DIR": str(tmp_path / "artifacts")},
            progress_bar=False,
            kernel_name="python3",
        )
    assert not (tmp_path / "artifacts").exists()


@pytest.fixture(params=PATHS, ids=NAMES)
def committed(request):
    return nbformat.read(request.param, as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook_shows_what_this_code_does(name):
    assert stale.check(name, Repository()).reasons == [], "stale: run `make notebooks`"


def test_committed_notebook_is_one_clean_run(committed):
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert not any("widget" in mime for output in outputs for mime in output.get("data", {}))


MACHINE = re.compile(r"[^\"\s]*(?:/root|/home|/Users|/work|/tmp|site-packages|\.venv/)[^\"\s]*")


def test_committed_notebook_names_no_machine(committed):
    for cell in committed.cells:
        cell.pop("attachments", None)  # base64 holds any text by chance
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    assert not MACHINE.findall(json.dumps(committed))


def test_records_name_no_machine():
    for file in (ROOT / stale.RECORDS).rglob("*.json"):
        assert not MACHINE.findall(file.read_text(encoding="utf-8")), file


def test_committed_notebook_is_built_as_a_notebook_should_be(committed):
    first, sources = committed.cells[0].source, [cell.source for cell in committed.cells]
    assert re.match(r"# \d\d \w", first)
    assert "minutes" in first or "minute" in first
    assert run.minutes(committed) != "no time given"
    assert "https://medium.com/pytorch/bert-distillation-with-catalyst-c6f30c985854" in first
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in committed.cells) == 1
    assert any("check_parameters(globals())" in source for source in sources)
    assert any("## Exercises" in source for source in sources)
    for cell in committed.cells:
        assert "!" not in re.sub(r"`[^`]*`|!\[", "", cell.source) or cell.cell_type == "code", cell.source
        # Without an empty line, the answer is HTML, and its stars, links and formulas are shown as they are typed.
        assert not re.search(r"</summary>\n(?!\n)", cell.source), cell.source
        if cell.cell_type == "code":
            # The parameters are a list of what can be set, not a piece of code to be understood at once.
            assert "parameters" in cell.metadata.get("tags", []) or len(cell.source.splitlines()) <= 20, cell.source
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"]


@pytest.mark.parametrize("path", PATHS[:-1], ids=NAMES[:-1])
def test_a_notebook_leads_to_the_next(path):
    following = PATHS[PATHS.index(path) + 1].name
    assert any("Next: [" in cell.source and f"({following})" in cell.source for cell in read(path))


@pytest.mark.parametrize("path", PATHS[:5], ids=NAMES[:5])
def test_a_reader_of_the_first_notebooks_gets_a_sentence_after_three_cells_of_code_at_most(path):
    kinds = "".join(cell.cell_type[0] for cell in read(path))
    assert "cccc" not in kinds.replace("c", "", 1)  # the set-up cell is folded


def test_the_drawings_are_those_that_the_code_draws(tmp_path):
    for name in drawings.DRAWINGS:
        drawings.draw(name, tmp_path / f"{name}.png")
        assert compare_images(ROOT / "notebooks" / "images" / f"{name}.png", tmp_path / f"{name}.png", tol=1) is None


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_each_drawing_is_embedded_where_it_is_named_and_described(path):
    for cell in read(path):
        shown = drawings.NAMED.findall(cell.source)
        assert cell.source.count("](attachment:") == len(shown)
        assert set(cell.get("attachments", {})) == {f"{name}.png" for _, name in shown}
        for alt, name in shown:
            assert len(alt) > 20
            embedded = base64.b64decode(cell.attachments[f"{name}.png"]["image/png"])
            assert embedded == (ROOT / "notebooks" / "images" / f"{name}.png").read_bytes(), "run drawings.py"


def read(path):
    return nbformat.read(path, as_version=4).cells
