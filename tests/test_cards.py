"""The model card that goes with a saved model, read back by the hub's own library."""

import math
import re
from importlib.metadata import version

import datasets
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from helpers import classification, data, evaluation, training
from helpers.catalyst_today.saving import save_folder
from helpers.runs import experiment
from helpers.runs.cards import add_table, model_card
from helpers.runs.task import classifier_card


def test_a_students_card_tells_what_its_training_did(parameters):
    teacher = experiment.ensure_teacher(parameters)
    student = experiment.ensure_student(parameters, teacher)
    card = ModelCard.load(student.folder / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "fill-mask")
    assert pipeline(data.pipeline_tag, model=str(student.folder), device="cpu")("a [MASK]")[0]["score"] > 0
    assert data.base_model is None, "a folder is no name on the hub"
    kept = student.history.kept
    written = {result.metric_type: result.metric_value for result in data.eval_results}
    assert written == {name: value for name, value in kept.items() if name != "step"}
    assert {result.dataset_split for result in data.eval_results} == {"validation part, held out here"}
    layers = experiment.chosen_layers(parameters["LAYERS"], teacher.model.config.num_hidden_layers)
    assert student.model.config.teacher_layers == layers
    for line in (
        f"A DistilBERT of its teacher's layers {layers}, distilled from it.",
        f"| steps | `{kept['step']}` |",
        f"| losses | `{parameters['LOSS_WEIGHTS']}` |",
        f"| catalyst | {version('catalyst')} |",
    ):
        assert line in card.text
    assert str(student.folder.parent) not in card.content
    assert "masked-LM head" in ModelCard.load(teacher.folder / "README.md").text


@pytest.mark.parametrize(
    ("teacher", "base_model"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("DeepPavlov/rubert-base-cased", "DeepPavlov/rubert-base-cased"),
    ],
)
def test_a_teacher_from_the_hub_is_the_base_model(teacher, base_model, tmp_path):
    source = {"teacher": teacher, "corpus": "cornell-movie-review-data/rotten_tomatoes"}
    what = "A classifier: taught by others, in a sentence with a colon."
    card = model_card("a", "text-classification", what, **source, settings={"seed": 1}, metrics={"f1": 0.5})
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == base_model
    validate_repo_id(data.base_model)
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("text-classification", "f1", 0.5)


def test_nobody_takes_what_a_card_says_for_the_result_of_a_benchmark(tmp_path):
    """Split and metric as they were, where the hub shows them and where a reader does."""
    corpus, metrics = "cornell-movie-review-data/rotten_tomatoes", {"accuracy": 0.7, "f1": 0.5}
    card = model_card("a", "text-classification", "x", teacher="minilm", corpus=corpus, settings={}, metrics=metrics)
    card.save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    accuracy, f1 = card.data.eval_results
    for result in (accuracy, f1):
        assert result.dataset_type != corpus, "which the hub would link to that data set"
        assert result.dataset_name == f"{corpus} (held out here)"
        assert result.dataset_split == "held out here"
    assert (accuracy.metric_name, accuracy.metric_args) == ("accuracy", None)
    assert (f1.metric_name, f1.metric_args) == ("macro F1", {"average": "macro"})
    reached = card.text[card.text.index("## What it reaches") :]
    assert reached.index(f"texts of `{corpus}` (held out here)") < reached.index("| macro F1 | 0.5 |")
    assert "no benchmark's result" in reached


@pytest.mark.parametrize(
    ("source", "corpus"),
    [
        ("bundled", "cornell-movie-review-data/rotten_tomatoes"),
        ("somewhere/reviews.csv", "reviews.csv"),
        ({"good": "a/good.txt", "bad": "b/bad.txt"}, "good.txt, bad.txt"),
    ],
)
def test_a_classifiers_card_names_the_texts_that_it_was_scored_on(source, corpus):
    values = {"LABELLED_CORPUS": source, "TEACHER": "minilm"}
    card = classifier_card("a", "A classifier.", values, settings={}, metrics={"accuracy": 0.7})
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_name) == ("text-classification", f"{corpus} (held out here)")


def test_the_card_reports_the_weights_that_are_saved_and_not_better_ones(parameters, engine, monkeypatch):
    def schedule(optimizer, *_):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 20 else 400.0)

    monkeypatch.setattr(training, "get_linear_schedule_with_warmup", schedule)  # the last weights are not the best
    values = parameters | {"TEACHER_STEPS": 40}
    teacher = experiment.ensure_teacher(values, engine)
    assert teacher.history.kept["loss"] < teacher.history.validations[-1]["loss"], "else this shows nothing"
    told = {
        each.metric_type: each.metric_value for each in ModelCard.load(teacher.folder / "README.md").data.eval_results
    }
    found = experiment.ensure_teacher(values, engine)
    assert found.found
    valid = experiment.corpus_loaders(values, found.tokenizer, 1)["valid"]
    mask = found.tokenizer.mask_token_id
    scores = evaluation.masked_lm_scores({"saved": found.model}, found.model, valid, engine, mask)["saved"]
    assert math.log(scores["perplexity"]) == pytest.approx(told["loss"], rel=1e-4)


@pytest.fixture
def saved(tiny, engine, tmp_path):
    """(folder, texts of three lengths, their probabilities as notebook 06 measures them)."""
    model, tokenizer = tiny
    classifier = classification.classifier_of(model, ["a", "b", "c"], 0)
    with torch.no_grad():
        classifier.classifier.weight.normal_(generator=torch.Generator().manual_seed(0))
    texts = ["short", "of more letters than are read of it", " ".join(["many more words than there are positions"] * 9)]
    rows = data.encode(data.with_label_names(data_set(texts), "texts"), tokenizer, 16)
    logits = classification.predict(classifier, rows, tokenizer, batch_size=2, engine=engine)
    card = model_card(
        "a", "text-classification", "A classifier.", teacher="minilm", corpus="x", settings={}, metrics={}
    )
    save_folder(tmp_path / "saved", classifier, experiment.cut_at(tokenizer, 16), card=card)
    assert tokenizer.model_max_length == 64, "the teacher's own tokenizer stays as it is"
    return tmp_path / "saved", texts, logits.softmax(-1)


def data_set(texts):
    return datasets.Dataset.from_dict({"text": texts, "label": ["a", "b", "c"]})


def test_a_saved_classifier_answers_as_it_was_measured_however_long_the_text(saved):
    folder, texts, measured = saved
    classify = pipeline("text-classification", model=str(folder), device="cpu", truncation=True)
    by_pipeline = [{each["label"]: each["score"] for each in classify(text, top_k=None)} for text in texts]
    by_pipeline = torch.tensor([[scores[label] for label in "abc"] for scores in by_pipeline])
    torch.testing.assert_close(by_pipeline, measured, rtol=1e-4, atol=1e-5)
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        for text, expected in zip(texts, measured, strict=True):
            inputs = tokenizer(text, truncation=True, return_tensors="pt")
            torch.testing.assert_close(model(**inputs).logits.softmax(-1)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_cards_example_runs_on_a_text_of_any_length(saved):
    folder, texts, measured = saved
    (example,) = re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    *setting, call = example.strip().splitlines()
    for text, expected in zip(texts, measured, strict=True):
        own = call.replace("this folder", str(folder)).replace("A text.", text)
        namespace = {}
        exec("\n".join([*setting, f"said = {own}"]), namespace)
        (said,) = namespace["said"]
        assert said["label"] == "abc"[expected.argmax()]
        assert said["score"] == pytest.approx(expected.max().item(), rel=1e-4)


def test_a_table_goes_to_the_end_of_a_card_which_is_read_again(tmp_path):
    card = model_card("title", "fill-mask", "What.", teacher="minilm", corpus="c", settings={}, metrics={})
    add_table(card, "Sizes", pd.DataFrame({"MB": {"whole": "9.10", "int8": "2.30"}, "right": "80%"}))
    card.save(tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    rows = "|  | MB | right |\n| --- | --- | --- |\n| whole | 9.10 | 80% |\n| int8 | 2.30 | 80% |\n"
    assert text.endswith(f"\n\n## Sizes\n\n{rows}")
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "fill-mask"
