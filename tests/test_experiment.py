import json
import shutil
from collections import Counter

import pytest
import torch

from helpers import evaluation, models
from helpers.data import masked_lm_loaders
from helpers.runs import experiment, records
from helpers.runs.experiment import made
from helpers.runs.parameters import check_parameters


def test_check_parameters_returns_the_upper_case_names(parameters):
    namespace = {**parameters, "In": [], "_": 1, "helper": 2, "pd": None}
    assert check_parameters(namespace) == parameters


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_STEPZ", 3, "MAX_STEPZ is no parameter of any notebook; did you mean MAX_STEPS?"),
        ("COLOUR", 3, "There are: TEACHER, "),
        ("MAX_STEPS", 0, "MAX_STEPS is 0; it has to be a whole number, at least 1."),
        ("MAX_STEPS", 2.5, "MAX_STEPS is 2.5"),
        ("MAX_STEPS", True, "MAX_STEPS is True"),
        ("BATCH_SIZE", 0, "BATCH_SIZE is 0"),
        ("MAX_LENGTH", 2, "MAX_LENGTH is 2"),
        ("LEARNING_RATE", 0, "LEARNING_RATE is 0"),
        ("LEARNING_RATE", float("nan"), "LEARNING_RATE is nan"),
        ("TEMPERATURE", -1.0, "TEMPERATURE is -1.0; it has to be a number above 0."),
        ("TEMPERATURE", float("inf"), "TEMPERATURE is inf"),
        ("LAYERS", [], r"LAYERS is []"),
        ("LAYERS", "three", "LAYERS is 'three'"),
        ("LAYERS", [0, True], "LAYERS is"),
        ("LOSS_WEIGHTS", {"kl": -1}, "LOSS_WEIGHTS is"),
        ("LOSS_WEIGHTS", {"kl": float("nan")}, "LOSS_WEIGHTS is"),
        ("LOSS_WEIGHTS", {"kld": 1}, "names out of ['attention', 'cosine', 'hidden', 'kl', 'mlm', 'mse', 'relation']"),
        ("LOSS_WEIGHTS", {"kl": 0, "mlm": 0}, "not all 0"),
        ("TEACHER", "", "TEACHER is ''"),
        ("SEED", -1, "SEED is -1"),
        ("SEEDS", [], "SEEDS is []; it has to be a list of different whole numbers, each at least 0"),
        ("SENTENCES", "a [MASK]", "SENTENCES is 'a [MASK]'; it has to be a list of sentences with one [MASK] each."),
        ("SENTENCES", ["no mask"], "SENTENCES is ['no mask']; it has to be a list of sentences with one [MASK] each."),
        ("SEEDS", [1, 1], "SEEDS is [1, 1]"),
        ("SEEDS", "[0, 1", "SEEDS is '[0, 1'"),
        ("TEACHER_BATCH_SIZE", 0, "TEACHER_BATCH_SIZE is 0"),
        ("LOSS_WEIGHTS", {"kl": "one"}, "LOSS_WEIGHTS is"),
        ("OUTPUT_DIR", "", "OUTPUT_DIR is ''"),
        ("LABELLED_CORPUS", {"one": "a.csv"}, "or a dict from two labels or more to these"),
        ("LABELLED_CORPUS", {"one": "a.csv", "two": []}, "or a dict from two labels or more to these"),
        ("CORPUS", [], "CORPUS is []; it has to be 'bundled', a file, a folder, a pattern, hub:OWNER/NAME"),
        ("CORPUS", ["a.csv", 3], "or a list of these"),
        ("LABELLED_TEXT_FIELD", -1, "its number, counted from 0"),
        ("LABEL_FIELD", None, "LABEL_FIELD is None"),
        ("PART_SIZES", {"train": 10, "valid": 5}, "a dict from 'train', 'valid' and 'test'"),
        ("PART_SIZES", {"train": 10, "valid": 5, "test": 1}, "each at least 2"),
        ("TRANSFER_TEXTS", 0, "TRANSFER_TEXTS is 0"),
        ("BASELINE", "", "BASELINE is ''"),
        ("FINE_TUNING_EPOCHS", 0.5, "FINE_TUNING_EPOCHS is 0.5"),
        ("FINE_TUNING_LEARNING_RATES", 1e-4, "a list of numbers above 0 and at most 1"),
        ("FINE_TUNING_LEARNING_RATES", [1e-4, 0], "FINE_TUNING_LEARNING_RATES is [0.0001, 0]"),
        ("TASK_LOSS_WEIGHTS", {"labels": 1}, "['kl', 'labels', 'mse'] to weights of at least 0, not all 0; kl or"),
        ("TASK_LOSS_WEIGHTS", {"cosine": 1, "kl": 1}, "TASK_LOSS_WEIGHTS is"),
    ],
)
def test_check_parameters_names_the_fault(parameters, name, value, message):
    with pytest.raises(ValueError, match=r".") as caught:
        check_parameters({**parameters, name: value})
    assert message in str(caught.value)


def test_an_output_dir_that_cannot_be_written_is_named_before_any_work(parameters, tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"OUTPUT_DIR: .*file.* cannot be written \(.*Set it to a folder"):
            check_parameters({**parameters, "OUTPUT_DIR": str(folder)})
    assert (tmp_path / "file").read_text() == "kept"


def test_check_parameters_names_every_fault():
    with pytest.raises(ValueError, match=r"SEEDLING.*\n.*MAX_STEPS is 0"):
        check_parameters({"SEEDLING": 1, "MAX_STEPS": 0})


@pytest.mark.parametrize(("steps", "shared"), [(320, (4, 80)), (3, (3, 1)), (1, (1, 1)), (10, (4, 2))])
def test_split_steps(steps, shared):
    assert experiment.split_steps(steps) == shared


def test_a_path_below_the_root_is_given_from_there(tmp_path):
    assert str(records.below_root(records.from_root("artifacts") / "a" / "b")) == "artifacts/a/b"
    assert records.below_root(tmp_path / "a") == tmp_path / "a"


def test_records_of_other_parameters_stay(parameters):
    first = records.write_record(parameters, "03_runner", {"accuracy": 0.1}, {"seconds": 1.0})
    folder = first.parent
    records.write_record({**parameters, "SEED": 1}, "03_runner", {"accuracy": 0.2}, {"seconds": 2.0})
    kept = [json.loads(file.read_text()) for file in folder.glob("metrics-*.json")]
    assert {record["parameters"]["SEED"]: record["accuracy"] for record in kept} == {0: 0.1, 1: 0.2}
    latest = json.loads((folder / "metrics.json").read_text())
    assert (latest["accuracy"], latest["timings"]) == (0.2, {"seconds": 2.0})
    assert "OUTPUT_DIR" not in latest["parameters"]


def test_models_are_made_once_and_others_beside_them(parameters, capsys):
    teacher = experiment.ensure_teacher(parameters)
    student = experiment.ensure_student(parameters, teacher)
    assert capsys.readouterr().out.count("making") == 2
    teacher_again = experiment.ensure_teacher(parameters)
    again = experiment.ensure_student(parameters, teacher_again)
    assert capsys.readouterr().out.count("found in") == 2
    for name, weight in student.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert again.history == student.history
    assert not again.model.training
    assert not teacher_again.model.training

    weights = (student.folder / "model.safetensors").read_bytes()
    other = experiment.ensure_student({**parameters, "SEED": 1}, teacher)
    fewer = {**parameters, "BATCH_SIZE": 8}
    smaller = experiment.ensure_student(fewer, experiment.ensure_teacher(fewer))
    assert len({student.folder, other.folder, smaller.folder}) == 3
    assert (student.folder / "model.safetensors").read_bytes() == weights
    # Another seed, or another batch, is no reason to train another teacher.
    assert len(list(teacher.folder.parent.iterdir())) == 1


def test_a_damaged_student_is_named_and_nothing_is_overwritten(parameters):
    teacher = experiment.ensure_teacher(parameters)
    student = experiment.ensure_student(parameters, teacher)
    weights = student.folder / "model.safetensors"
    for damage in (weights.read_bytes()[:1000], None):
        weights.unlink()
        if damage is not None:
            weights.write_bytes(damage)
        before = {file: file.read_bytes() for file in student.folder.rglob("*") if file.is_file()}
        with pytest.raises(ValueError, match=rf"{student.folder.name}: the model that was saved here is damaged"):
            experiment.ensure_student(parameters, teacher)
        assert {file: file.read_bytes() for file in student.folder.rglob("*") if file.is_file()} == before


def test_masked_lm_alone_runs_no_teacher(parameters, monkeypatch):
    teacher = experiment.ensure_teacher(parameters)
    monkeypatch.setattr(teacher.model, "forward", lambda *args, **options: pytest.fail("the teacher was run"))
    alone = experiment.ensure_student(parameters | {"LOSS_WEIGHTS": {"mlm": 1.0, "kl": 0}}, teacher)
    assert len(alone.history.steps) == 8
    assert set(alone.history.validations[0]) >= {"step", "loss", "mlm", "perplexity"}
    start = models.extract_student(teacher.model, experiment.chosen_layers(2, 4)).state_dict()
    assert any(not torch.equal(start[name], weight) for name, weight in alone.model.state_dict().items())


def test_an_edited_corpus_or_teacher_is_another(parameters, tmp_path):
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("text\none\ntwo\n")
    values = {**parameters, "CORPUS": str(corpus)}
    before = made._teacher_values(values, trained=True, engine=None, recipe=experiment.HEAD)
    record = records.write_record(values, "03_runner", {}, {})
    corpus.write_text("text\none\nthree\n")
    edited = made._teacher_values(values, trained=True, engine=None, recipe=experiment.HEAD)
    assert edited != before
    records.write_record(values, "03_runner", {}, {})
    assert len(list(record.parent.glob("metrics-*.json"))) == 2

    folder = tmp_path / "teacher"
    shutil.copytree(parameters["TEACHER"], folder)
    values["TEACHER"] = str(folder)
    before = made._teacher_values(values, trained=True, engine=None, recipe=experiment.HEAD)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("0.1", "0.2"))
    assert made._teacher_values(values, trained=True, engine=None, recipe=experiment.HEAD) != before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("MAX_LENGTH", 65, "TEACHER .* takes 64 tokens at most"), ("LAYERS", [0, 9], "layers 0 to 3, so not")],
)
def test_what_the_teacher_cannot_do_is_said_before_it_is_trained(parameters, monkeypatch, name, value, message):
    monkeypatch.setattr(made, "train_masked_lm", lambda *args, **kwargs: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        experiment.ensure_teacher({**parameters, name: value})


def test_a_teacher_with_its_own_head_is_taken_as_it_is(parameters, tiny, tmp_path):
    teacher, tokenizer = tiny
    with torch.no_grad():
        teacher.cls.predictions.transform.dense.weight.normal_()
    teacher.save_pretrained(tmp_path / "headed")
    tokenizer.save_pretrained(tmp_path / "headed")
    found = experiment.ensure_teacher({**parameters, "TEACHER": str(tmp_path / "headed")})
    assert found.history is None
    assert torch.equal(
        found.model.cls.predictions.transform.dense.weight, teacher.cls.predictions.transform.dense.weight
    )
    assert not found.folder.exists()


def test_scores_against_counts_by_hand(tiny, sentences, engine):
    teacher, tokenizer = tiny
    student = models.extract_student(teacher, [0, 3])
    loader = masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=5, valid_masks=10**6)["valid"]
    mask = tokenizer.mask_token_id
    both = evaluation.masked_lm_scores({"student": student, "teacher": teacher}, teacher, loader, engine, mask)
    scores, own = both["student"], both["teacher"]
    right = overlap = nats = divergence = count = right_at_mask = count_at_mask = 0
    for batch in loader:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            ours, theirs = (model(**inputs).logits.double().log_softmax(-1) for model in (student, teacher))
        for row, column in (batch["labels"] != -100).nonzero().tolist():
            s, t, target = ours[row, column], theirs[row, column], batch["labels"][row, column].item()
            count += 1
            right += s.argmax().item() == target
            if batch["input_ids"][row, column] == mask:
                count_at_mask += 1
                right_at_mask += s.argmax().item() == target
            nats -= s[target].item()
            divergence += (t.exp() * (t - s)).sum().item()
            overlap += len(set(s.topk(5).indices.tolist()) & set(t.topk(5).indices.tolist())) / 5
    assert scores["masked_tokens"] == count
    assert scores["mask_tokens"] == count_at_mask < count
    assert scores["masked_accuracy"] == pytest.approx(right / count)
    assert scores["accuracy_at_mask"] == pytest.approx(right_at_mask / count_at_mask)
    assert scores["top5_overlap"] == pytest.approx(overlap / count)
    assert scores["kl_to_teacher"] == pytest.approx(divergence / count, rel=1e-4)
    assert scores["perplexity"] == pytest.approx(torch.tensor(nats / count).exp().item(), rel=1e-4)
    assert (own["top5_overlap"], own["kl_to_teacher"]) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_relative_paths_are_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert records.from_root("artifacts") == records.ROOT / "artifacts"
    assert records.from_root(tmp_path / "x") == tmp_path / "x"


def test_target_counts_against_counting_by_hand(tiny, sentences):
    _, tokenizer = tiny
    loader = masked_lm_loaders(sentences, tokenizer, max_length=16, batch_size=4)["train"]
    read = Counter(token for row in loader.dataset["input_ids"] for token in row)
    special = set(tokenizer.all_special_ids)
    assert special & set(read), "the rows hold [CLS] and [SEP], which are never hidden"
    by_hand = [0 if token in special else read[token] for token in range(len(tokenizer))]
    assert made.target_counts(loader, tokenizer).tolist() == by_hand


def test_a_head_of_another_recipe_is_another_teacher_and_the_first_one_keeps_its_name(parameters, engine):
    first = experiment.ensure_teacher(parameters, engine)
    recipe = experiment.HeadRecipe(learning_rate=2e-3, token_frequencies=True)
    other = experiment.ensure_teacher(parameters | {"TEACHER_STEPS": 1}, engine, recipe)
    assert "head" not in made._teacher_values(parameters, True, engine, experiment.HeadRecipe())
    assert other.recipe == recipe
    assert first.recipe == experiment.HEAD
    names = {teacher.folder.name for teacher in (first, other)}
    assert len(names | {experiment.ensure_teacher(parameters | {"TEACHER_STEPS": 1}, engine).folder.name}) == 3
    again = experiment.ensure_teacher(parameters | {"TEACHER_STEPS": 1}, engine, recipe)
    assert again.found
    assert again.recipe == recipe
    train = experiment.corpus_loaders(parameters, other.tokenizer, 1)["train"]
    counts = torch.from_numpy(made.target_counts(train, other.tokenizer)).double() + 1
    started = (counts / counts.sum()).log()
    bias = other.model.get_output_embeddings().bias.double()
    assert (bias - started).abs().max() < 0.01, "one step of Adam moves it by its learning rate"
