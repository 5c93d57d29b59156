"""The parameter files, the table of all parameters, and names that papermill is given and no notebook has."""

import csv
import gzip
import json
import shutil
import sys

import papermill
import pytest
import yaml
from transformers import BertConfig, BertModel

import tiny_teacher
from conftest import ROOT
from helpers.models import quiet_transformers
from helpers.runs.parameters import PARAMETERS, check_parameters

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import parameter_table

FILES = {
    file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in (ROOT / "notebooks" / "parameters").glob("*.yaml")
}
NOTEBOOKS = parameter_table.by_notebook()


def test_each_experiment_has_its_file():
    wanted = {"tiny", "laptop", "gpu_bert_base", "rubert_lenta", "multilingual", "three_layers", "first_six_layers"}
    assert set(FILES) == wanted | {"controls", "long_task", "second_task"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_what_a_notebook_has_and_every_value_is_right(name, tmp_path):
    for number, defaults in NOTEBOOKS.items():
        used = {key: value for key, value in FILES[name].items() if key in defaults}
        check_parameters(defaults | used | {"OUTPUT_DIR": str(tmp_path / number)})
    assert set(FILES[name]) <= set().union(*NOTEBOOKS.values())


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_first_what_it_is(name):
    text = (ROOT / "notebooks" / "parameters" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.split("\n", 1)[0]) > 60


def test_the_laptops_file_spells_out_the_defaults():
    for number in ("01", "02", "03", "06"):
        assert NOTEBOOKS[number].items() <= FILES["laptop"].items(), number
    differing = {
        number: {key for key in defaults if key in FILES["laptop"] and defaults[key] != FILES["laptop"][key]}
        for number, defaults in NOTEBOOKS.items()
    }
    shorter = {"BATCH_SIZE", "MAX_STEPS"}
    assert {n: keys for n, keys in differing.items() if keys} == {
        "00": shorter | {"MAX_LENGTH", "TEACHER_STEPS", "SENTENCES"},
        **{n: shorter for n in ("04", "05", "08")},
    }
    up_to_06 = set().union(*(defaults for number, defaults in NOTEBOOKS.items() if number < "07"))
    assert set(FILES["laptop"]) == up_to_06


def test_files_that_are_compared_differ_in_their_layers_alone():
    base = FILES["gpu_bert_base"]
    for name, layers in (("three_layers", 3), ("first_six_layers", [0, 1, 2, 3, 4, 5])):
        assert FILES[name] == base | {"LAYERS": layers}


@pytest.fixture(scope="module")
def twelve_layers(tiny_folder, tmp_path_factory):
    """A tiny teacher of as many layers as BERT-base has."""
    folder = tmp_path_factory.mktemp("teacher") / "twelve"
    shutil.copytree(tiny_folder, folder)
    config = BertConfig.from_pretrained(tiny_folder, num_hidden_layers=12)
    with quiet_transformers():
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def lenta(file):
    """The tests' sentences in the form of lenta.ru's news."""
    with tiny_teacher.SENTENCES.open(encoding="utf-8", newline="") as sentences, gzip.open(file, "wt") as opened:
        writer = csv.writer(opened)
        writer.writerow(["url", "title", "text", "topic", "tags", "date"])
        writer.writerows(["https://", "-", row["text"], "-", "-", "2018/12/01"] for row in csv.DictReader(sentences))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [("gpu_bert_base", 6), ("first_six_layers", 6), ("three_layers", 3), ("multilingual", 6), ("rubert_lenta", 6)],
)
def test_a_file_that_needs_a_hub_runs_on_a_small_teacher_of_its_shape(name, layers, twelve_layers, tmp_path):
    values = {key: value for key, value in FILES[name].items() if key in NOTEBOOKS["03"]}
    small = {"MAX_LENGTH": 16, "BATCH_SIZE": 16, "TEACHER_STEPS": 100, "MAX_STEPS": 60, "LEARNING_RATE": 2e-3}
    if values.get("VOCABULARY"):
        small["VOCABULARY"] = 121  # as many as the tiny teacher has, all of them letters
    corpus = lenta(tmp_path / values["CORPUS"]) if name == "rubert_lenta" else tiny_teacher.SENTENCES
    here = {"TEACHER": str(twelve_layers), "CORPUS": str(corpus), "OUTPUT_DIR": str(tmp_path / "artifacts")}
    copy = tmp_path / "copy.ipynb"
    notebook = ROOT / "notebooks" / "03_runner.ipynb"
    papermill.execute_notebook(notebook, copy, values | small | here, progress_bar=False, kernel_name="python3")
    (student,) = (tmp_path / "artifacts" / "03_runner").glob("student-*")
    assert json.loads((student / "config.json").read_text(encoding="utf-8"))["n_layers"] == layers


def test_every_parameter_of_every_notebook_is_described_once():
    assert set(PARAMETERS) == set().union(*NOTEBOOKS.values())
    assert all(parameter.what and parameter.right for parameter in PARAMETERS.values())
    written = parameter_table.TARGET.read_text(encoding="utf-8")
    assert written == parameter_table.TEXT + parameter_table.table(), "run `python notebooks/tools/parameter_table.py`"


def test_a_default_that_notebooks_do_not_share_is_told_apart():
    notebooks = {"01": {"A": 1}, "02": {"A": 1}, "03": {"A": "x"}, "04": {}}
    assert parameter_table.default_cell("A", notebooks) == "`1`; `'x'` in 03"
    assert parameter_table.default_cell("A", {"01": {"A": 1}, "04": {}}) == "`1`"


def injected(**values):
    """A notebook's globals after papermill's cell, as its own translator writes it."""
    source = papermill.translators.PythonTranslator.codify(values, "Parameters")
    return {"SEED": 0, "In": ["", "import os", "SEED = 0  # of order", source]} | values


@pytest.mark.parametrize(("name", "meant"), [("seed", "SEED"), ("Max_steps", "MAX_STEPS"), ("_seed", "SEED")])
def test_a_name_of_any_case_that_papermill_sets_is_checked(name, meant):
    with pytest.raises(ValueError, match=rf"^{name} is no parameter of any notebook; did you mean {meant}\?$"):
        check_parameters(injected(**{name: 3}))


def test_names_that_a_notebook_gives_to_its_own_values_are_left_alone():
    """Of the set-up cell before, and of the cells after when the check is run a second time."""
    own = {"address": "https://x", "seed": 1, "layers": [0, 2], "Depth": 6}
    assert check_parameters({**injected(SEED=2, LAYERS=[0, 1]), **own}) == {"SEED": 2, "LAYERS": [0, 1]}
    assert check_parameters({"SEED": 0, "In": ["", "seed = 1"], **own}) == {"SEED": 0}


def test_papermills_newest_cell_counts_where_it_was_run_twice():
    namespace = injected(seed=1)
    namespace["In"].append("# Parameters\nSEED = 1\n")
    assert check_parameters(namespace | {"SEED": 1}) == {"SEED": 1}


def test_a_mistyped_name_in_small_letters_stops_a_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="seed is no parameter of any notebook; did you mean S"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "01_dataset_dicts.ipynb",
            tmp_path / "copy.ipynb",
            parameters={"seed": 1, "OUTPUT_DIR": str(tmp_path / "artifacts")},
            progress_bar=False,
            kernel_name="python3",
        )
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("LEARNING_RATE", "5e-4", 5e-4),  # as YAML 1.1 reads it
        ("FINE_TUNING_LEARNING_RATES", ["2e-5", "5E-5"], [2e-5, 5e-5]),
        ("LOSS_WEIGHTS", {"kl": "5e-1", "mlm": 1}, {"kl": 0.5, "mlm": 1}),
        ("LOSS_WEIGHTS", '{"kl": 5e-1, "mlm": 1}', {"kl": 0.5, "mlm": 1}),
        ("GRID", {"LEARNING_RATE": ["1e-4", "5e-4"], "LAYERS": ["[0, 2]", 3]}, None),
        ("GRID", "{LEARNING_RATE: [1e-4, 5e-4], LAYERS: [[0, 2], 3]}", None),
        ("LAYERS", "[0, 3]", [0, 3]),  # as -p gives it
        ("LAYERS", "3", 3),  # as -r gives it
        ("SEEDS", "[0, 1]", [0, 1]),
        ("SENTENCES", '["It is [MASK].", "3 [MASK]"]', ["It is [MASK].", "3 [MASK]"]),
        ("BASELINE", "None", None),
        ("TEXTS", "None", None),
        ("TEXT_FIELD", 0, "0"),  # as -p gives it
        ("TEACHER", 12, "12"),
        ("LABEL_FIELD", 0, 0),  # a number of a column
        ("LABEL_FIELD", "0", "0"),  # the name of one
        ("LABELLED_CORPUS", {0: "a.csv", 1: "b.csv"}, {"0": "a.csv", "1": "b.csv"}),
        ("TEXT_FIELD", "5e-4", "5e-4"),
        ("SEED", 2**64 - 1, 2**64 - 1),
    ],
)
def test_a_value_in_another_type_is_read_as_it_is_meant(name, given, meant):
    meant = {"LEARNING_RATE": [1e-4, 5e-4], "LAYERS": [[0, 2], 3]} if name == "GRID" else meant
    namespace = {name: given}
    (value,) = check_parameters(namespace).values()
    assert (value, namespace) == (meant, {name: meant}), "a notebook's cells use the name itself"
    assert type(value) is type(meant)


def test_batches_that_processes_cannot_share_are_named_before_any_work():
    with pytest.raises(ValueError, match=r"^BATCH_SIZE is 32: 3 processes cannot share it evenly\. Make it a multiple"):
        check_parameters({"BATCH_SIZE": 32, "PROCESSES": 3})
    assert check_parameters({"BATCH_SIZE": 33, "PROCESSES": 3})["PROCESSES"] == 3


@pytest.mark.parametrize(
    "value", [{}, [], {"SEED": 1}, {"SEED": []}, {"SEED": [1, 1]}, {"OUTPUT_DIR": ["a"]}, {"GRID": [{"SEED": [1]}]}]
)
def test_a_grid_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=r"GRID is .*lists of different values"):
        check_parameters({"GRID": value})
