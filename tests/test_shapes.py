"""STUDENT, VOCABULARY, FEED_FORWARD and LAYERS from the parameters to a student on disk."""

import re

import pandas as pd
import pytest
import torch
from test_cuts import FAMILIES, TEXTS, built, save, wordpiece
from transformers import AutoModelForMaskedLM, AutoTokenizer, DistilBertConfig, pipeline

from helpers import models, training
from helpers.runs import experiment


@pytest.fixture
def described(tmp_path):
    """Parameters of a run on the texts of test_cuts; the teacher is to be named."""
    corpus = tmp_path / "corpus.csv"
    texts = [f"{text} {word}" for text in TEXTS["text"][:4] for word in ("the", "a mat", "on", "is", "sat", "cat")]
    pd.DataFrame({"text": texts}).to_csv(corpus, index=False)
    return {
        "LAYERS": 2,
        "CORPUS": str(corpus),
        "TEXT_FIELD": "text",
        "MAX_LENGTH": 16,
        "BATCH_SIZE": 4,
        "TEACHER_STEPS": 4,
        "TEACHER_BATCH_SIZE": 4,
        "MAX_STEPS": 4,
        "LEARNING_RATE": 1e-3,
        "TEMPERATURE": 1.0,
        "LOSS_WEIGHTS": {"kl": 0.6, "mlm": 0.2, "cosine": 0.2},
        "SEED": 0,
        "OUTPUT_DIR": str(tmp_path / "artifacts"),
    }


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_is_cut_distilled_saved_and_fills_in_masks(kind, described, tmp_path, engine, capsys):
    pair = FAMILIES[kind]()
    size = len(pair[1]) - 3
    described |= {"TEACHER": str(save(tmp_path / "teacher", pair)), "STUDENT": "same"}
    described |= {"VOCABULARY": size, "FEED_FORWARD": 20, "LAYERS": "first:2"}
    teacher = experiment.ensure_teacher(described, engine)
    said = capsys.readouterr().out
    assert f"VOCABULARY: {size} of {size + 3} rows stay" in said
    assert re.search(r"99\.0% need \d+, 99\.9% need \d+, 100\.0% need \d+\. A text has", said)
    student = experiment.ensure_student(described, teacher, engine=engine)
    assert type(student.model) is type(pair[0])
    assert student.model.config.teacher_layers == [0, 1]
    assert student.history.steps
    again = AutoModelForMaskedLM.from_pretrained(student.folder)
    assert getattr(again.config, models.FAMILIES[kind].width) == 20
    assert again.config.num_hidden_layers == 2
    assert again.config.vocab_size == size == len(AutoTokenizer.from_pretrained(student.folder))
    start = experiment.make_student(described, teacher)
    moved = [name for name, weight in again.state_dict().items() if not torch.equal(weight, start.state_dict()[name])]
    assert len(moved) > len(start.state_dict()) / 2
    guesses = pipeline("fill-mask", model=str(student.folder), device="cpu")
    (guess,) = guesses(f"the cat {student.tokenizer.mask_token} on the mat", top_k=1)
    assert guess["token"] < size
    assert experiment.ensure_student(described, teacher, engine=engine).found


def test_a_student_of_the_users_own_is_distilled_into(described, tmp_path, engine):
    described |= {"TEACHER": str(save(tmp_path / "teacher", FAMILIES["bert"]()))}
    narrow = built(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24), wordpiece())
    described |= {"STUDENT": str(save(tmp_path / "student", narrow)), "VOCABULARY": 69, "FEED_FORWARD": 10}
    with pytest.raises(
        ValueError, match=r"hidden states have 16 numbers, the teacher's 32.*Leave it out of LOSS_WEIGH"
    ):
        experiment.ensure_teacher(described, engine)
    described["LOSS_WEIGHTS"] = {"kl": 0.8, "mlm": 0.2}
    teacher = experiment.ensure_teacher(described, engine)
    start = experiment.make_student(described, teacher)
    rows = [narrow[1].get_vocab()[token] for token in teacher.tokenizer.convert_ids_to_tokens(range(69))]
    assert torch.equal(start.get_input_embeddings().weight, narrow[0].get_input_embeddings().weight[rows])
    student = experiment.ensure_student(described, teacher, engine=engine)
    shape = student.model.config
    assert (shape.dim, shape.n_layers, shape.hidden_dim, shape.vocab_size) == (16, 1, 10, 69)
    assert not torch.equal(student.model.vocab_transform.weight, start.vocab_transform.weight)


def test_what_is_as_by_default_changes_neither_name_nor_weights(parameters, engine):
    teacher = experiment.ensure_teacher(parameters, engine)
    student = experiment.ensure_student(parameters, teacher, engine=engine)
    spelled = {**parameters, "STUDENT": "distilbert", "VOCABULARY": None, "FEED_FORWARD": None, "LAYERS": "spread:2"}
    assert experiment.ensure_teacher(spelled, engine).folder == teacher.folder
    assert experiment.ensure_student(spelled, teacher, engine=engine).folder == student.folder
    for other in ({"STUDENT": "same"}, {"FEED_FORWARD": 20}, {"LAYERS": "first:2"}):
        assert experiment.ensure_student(spelled | other, teacher, engine=engine).folder != student.folder
    extracted = models.extract_student(teacher.model, [0, 3]).state_dict()
    for name, weight in experiment.make_student(spelled, teacher).state_dict().items():
        assert torch.equal(weight, extracted[name])


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (3, [0, 2, 5]),
        ("spread:3", [0, 2, 5]),
        ("first:3", [0, 1, 2]),
        ("last:3", [3, 4, 5]),
        ("last:6", [0, 1, 2, 3, 4, 5]),
        ([1, 4], [1, 4]),
    ],
)
def test_layers_are_chosen_as_they_are_named(layers, chosen):
    assert experiment.chosen_layers(layers, 6) == chosen


REFUSED = [  # the kind of teacher, the parameters, the sentence
    (
        "bert",
        {"VOCABULARY": 1},
        r"VOCABULARY is 1, but special tokens, ASCII and the characters .* need \d+ rows. Set it",
    ),
    ("bert", {"VOCABULARY": 73}, "VOCABULARY is 73, but the tokenizer has 72 tokens: set it to fewer, or to None"),
    ("bert", {"FEED_FORWARD": 49}, "FEED_FORWARD is 49, but the model's feed-forward layers are 48 wide: set it to"),
    ("bert", {"LAYERS": "last:5"}, "5 layers cannot be taken from 4: 1 to 4 can"),
    ("bert", {"STUDENT": "nowhere"}, "STUDENT 'nowhere' is no folder with a config.json, and the hub gives no such"),
    ("bert", {"STUDENT": "{electra}"}, "STUDENT '.*electra' is a 'electra'; what fits: bert, camembert, distilbert"),
    ("bert", {"STUDENT": "{roberta}"}, "STUDENT '.*roberta': its tokenizer has 270 tokens, the teacher's 72; "),
    ("roberta", {}, "STUDENT is 'distilbert', but the teacher is a 'roberta'"),
    ("modernbert", {"STUDENT": "same", "LAYERS": "last:2"}, r"LAYERS \[2, 3\]: layer 0 of a 'modernbert' .* \[0, 3\]"),
]


@pytest.mark.parametrize(("kind", "given", "sentence"), REFUSED, ids=[sentence[:40] for *_, sentence in REFUSED])
def test_a_shape_that_does_not_fit_is_refused_before_any_training(
    kind, given, sentence, described, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "fit", lambda *args, **options: pytest.fail("a training has begun"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (model, tokenizer) = FAMILIES[kind]()
    described["TEACHER"] = str(save(tmp_path / "teacher", (model.base_model, tokenizer)))  # its head would be trained
    save(tmp_path / "roberta", FAMILIES["roberta"]())
    (tmp_path / "electra").mkdir()
    (tmp_path / "electra" / "config.json").write_text('{"model_type": "electra"}')
    (tmp_path / "electra" / "model.safetensors").write_bytes((tmp_path / "roberta/model.safetensors").read_bytes())
    described |= given
    if described.get("STUDENT", "").startswith("{"):
        described["STUDENT"] = str(tmp_path / described["STUDENT"].strip("{}"))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        experiment.ensure_teacher(described)
