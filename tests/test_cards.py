"""The model card that goes with a saved model, read back by the hub's own library."""

from importlib.metadata import version

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from transformers import pipeline

from helpers.runs import experiment
from helpers.runs.cards import model_card


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
    assert (result.task_type, result.dataset_name, result.metric_value) == (
        "text-classification",
        "cornell-movie-review-data/rotten_tomatoes",
        0.5,
    )
