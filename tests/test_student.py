"""Your own texts to a model in one command, by make and without it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest

from conftest import ROOT
from helpers.data import read_texts
from helpers.runs import student

VALUES = {
    "CORPUS": 'meine Texte/kino\'s "best".csv',
    "TEXT_FIELD": "текст",
    "SENTENCES": '["It\'s a [MASK], #1; $HOME"]',
    "LAYERS": "[0, 3]",
}


def test_make_hands_on_each_value_as_it_is(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor each in "$@"; do printf "%s\\n" "$each"; done\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()

    def make(*given, **environment):
        # Without its word on the folder, which a make that make has started says.
        command = ["make", "--no-print-directory", "student", *given]
        environment = {**os.environ, "MAKEFLAGS": "", **environment}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    given = [f"{name}={value}" for name, value in VALUES.items()]
    for_make = [each.replace("$", "$$") for each in given]  # a dollar sign is make's own
    module = ["-m", "helpers.runs.student"]
    said = make(*for_make, "CORPSU=x", "PYTHON=python3")
    assert said[:2] == module
    assert sorted(said[2:]) == sorted([*given, "CORPSU=x"]), "a mistyped name too: it has to be said"
    assert make(SEED="3") == module, "what is in the environment by chance is no parameter"


def test_values_are_those_that_are_meant():
    assert student.read([f"{name}={value}" for name, value in VALUES.items()]) == {
        "CORPUS": 'meine Texte/kino\'s "best".csv',
        "TEXT_FIELD": "текст",
        "SENTENCES": ["It's a [MASK], #1; $HOME"],
        "LAYERS": [0, 3],
    }
    texts = ["LEARNING_RATE=5e-4", "TEXT_FIELD=0", "LABEL_FIELD=3", "BASELINE=None", "TEACHER=a=b", "COMPRESS=1"]
    values = {"LEARNING_RATE": 5e-4, "TEXT_FIELD": "0", "LABEL_FIELD": 3, "BASELINE": None, "TEACHER": "a=b"}
    assert student.read(texts) == values | {"COMPRESS": 1}
    assert student.read(["CORPUS=[a.csv, b b.csv]", "LABELLED_CORPUS={gut: a.txt, schlecht: [b.txt, c.txt]}"]) == {
        "CORPUS": ["a.csv", "b b.csv"],
        "LABELLED_CORPUS": {"gut": "a.txt", "schlecht": ["b.txt", "c.txt"]},
    }
    assert student.read(["CORPUS=[ab]*.csv"]) == {"CORPUS": "[ab]*.csv"}, "a pattern"


def test_the_notebooks_and_their_parameters():
    def plan(*given):
        return {path.stem[:2]: values for path, values in student.plan(student.read(list(given))).items()}

    assert list(plan("LAYERS=2")) == ["03"]
    assert not plan("LAYERS=2")["03"]["CONTROL"], "one student, and no second one to compare it with"
    for spelled, meant in {"true": True, "True": True, "False": False}.items():
        assert plan(f"CONTROL={spelled}")["03"]["CONTROL"] is meant
    plans = plan("LABELLED_CORPUS=bundled", "LAYERS=2", 'SENTENCES=["a [MASK]"]', "SEEDS=[4]")
    assert list(plans) == ["03", "06"]
    assert [values["LAYERS"] for values in plans.values()] == [2, 2]
    assert plans["03"]["SENTENCES"] == ["a [MASK]"]
    assert "SENTENCES" not in plans["06"]
    assert plans["06"]["SEEDS"] == [4]
    assert plans["06"]["MORE_CONTENDERS"] == []
    more = plan("LABELLED_CORPUS=bundled", "MORE_CONTENDERS=[mlm_only_task]")["06"]["MORE_CONTENDERS"]
    assert more == ["mlm_only_task"]
    assert plans["06"]["PART_SIZES"] == {"train": 2000, "valid": 1000, "test": 2500}, "the notebook's default"
    assert list(plan("LABELLED_CORPUS=bundled", "COMPRESS=1")) == ["03", "06", "07"]
    assert list(plan("LABELLED_CORPUS=bundled", "COMPRESS=0")) == ["03", "06"]
    alone = plan("LABELLED_CORPUS=bundled", "HIDDEN_WORDS=false", "COMPRESS=1")
    assert {number: values["HIDDEN_WORDS"] for number, values in alone.items()} == {"06": False, "07": False}


FAULTS = {
    "CORPUS": "'CORPUS': write NAME=value, such as CORPUS=my.csv.",
    "CORPSU=x.csv": "CORPSU is no parameter; did you mean CORPUS?",
    "corpus=x.csv": "corpus is no parameter; did you mean CORPUS?",
    "MAX_STEPS=many": "MAX_STEPS is 'many'; it has to be a whole number, at least 1.",
    "CORPUS=": "CORPUS is ''; it has to be 'bundled', a file",
    "CORPUS=no where.csv": "no where.csv: no such file",
    "TEACHER=no/such folder": "no/such folder",
    "COMPRESS=1": "COMPRESS is 1: 1 compresses the classifier, so it needs LABELLED_CORPUS, too.",
    "COMPRESS=yes": "COMPRESS is yes: 1 compresses",
    "HIDDEN_WORDS=false": "HIDDEN_WORDS is False: then the task alone is distilled, so it needs LABELLED_CORPUS, too.",
    "HIDDEN_WORDS=no": "HIDDEN_WORDS has no effect on 03;",
    "LABEL_FIELD=mark": "LABEL_FIELD has no effect on 03; LABELLED_CORPUS adds notebook 06, and COMPRESS=1 07.",
    "GRID={LAYERS: [1, 2]}": "GRID has no effect on 03;",
    "LABELLED_CORPUS=mine.csv": "CORPUS is missing: name your texts without labels, too.",
    "PART_SIZES={train: 2, valid: 2}": "PART_SIZES has no effect on 03;",
}


@pytest.mark.parametrize("argument", FAULTS)
def test_what_is_wrong_is_one_sentence_before_any_work(argument, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("a notebook runs"))
    # The value under test counts: it is the last of its name.
    base = [f"TEACHER={tiny_folder}", "MAX_LENGTH=16", "LAYERS=2", f"OUTPUT_DIR={tmp_path}"]
    assert student.main([*base, argument]) == 1
    said = capsys.readouterr().err
    assert FAULTS[argument] in said
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said


def test_labelled_texts_that_do_not_fit_are_said_before_the_first_notebook(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("a notebook runs"))
    given = [f"TEACHER={tiny_folder}", "MAX_LENGTH=16", "LAYERS=2", f"OUTPUT_DIR={tmp_path}"]
    given += ["CORPUS=tests/data/sentences.csv", "LABELLED_CORPUS=tests/data/labelled.csv"]
    given += ["LABELLED_TEXT_FIELD=review"]
    assert student.main([*given, "LABEL_FIELD=language", "LABELLED_CORPUS=nowhere.csv"]) == 1
    assert "nowhere.csv: no such file" in capsys.readouterr().err
    assert student.main([*given, "LABEL_FIELD=languag"]) == 1
    assert "no column 'languag'" in capsys.readouterr().err
    small = "SMALL={VOCABULARY: 100000, FEED_FORWARD: 64}"
    assert student.main([*given, "LABEL_FIELD=language", small, "COMPRESS=1"]) == 1
    assert "VOCABULARY is 100,000, but the tokenizer has" in capsys.readouterr().err


@pytest.fixture
def own(tiny_folder, tmp_path):
    """Arguments for a folder with a space, a file and a column of other alphabets, and little work."""
    folder = tmp_path / "meine Modelle"
    folder.mkdir()
    texts = read_texts(ROOT / "tests" / "data" / "sentences.csv")["text"][:]
    rows = ['"' + text.replace('"', '""') + '"' for text in texts]
    (folder / "тексты.csv").write_text("\n".join(["отзыв", *rows]), encoding="utf-8")
    values = {"CORPUS": folder / "тексты.csv", "TEXT_FIELD": "отзыв", "TEACHER": tiny_folder, "OUTPUT_DIR": folder}
    values |= {"LAYERS": "[0, 3]", "MAX_LENGTH": 16, "BATCH_SIZE": 16, "TEACHER_BATCH_SIZE": 16, "TEACHER_STEPS": 40}
    values |= {"MAX_STEPS": 20, "LEARNING_RATE": "2e-3", "SENTENCES": '["the [MASK] is red"]'}
    return [f"{name}={value}" for name, value in values.items()]


def start(arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"ACCELERATE_MIXED_PRECISION": "no", "TOKENIZERS_PARALLELISM": "false"}
    command, both = [sys.executable, "-m", "helpers.runs.student", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=both, stderr=both, text=True)


def finish(process, timeout=580):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, (out + err)[-4000:]
    return out


def uses(out):
    """What the run has named at its end: from what it is to (folder, what its three lines print)."""
    found = {}
    for what, folder, lines in re.findall(r"^(The [\w ]+): (.+)\n\n((?:.+\n){3})", out, re.MULTILINE):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", lines]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found[what] = (Path(folder), eval(done.stdout.strip().splitlines()[-1]))
    return found


def test_a_student_from_a_file_of_ones_own(own):
    process = start(own)
    out = finish(process)
    assert "03_runner runs." in out
    assert "step   20, validation:" in out, "the run is seen as it goes on"
    ((folder, guesses),) = uses(out).values()
    assert folder.parent.name == "03_runner"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    assert len(guesses) == 5
    sequences = [guess["sequence"] for guess in guesses]
    assert all(s.startswith("the") and s.endswith(" is red") for s in sequences), sequences
    (copy,) = folder.parent.glob("run-*.ipynb")
    again = finish(start(own))
    assert "03_runner has already run with these values." in again
    assert uses(again)["The student"] == (folder, guesses)
    assert list(folder.parent.glob("run-*.ipynb")) == [copy]


@pytest.mark.slow
@pytest.mark.parametrize("words", [True, False])
def test_with_labels_it_goes_on_to_the_classifier_and_to_a_file(own, words):
    if not words:
        own = [each for each in own if not each.startswith("SENTENCES=")]  # of notebook 03
    own += ["LABELLED_CORPUS=tests/data/labelled.csv", "LABELLED_TEXT_FIELD=review", "LABEL_FIELD=language"]
    own += ["PART_SIZES={train: 40, valid: 12, test: 16}", "TRANSFER_TEXTS=50", "FINE_TUNING_BATCH_SIZE=8"]
    own += ["FINE_TUNING_EPOCHS=4", "FINE_TUNING_LEARNING_RATES=[1e-3]", "TASK_EPOCHS=4", "SEEDS=[0]"]
    own += ["SMALL={VOCABULARY: 121, FEED_FORWARD: 64}", "COMPRESS=1", f"HIDDEN_WORDS={words}"]
    used = uses(finish(start(own)))
    assert list(used) == ["The student"] * words + ["The classifier", "The classifier as a file"]
    ((classified,),) = [used["The classifier"][1:]]
    path = used["The classifier"][0]
    assert path.parent.name == "06_sentiment_evaluation"
    assert path.name.startswith("distilled_task-" if words else "extracted_task-")
    folder, (label, probability) = used["The classifier as a file"]
    assert (folder / "onnx" / "model_quantized.onnx").is_file()
    assert {classified[0]["label"], label} <= {"german", "english", "russian"}
    assert 0 < probability <= 1


@pytest.mark.slow
def test_an_interrupt_ends_with_a_sentence_and_the_same_command_goes_on(own):
    process = start([*own, "MAX_STEPS=4000"])
    while "Distilled student: making" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().endswith("Interrupted. The same command goes on from here: models that are finished are kept.")
    assert "Traceback" not in err
