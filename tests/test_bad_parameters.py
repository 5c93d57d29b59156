"""Bad input, a row for each root cause: through which door it comes, and the sentence that it ends with.

Each sentence names the file or the parameter, says what is wrong and what would be right, and comes before anything is
trained.
"""

import re
import sys
from types import SimpleNamespace

import datasets
import pandas as pd
import papermill
import papermill.cli
import pytest
import yaml
from catalyst import dl
from catalyst.contrib.scripts.run import run_from_config
from catalyst.registry import REGISTRY
from click.testing import CliRunner

from conftest import ROOT
from helpers import data, training
from helpers.models import extract_student
from helpers.runs.parameters import check_parameters

sys.path.insert(0, str(ROOT / "notebooks" / "tools"))
import parameter_table

CONFIGS = ROOT / "notebooks" / "configs"
GEORGIAN = "წვიმა მოდიოდა ცარიელ მოედანზე. ექიმმა ორი წერილი დაწერა."
TINY = ["-f", str(ROOT / "notebooks" / "parameters" / "tiny.yaml")]


@pytest.fixture(autouse=True)
def _nothing_is_trained(monkeypatch):
    monkeypatch.setattr(dl.Runner, "train", lambda *args, **options: pytest.fail("a training has begun"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def files(tmp_path, tiny_folder):
    """Labelled texts with a fault each, and what a row may name in braces."""
    words = [f"the {i} of {i * i} and {i * 7} words" for i in range(40)]

    def write(name, labels, texts=words):
        pd.DataFrame({"review": texts, "language": labels}).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    (tmp_path / "file").write_text("kept")
    return {
        "folder": tmp_path,
        "teacher": tiny_folder,
        "file": tmp_path / "file",
        "unlabelled": write("unlabelled.csv", ["a", "nan"] * 20),
        "several": write("several.csv", [*["a", "b"] * 19, "a,b", "b,a"]),
        "one": write("one.csv", ["a", "a "] * 20),
        "rare": write("rare.csv", ["a"] * 38 + ["b"] * 2),
        "good": write("good.csv", ["a", "b"] * 20),
        "georgian": write("georgian.csv", ["a", "b"] * 20, [" ".join([GEORGIAN] * n) for n in range(1, 41)]),
    }


WHOLE, FORM = "a whole number, at least 1", "a dict from names out of"
PAPERMILL = [  # the number of a notebook, what papermill is given after tiny.yaml, the sentence
    ("01", ["-p", "MAX_LENGHT", "8"], "MAX_LENGHT is no parameter of any notebook; did you mean MAX_LENGTH?"),
    ("03", ["-p", "seed", "1"], "seed is no parameter of any notebook; did you mean SEED?"),
    ("03", ["-p", "MAX_STEPS", "0"], f"MAX_STEPS is 0; it has to be {WHOLE}."),
    ("03", ["-p", "MAX_STEPS", "True"], f"MAX_STEPS is True; it has to be {WHOLE}."),
    ("03", ["-p", "LEARNING_RATE", "fast"], "LEARNING_RATE is 'fast'; it has to be a number above 0 and at most 1."),
    ("03", ["-y", "LEARNING_RATE: 5e+4"], "LEARNING_RATE is '5e+4'; it has to be a number above 0 and at most 1."),
    ("03", ["-p", "LAYERS", "[0, 3"], "LAYERS is '[0, 3'; it has to be how many layers to keep, or a list of layer"),
    (
        "03",
        ["-p", "LAYERS", "first:0"],
        "LAYERS is 'first:0'; it has to be how many layers to keep, or a list of layer",
    ),
    ("03", ["-p", "VOCABULARY", "0"], f"VOCABULARY is 0; it has to be {WHOLE}, or None."),
    ("06", ["-p", "FEED_FORWARD", "half"], f"FEED_FORWARD is 'half'; it has to be {WHOLE}, or None."),
    ("06", ["-r", "BASELINE", ""], "BASELINE is ''; it has to be a model, or None."),
    ("06", ["-p", "SEARCH_SEEDS", "0"], f"SEARCH_SEEDS is 0; it has to be {WHOLE}."),
    (
        "06",
        ["-y", "MORE_CONTENDERS: [random_layer]"],
        "MORE_CONTENDERS is ['random_layer']; it has to be a list of different names out of ['distilled_hard', ",
    ),
    ("08", ["-r", "STUDENT", ""], "STUDENT is ''; it has to be a text that is not empty."),
    ("03", ["-y", "LOSS_WEIGHTS: {kld: 1}"], f"LOSS_WEIGHTS is {{'kld': 1}}; it has to be {FORM}"),
    ("03", ["-y", "LOSS_WEIGHTS: {kl: 0}"], f"LOSS_WEIGHTS is {{'kl': 0}}; it has to be {FORM}"),
    ("03", ["-p", "CONTROL", "1"], "CONTROL is 1; it has to be True or False."),
    ("03", ["-p", "TEXT_FIELD", "nan"], "TEXT_FIELD is nan; it has to be a text that is not empty. In a file, put it"),
    ("03", ["-p", "SEED", "-1"], "SEED is -1; it has to be a whole number, at least 0 and below 2**64."),
    ("03", ["-p", "SEED", str(2**64)], f"SEED is {2**64}; it has to be a whole number, at least 0 and below 2**64."),
    ("03", ["-p", "SENTENCES", "no mask"], "SENTENCES is 'no mask'; it has to be a list of sentences with one [MASK]"),
    ("03", ["-p", "OUTPUT_DIR", "{file}/in"], "OUTPUT_DIR: {file}/in cannot be written ("),
    ("04", ["-y", "SEEDS: [1, 1]"], "SEEDS is [1, 1]; it has to be a list of different whole numbers"),
    ("05", ["-p", "PROCESSES", "3"], "BATCH_SIZE is 16: 3 processes cannot share it evenly. Make it a multiple."),
    ("06", ["-p", "LABEL_FIELD", "-1"], "LABEL_FIELD is -1; it has to be the name of a column, or its number"),
    ("06", ["-y", "LABELLED_CORPUS: {a: a.csv}"], "LABELLED_CORPUS is {'a': 'a.csv'}; it has to be 'bundled', a file,"),
    ("06", ["-y", "PART_SIZES: {train: 9}"], "PART_SIZES is {'train': 9}; it has to be a dict from 'train', 'valid'"),
    ("06", ["-y", "TASK_LOSS_WEIGHTS: {labels: 1}"], "TASK_LOSS_WEIGHTS is {'labels': 1}; it has to be a dict"),
    ("06", ["-p", "FINE_TUNING_LEARNING_RATES", "[2]"], "FINE_TUNING_LEARNING_RATES is '[2]'; it has to be a list of"),
    ("07", ["-y", "SMALL: {VOCABULARY: 9}"], "SMALL is {'VOCABULARY': 9}; it has to be a dict from 'VOCABULARY' and"),
    ("08", ["-y", "GRID: {SEED: [1, 1]}"], "GRID is {'SEED': [1, 1]}; it has to be a dict from parameters of notebook"),
    ("08", ["-p", "TEXTS", "3"], "TEXTS is 3; it has to be a whole number, at least 20, or None for all."),
]


@pytest.mark.parametrize(("notebook", "given", "sentence"), PAPERMILL, ids=lambda part: str(part)[:40])
def test_papermill(notebook, given, sentence, files, monkeypatch):
    (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
    taken = {}
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **options: taken.update(options["parameters"]))
    arguments = [argument.replace("{file}", str(files["file"])) for argument in given]
    done = CliRunner().invoke(papermill.cli.papermill, [str(path), "out.ipynb", *TINY, *arguments])
    assert done.exit_code == 0, done.output
    # What the kernel would hold: the defaults, then papermill's own cell.
    taken = {name: value for name, value in taken.items() if name in parameter_table.defaults(path) or name in given}
    source = papermill.translators.PythonTranslator.codify(taken, "Parameters")
    namespace = {**parameter_table.defaults(path), "OUTPUT_DIR": str(files["folder"]), "In": ["", source]}
    taken.setdefault("OUTPUT_DIR", "")
    exec(source, namespace)
    with pytest.raises(ValueError, match=re.escape(sentence.replace("{file}", str(files["file"])))):
        check_parameters(namespace)


UNKNOWN = "100% of the tokens in a sample of its texts are [UNK], unknown to TEACHER's tokenizer"
COLUMNS = "Its columns are ['language', 'text']: set TEXT_FIELD to one of them."
CATALYST_RUN = [  # the pipeline, the last config file (None: not there), the last line, {own} being that file
    ("distill", None, "ValueError: Path '{own}' doesn't exist!"),  # Catalyst's own, before anything of ours is called
    ("distill", "parameters:", "{own}: section 'parameters' is empty: write names and values under it, or drop it."),
    ("distill", "callbacks: [kl]", "{own}: section 'callbacks' is ['kl']: write names and values under it, or drop"),
    ("distill", "calbacks: {}", "{own}: there is no section 'calbacks'; did you mean callbacks?"),
    ("distill", "student: {valuess: 2}", "{own}: student: student takes no 'valuess'; did you mean values?"),
    ("distill", "engine: {_target_: helpers.Engin}", "{own}: engine: there is no helpers.Engin"),
    (
        "distill",
        "callbacks: {own: {_target_: helpers.training.fit}}",
        "{own}: callbacks.own: helpers.training.fit is a",
    ),
    ("distill", "run: [{_call_: trane}]", "{own}: run: Runner has no 'trane'; did you mean train?"),
    ("distill", "parameters: {MAX_STEPZ: 3}", "{own}: MAX_STEPZ is no parameter of any notebook; did you mean"),
    ("distill", "parameters: {MAX_STEPS: many}", f"{{own}}: MAX_STEPS is 'many'; it has to be {WHOLE}."),
    ("distill", "parameters: {CORPUS: nowhere.csv}", "nowhere.csv: no such file"),
    ("distill", "parameters: {TEXT_FIELD: txt}", "sentences.csv: no column 'txt'. " + COLUMNS),
    (
        "distill",
        "parameters: {LAYERS: [0, 9]}",
        "ValueError: LAYERS [0, 9]: the teacher has layers 0 to 3, so not [9].",
    ),
    (
        "distill",
        "parameters: {VOCABULARY: 500}",
        "VOCABULARY is 500, but the tokenizer has 121 tokens: set it to fewer",
    ),
    ("distill", "parameters: {FEED_FORWARD: 129}", "FEED_FORWARD is 129, but the model's feed-forward layers are 128 "),
    ("distill", "parameters: {STUDENT: '{folder}'}", "STUDENT '{folder}': the folder holds no config.json."),
    ("sentiment", "parameters: {VOCABULARY: 20}", "VOCABULARY is 20, but special tokens, ASCII and the characters of"),
    ("distill", "parameters: {MAX_LENGTH: 65}", "MAX_LENGTH is 65, but TEACHER '{teacher}' takes 64 tokens at most."),
    ("distill", "parameters: {OUTPUT_DIR: '{file}'}", "{own}: OUTPUT_DIR: {file} cannot be written ("),
    ("sentiment", "task: {start: student}", "{own}: task: start is 'student'; choose one of teacher, distilled, extr"),
    ("sentiment", "task: {taught_by: me}", "{own}: task: taught_by is 'me'; choose one of labels, teacher."),
    ("sentiment", "parameters: {LABEL_FIELD: x}", "labelled.csv: no column 'x'. Its columns are ['"),
    (
        "sentiment",
        "parameters: {LABELLED_CORPUS: '{unlabelled}'}",
        "20 of 40 texts have no label in column 'language' ('nan'), the",
    ),
    (
        "sentiment",
        "parameters: {LABELLED_CORPUS: '{several}'}",
        "2 of 40 texts have several labels in column 'language', the",
    ),
    (
        "sentiment",
        "parameters: {LABELLED_CORPUS: '{one}'}",
        "one.csv: every text has the label ['a'] in column 'language'. To tell classes",
    ),
    ("sentiment", "parameters: {LABELLED_CORPUS: '{rare}'}", "the label 'b' has 2 different text(s) for 3 parts: each"),
    (
        "sentiment",
        "parameters: {LABELLED_CORPUS: '{good}', CORPUS: '{good}', TEXT_FIELD: review}",
        "the label 'a' has 0 different text(s) for 3 parts: each part needs one. 20 of its 20 texts stand in CORPUS, 0",
    ),
    ("distill", "parameters: {CORPUS: '{georgian}', TEXT_FIELD: review}", f"CORPUS: {UNKNOWN}"),
    ("sentiment", "parameters: {LABELLED_CORPUS: '{georgian}'}", f"LABELLED_CORPUS: {UNKNOWN}"),
]


@pytest.mark.parametrize(("pipeline", "own", "sentence"), CATALYST_RUN, ids=lambda part: str(part)[:50])
def test_catalyst_run(pipeline, own, sentence, files, tmp_path, monkeypatch, capsys):
    here, last = tmp_path / "here.yml", tmp_path / "own.yml"
    values = {"TEACHER": str(files["teacher"]), "OUTPUT_DIR": str(tmp_path / "made")}
    here.write_text(yaml.safe_dump({"parameters": values}))
    named = {**files, "own": last}

    def filled(text):
        return re.sub(rf"\{{({'|'.join(named)})\}}", lambda found: str(named[found[1]]), text)

    if own is not None:
        last.write_text(filled(own))
    configs = [CONFIGS / f"{pipeline}.yml", CONFIGS / "tiny.yml", here, last]
    monkeypatch.setattr(sys, "argv", ["catalyst-run", "-C", *map(str, configs)])
    monkeypatch.setattr(REGISTRY, "_vars_dict", {})
    with pytest.raises((Exception, SystemExit)) as caught:
        run_from_config(configs)
    if caught.type is not SystemExit:  # it would leave the process through this hook
        sys.excepthook(caught.type, caught.value, caught.tb)
    line = capsys.readouterr().err.splitlines()[-1]
    assert filled(sentence) in line
    assert "Factory" not in line


def labelled(labels):
    texts = [f"the {i} of {i * i} and {i * 7} words" for i in range(len(labels))]
    return data.with_label_names(datasets.Dataset.from_dict({"text": texts, "label": labels}), "own")


def part(labels, corpus):
    sizes = {"train": 2, "valid": 2, "test": 2}
    return data.part(labelled(labels), sizes, corpus=datasets.Dataset.from_dict({"text": corpus}), transfer_texts=5)


HELPERS = [  # a call, given what the tests share, and the sentence
    (lambda given: labelled(["a", None]), "own: 1 of 2 texts have no label in column 'label' (null or NaN), the"),
    (lambda given: labelled(["1", "1.0", "1 "]), "own: every text has the label ['1'] in column 'label'. To tell"),
    (lambda given: labelled([["a"], ["a", "b"]]), "own: 2 of 2 texts have several labels in column 'label', the"),
    (lambda given: data.read_labelled("a.csv", "x", "x"), "LABELLED_TEXT_FIELD and LABEL_FIELD are both 'x'"),
    (
        lambda given: part(["a"] * 4 + ["b"] * 4, ["the 0 of 0 and 0 words", "the 1 of 1 and 7 words"]),
        "the label 'a' has 2 different text(s) for 3 parts: each part needs one. 2 of its 4 texts stand in CORPUS",
    ),
    (lambda given: part(["a", "b"] * 3, ["Nothing."]), "no text is left to distil the task on: CORPUS has no other"),
    (lambda given: extract_student(given.teacher, [3, 1]), "LAYERS [3, 1]: name each layer once and in ascending"),
    (lambda given: given.distill({"kld": 1.0}), "loss weights {'kld': 1.0}: they have to be a dict from names out"),
    (
        lambda given: given.distill({"kl": 1.0}),
        "the teacher has no trained masked-LM head, so its logits teach nothing",
    ),
    (lambda given: given.distill({"mlm": 1.0}, epochs=0), "epochs is 0: the training loader is gone through once"),
]


@pytest.mark.parametrize(("call", "sentence"), HELPERS, ids=[sentence[:40] for _, sentence in HELPERS])
def test_a_helper(call, sentence, tiny, sentences, engine):
    loaders = data.masked_lm_loaders(sentences, tiny[1], max_length=16, batch_size=4)

    def distill(weights, epochs=1):
        options = {"epochs": epochs, "learning_rate": 1e-3, "seed": 0, "engine": engine, "temperature": 1.0}
        training.distill(tiny[0], extract_student(tiny[0], [0, 3]), loaders, loss_weights=weights, **options)

    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(SimpleNamespace(teacher=tiny[0], distill=distill))


NOTEBOOKS = [  # a notebook as a whole, what it is given, the sentence
    ("05_multi_gpu_launch", {"PROCESSES": 3}, "BATCH_SIZE is 16: 3 processes cannot share it evenly"),
    (
        "06_sentiment_evaluation",
        {"LABELLED_CORPUS": "{unlabelled}"},
        "20 of 40 texts have no label in column 'language' ('nan')",
    ),
    (
        "06_sentiment_evaluation",
        {"LABELLED_CORPUS": "{good}", "CORPUS": "{good}", "TEXT_FIELD": "review"},
        "20 of its 20 texts stand in CORPUS",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("notebook", "given", "sentence"), NOTEBOOKS, ids=lambda part: str(part)[:40])
def test_a_notebook(notebook, given, sentence, parameters, files, tmp_path):
    given = {name: value.format(**files) if isinstance(value, str) else value for name, value in given.items()}
    path, copy = ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / "copy.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match=re.escape(sentence)):
        papermill.execute_notebook(path, copy, parameters | given, progress_bar=False, kernel_name="python3")
    assert not list((tmp_path / "artifacts").glob("*/*")), "nothing was made"
