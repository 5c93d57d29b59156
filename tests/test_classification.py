import numpy as np
import pytest
import sklearn.metrics
import torch
from transformers import pipeline

import tiny_teacher
from helpers import classification, data, evaluation, losses, models
from helpers.catalyst_today.history import History

LABELS = ["english", "russian"]


@pytest.fixture(scope="session")
def languages():
    """The sentences with their language as a word."""
    return data.read_labelled(tiny_teacher.SENTENCES, "text", "language")


@pytest.fixture
def still(tiny):
    """The tiny teacher without dropout, and its tokenizer."""
    teacher, tokenizer = tiny
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    teacher.config.classifier_dropout = 0.0
    return teacher, tokenizer


def loaders_of(rows, tokenizer, **changes):
    return data.label_loaders(rows, rows, tokenizer, **({"batch_size": 8, "steps_per_epoch": 5, "seed": 0} | changes))


def trained(classifier, rows, tokenizer, engine, **changes):
    options = {"epochs": 4, "learning_rate": 3e-3, "seed": 0, "engine": engine}
    return classification.train_classifier(classifier, loaders_of(rows, tokenizer), **(options | changes))


@pytest.mark.parametrize("student", [False, True])
def test_a_classifier_has_the_models_encoder_and_a_head_of_the_seed(tiny, student):
    model, _ = tiny
    model = models.extract_student(model, [0, 3]) if student else model
    classifiers = [classification.classifier_of(model, LABELS, seed) for seed in (0, 0, 1)]
    ids = torch.randint(5, 30, (2, 9))
    for classifier in classifiers:
        torch.testing.assert_close(
            classifier.base_model(ids).last_hidden_state, model.base_model(ids).last_hidden_state
        )
        assert classifier.config.id2label == {0: "english", 1: "russian"}
        assert not classifier.training
    logits = [classifier(ids).logits for classifier in classifiers]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    with torch.no_grad():
        next(classifiers[0].base_model.parameters()).zero_()
    assert next(model.base_model.parameters()).any()


def test_languages_are_learned_and_the_scores_are_those_of_the_predictions(tiny, languages, engine, tmp_path):
    model, tokenizer = tiny
    rows = data.encode(languages, tokenizer, 32)
    classifier = classification.classifier_of(models.extract_student(model, [0, 3]), LABELS, 0)
    history = trained(classifier, rows, tokenizer, engine)
    assert [validation["step"] for validation in history.validations] == [5, 10, 15, 20]
    assert history.validations[-1]["accuracy"] > 0.9
    logits = classification.predict(classifier, rows, tokenizer, batch_size=7, engine=engine)
    alone = [classifier(torch.tensor([ids])).logits[0] for ids in rows["input_ids"]]
    torch.testing.assert_close(logits, torch.stack(alone), rtol=1e-4, atol=1e-5)
    predicted = logits.argmax(-1).numpy()
    right, last = np.array(rows["label"]), history.validations[-1]
    assert last["accuracy"] == pytest.approx((predicted == right).mean())
    assert last["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(right, predicted, average="macro"))
    classifier.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    answer = pipeline("text-classification", model=str(tmp_path / "saved"), device="cpu")(languages["text"][-1])
    assert answer[0]["label"] == "russian"


def test_the_same_seed_gives_the_same_classifier_and_no_console_lines(tiny, languages, engine, capsys):
    model, tokenizer = tiny
    rows = data.encode(languages, tokenizer, 32)

    def weights(seed):
        classifier = classification.classifier_of(model, LABELS, 0)
        trained(classifier, rows, tokenizer, engine, seed=seed, epochs=1)
        return torch.cat([weight.flatten() for weight in classifier.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1)), "dropout depends on the seed"
    assert "accuracy" not in capsys.readouterr().out


def first_loss(classifier, rows, tokenizer, engine, **changes):
    """The loss of the first step and the batch that it was taken on."""
    batch = next(iter(loaders_of(rows, tokenizer)["train"]))
    with torch.no_grad():
        logits = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    history = trained(classifier, rows, tokenizer, engine, epochs=1, **changes)
    return history.steps[0]["loss"], batch, logits


def test_the_loss_is_the_mix_of_labels_kl_and_mse(still, languages, engine):
    model, tokenizer = still
    rows = data.encode(languages, tokenizer, 32)
    rows = data.with_teacher_logits(rows, torch.randn(len(rows), 2))
    rows = rows.remove_columns("label").add_column("label", [-100, 0, 1, 1] * (len(rows) // 4))
    classifier = classification.classifier_of(model, LABELS, 0)
    weights = {"labels": 0.5, "kl": 2.0, "mse": 1.0}
    loss, batch, s = first_loss(
        classifier,
        rows,
        tokenizer,
        engine,
        loss_weights=weights,
        temperature=2.0,
        class_weights=torch.tensor([0.5, 1.5]),
    )
    t, known = batch["t_logits"], batch["labels"] >= 0
    assert 0 < known.sum() < len(known)
    p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
    kl = 4 * (p * (p / q).log()).sum(-1).mean()
    each = torch.nn.functional.cross_entropy(s[known], batch["labels"][known], reduction="none")
    labels = (each * torch.tensor([0.5, 1.5])[batch["labels"][known]]).mean()
    assert loss == pytest.approx((0.5 * labels + 2 * kl + ((s - t) ** 2).mean()).item(), rel=1e-4)


def test_labels_alone_are_the_default_and_classes_can_be_balanced(still, languages, engine):
    model, tokenizer = still
    rows = data.encode(languages, tokenizer, 32)
    classifier = classification.classifier_of(model, LABELS, 0)
    loss, batch, logits = first_loss(classifier, rows, tokenizer, engine)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, batch["labels"]).item(), rel=1e-4)
    weights = data.balanced_weights([0, 0, 0, 1], 2)
    assert weights.tolist() == pytest.approx([4 / 6, 2])
    assert data.balanced_weights([0, 1, 1, 0], 2).tolist() == [1, 1]


def test_the_teachers_logits_are_learned_without_labels(tiny, languages, engine):
    model, tokenizer = tiny
    rows = data.encode(languages, tokenizer, 32)
    teacher = classification.classifier_of(model, LABELS, 0)
    trained(teacher, rows, tokenizer, engine)
    logits = classification.predict(teacher, rows, tokenizer, batch_size=16, engine=engine)
    taught = data.encode(languages.remove_columns("label"), tokenizer, 32)
    rows, taught = (data.with_teacher_logits(part, logits) for part in (rows, taught))
    student = classification.classifier_of(models.extract_student(model, [0, 3]), LABELS, 1)
    loaders = {"train": loaders_of(taught, tokenizer)["train"], "valid": loaders_of(rows, tokenizer)["valid"]}
    options = {"epochs": 6, "learning_rate": 3e-3, "seed": 1, "engine": engine}
    history = classification.train_classifier(student, loaders, loss_weights={"mse": 1.0}, **options)
    assert set(history.steps[0]) >= {"mse", "loss"}
    assert "labels" not in history.steps[0]
    assert history.validations[-1]["accuracy"] > 0.9


def test_a_loss_that_is_no_number_stops_the_training(tiny, languages, engine):
    model, tokenizer = tiny
    rows = data.encode(languages, tokenizer, 32)
    rows = data.with_teacher_logits(rows, torch.full((len(rows), 2), torch.nan))
    classifier = classification.classifier_of(model, LABELS, 0)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan, mse nan"):
        trained(classifier, rows, tokenizer, engine, loss_weights={"mse": 1.0})


def test_a_baseline_has_its_own_vocabulary(tiny, languages, engine, tmp_path):
    _, tokenizer = tiny
    folder = str(tiny_teacher.build_baseline(tmp_path / "baseline"))
    classifier, found = classification.load_baseline(folder, LABELS, 0)
    assert classifier.config.vocab_size == len(found) != len(tokenizer)
    assert classifier.config.label2id == {"english": 0, "russian": 1}
    rows = data.encode(languages, found, 32)
    history = trained(classifier, rows, found, engine, epochs=12)
    assert history.validations[-1]["accuracy"] > 0.9
    first, again, other = (classification.load_baseline(folder, LABELS, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_baseline_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"BASELINE .*nowhere.*BASELINE = 'minilm-l3'"):
        classification.load_baseline(str(tmp_path / "nowhere"), LABELS, 0)


def test_the_search_takes_the_rate_that_validates_best_and_the_first_seeds_run_is_kept():
    runs = []

    def make(seed):
        return {"seed": seed}

    def train(classifier, rate, seed):
        assert classifier["seed"] == seed
        runs.append((rate, seed))
        history = History([], [], {})
        history.validations = [{"accuracy": 0.9}, {"accuracy": {0.1: 0.5, 0.2: 0.7, 0.3: 0.7}[rate]}]
        return history

    found = classification.search_and_train(None, make, train, [0.1, 0.2, 0.3], [4, 5, 6])
    assert runs == [(0.1, 4), (0.2, 4), (0.3, 4), (0.2, 5), (0.2, 6)]
    assert found.searched == {0.1: 0.5, 0.2: 0.7, 0.3: 0.7}
    assert found.learning_rate == 0.2
    assert [classifier["seed"] for classifier in found.classifiers] == [4, 5, 6]
    assert len(found.histories) == 3


def test_the_search_may_take_the_mean_over_several_seeds():
    runs, accuracy = [], {(0.1, 4): 0.9, (0.1, 5): 0.5, (0.2, 4): 0.8, (0.2, 5): 0.7, (0.2, 6): 0.1}

    def train(classifier, rate, seed):
        runs.append((rate, seed))
        history = History([], [], {})
        history.validations = [{"accuracy": accuracy[rate, seed]}]
        return history

    found = classification.search_and_train(None, lambda seed: seed, train, [0.1, 0.2], [4, 5, 6], 2)
    assert runs == [(0.1, 4), (0.1, 5), (0.2, 4), (0.2, 5), (0.2, 6)]
    assert found.searched == pytest.approx({0.1: 0.7, 0.2: 0.75})
    assert (found.learning_rate, found.classifiers) == (0.2, [4, 5, 6])
    assert [history.validations[0]["accuracy"] for history in found.histories] == [0.8, 0.7, 0.1]
    whole = classification.search_and_train(None, lambda seed: seed, train, [0.2], [4, 5], 3)
    assert whole.classifiers == [4, 5], "more seeds for the search than there are: all"


def test_an_unknown_label_is_named_when_scoring():
    with pytest.raises(ValueError, match="labels from 0 to 2: the classifier knows 0 to 1"):
        evaluation.confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_accuracy_and_macro_f1_against_sklearn(classes):
    generator = np.random.default_rng(classes)
    labels, predicted = generator.integers(0, classes, (2, 200))
    confusion = evaluation.confusion_matrix(labels, predicted, classes)
    assert (confusion == sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes))).all()
    scores = losses.accuracy_and_macro_f1(torch.from_numpy(confusion))
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


def test_a_class_never_predicted_has_an_f1_of_zero():
    scores = losses.accuracy_and_macro_f1(torch.tensor([[3, 0], [1, 0]]))
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx(6 / 7 / 2)}


def test_the_bootstrap_against_formulas():
    generator = np.random.default_rng(1)
    right = generator.random((1, 400)) < 0.8
    share = right.mean()
    # One seed and one sample: the standard error of a share.
    means = evaluation.bootstrap_accuracies({"a": right, "same": right, "other": ~right}, resamples=4000)
    assert means["a"].mean() == pytest.approx(share, abs=0.002)
    assert means["a"].std() == pytest.approx(np.sqrt(share * (1 - share) / 400), rel=0.05)
    assert (means["a"] == means["same"]).all(), "the texts drawn are the same for all"
    assert np.allclose(means["other"], 1 - means["a"])
    low, high = evaluation.interval(means["a"])
    assert (low, high) == pytest.approx(np.quantile(means["a"], [0.025, 0.975]))
    # Three seeds that are all right or all wrong: the variance of their mean by the n - 1 formula.
    seeds = np.array([[True] * 50, [True] * 50, [False] * 50])
    of_seeds = evaluation.bootstrap_accuracies({"a": seeds, "b": seeds}, resamples=4000)
    assert of_seeds["a"].std() == pytest.approx(np.std([1, 1, 0], ddof=1) / np.sqrt(3), rel=0.05)
    assert np.corrcoef(of_seeds["a"], of_seeds["b"])[0, 1] == pytest.approx(0, abs=0.05), "seeds are drawn by name"
    assert (evaluation.bootstrap_accuracies({"a": seeds, "b": seeds}, resamples=4000)["b"] == of_seeds["b"]).all()


def test_the_bootstrap_refuses_other_texts():
    with pytest.raises(ValueError, match=r"results on \[3, 4\] texts"):
        evaluation.bootstrap_accuracies({"a": np.ones((1, 3), bool), "b": np.ones((1, 4), bool)})


def test_first_step():
    validations = [{"step": 5.0, "accuracy": 0.5}, {"step": 10.0, "accuracy": 0.8}, {"step": 15.0, "accuracy": 0.7}]
    assert evaluation.first_step(validations, "accuracy", 0.75) == 10
    assert evaluation.first_step(validations, "accuracy", 0.8) == 10
    assert evaluation.first_step(validations, "accuracy", 0.9) is None
