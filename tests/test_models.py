import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    pipeline,
)

from helpers import models


@pytest.fixture
def batch(tiny):
    """Rows of unequal length, with masks at known places."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, 60, (3, 10), generator=generator)
    attention_mask = torch.ones(3, 10, dtype=torch.int64)
    attention_mask[1, 6:] = 0
    labels = torch.full((3, 10), -100)
    for row, column in ((0, 2), (0, 7), (1, 3), (2, 9)):
        labels[row, column] = input_ids[row, column]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def filled(model):
    """Give every weight a value of its own, so that a part left out or mixed up shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.05 + (1.0 if weight.dim() == 1 else 0.0))
    return model.eval()


@pytest.mark.parametrize(
    ("teacher", "student", "layers"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (6, 3, [0, 2, 5]), (12, 4, [0, 4, 7, 11]), (4, 4, [0, 1, 2, 3]), (5, 1, [0])],
)
def test_spread_layers(teacher, student, layers):
    assert models.spread_layers(teacher, student) == layers


def test_spread_layers_are_always_layers():
    for teacher in range(1, 49):
        for student in range(1, teacher + 1):
            layers = models.spread_layers(teacher, student)
            assert len(layers) == student
            models.check_layers(layers, teacher)


@pytest.mark.parametrize("student", [0, 13])
def test_spread_layers_refuses(student):
    with pytest.raises(ValueError, match="1 to 12"):
        models.spread_layers(12, student)


@pytest.mark.parametrize(
    ("layers", "message"),
    [([], "empty"), ([0, 4], r"layers 0 to 3, so not \[4\]"), ([-1], "not"), ([1, 1], "once"), ([2, 0], "ascending")],
)
def test_extraction_refuses_layers(tiny, layers, message):
    with pytest.raises(ValueError, match=message):
        models.extract_student(tiny[0], layers)


def test_extraction_refuses_unknown_weights(tiny):
    with pytest.raises(ValueError, match="'teacher', 'embeddings' or 'random'"):
        models.extract_student(tiny[0], [0], weights="zeros")


def difference(a, b, input_ids, **kwargs):
    with torch.no_grad():
        return (a(input_ids=input_ids, **kwargs).logits - b(input_ids=input_ids, **kwargs).logits).abs().max().item()


def test_all_layers_give_the_teachers_logits(batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    teacher = filled(BertForMaskedLM(config))
    student = models.extract_student(teacher, [0, 1, 2])
    assert difference(teacher, student, ids, attention_mask=mask) < 1e-4
    # What is given up: the second text of a pair.
    with torch.no_grad():
        pair = teacher(input_ids=ids, token_type_ids=torch.ones_like(ids)).logits
        assert (pair - student(input_ids=ids).logits).abs().max() > 1e-2


def test_some_layers_give_the_logits_of_a_teacher_without_the_others(batch):
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
    teacher = filled(BertForMaskedLM(config))
    student = models.extract_student(teacher, [1, 3])
    teacher.bert.encoder.layer = torch.nn.ModuleList([teacher.bert.encoder.layer[i] for i in (1, 3)])
    assert difference(teacher, student, batch["input_ids"]) < 1e-4


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_untied_embeddings_and_other_activations_come_along(batch, activation):
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_act=activation,
        tie_word_embeddings=False,
    )
    teacher = filled(BertForMaskedLM(config))
    assert difference(teacher, models.extract_student(teacher, [0, 1]), batch["input_ids"]) < 1e-4


def test_minilm_and_base_shape_are_exact():
    ids = torch.randint(1000, 30_000, (4, 32), generator=torch.Generator().manual_seed(0))
    minilm, _ = models.load_teacher("minilm")
    assert difference(minilm, models.extract_student(minilm, list(range(6))), ids) < 1e-4
    torch.manual_seed(0)
    base = BertForMaskedLM(BertConfig()).eval()
    assert difference(base, models.extract_student(base, list(range(12))), ids) < 1e-4
    assert base.num_parameters() == 109_514_298
    assert models.extract_student(base, models.spread_layers(12, 6)).num_parameters() == 66_985_530


def test_student_shares_no_memory_and_random_weights_are_new(tiny):
    teacher, _ = tiny
    before = teacher.bert.embeddings.word_embeddings.weight.clone()
    student = models.extract_student(teacher, [0, 3])
    with torch.no_grad():
        for weight in student.parameters():
            weight.zero_()
    assert torch.equal(teacher.bert.embeddings.word_embeddings.weight, before)
    torch.manual_seed(5)
    one = models.extract_student(teacher, [0, 3], weights="random")
    torch.manual_seed(5)
    two = models.extract_student(teacher, [0, 3], weights="random")
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.distilbert.embeddings.word_embeddings.weight, before)


def test_with_the_embeddings_alone_the_layers_are_random_and_all_else_is_the_teachers(tiny):
    teacher, _ = tiny
    copied = models.extract_student(teacher, [0, 3]).state_dict()
    torch.manual_seed(5)
    student = models.extract_student(teacher, [0, 3], weights="embeddings")
    torch.manual_seed(5)
    random = models.extract_student(teacher, [0, 3], weights="random").state_dict()
    for name, weight in student.state_dict().items():
        assert torch.equal(weight, (random if ".transformer." in name else copied)[name]), name
    assert not hasattr(student.config, "teacher_layers")


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_masked_position_lm_gives_the_models_own_logits(batch, kind):
    if kind == "bert":
        config = BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
        model = filled(BertForMaskedLM(config))
    else:
        model = filled(
            DistilBertForMaskedLM(DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48))
        )
    with torch.no_grad():
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        full = model(**inputs, output_hidden_states=True)
        logits, hidden_states = models.MaskedPositionLM(model)(**batch)
    torch.testing.assert_close(logits, full.logits[batch["labels"] != -100])
    assert len(hidden_states) == 3
    torch.testing.assert_close(hidden_states[-1], full.hidden_states[-1])


def test_masked_position_lm_saves_and_loads_as_what_it_wraps(tiny, tmp_path):
    student = models.extract_student(tiny[0], [0, 3])
    wrapped = models.MaskedPositionLM(student)
    assert wrapped.state_dict().keys() == student.state_dict().keys()
    wrapped.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    other = models.MaskedPositionLM(models.extract_student(tiny[0], [1, 2]))
    other.load_state_dict(again.state_dict())
    for name, weight in student.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight)


def test_load_teacher_starts_a_missing_head_and_says_nothing(tiny_folder, capfd):
    teacher, tokenizer = models.load_teacher(tiny_folder)
    assert models.head_is_untrained(teacher)
    assert not teacher.training
    assert tokenizer.mask_token == "[MASK]"
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    # The head as it starts: the normalised activation of the hidden state, times the word embeddings.
    hidden = torch.randn(2, 64)
    activated = torch.nn.functional.layer_norm(torch.nn.functional.gelu(hidden), (64,), eps=1e-12)
    expected = activated @ teacher.bert.embeddings.word_embeddings.weight.T
    torch.testing.assert_close(teacher.cls(hidden), expected)


def test_load_teacher_keeps_a_head_that_is_there(tiny, tmp_path):
    teacher, tokenizer = tiny
    filled(teacher).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = models.load_teacher(tmp_path)
    assert not models.head_is_untrained(again)
    assert torch.equal(again.cls.predictions.transform.dense.weight, teacher.cls.predictions.transform.dense.weight)


def test_load_teacher_refuses_other_encoders_by_name(tmp_path):
    ElectraForMaskedLM(ElectraConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'electra'; what fits: bert, camembert, distilbert, modernbert, roberta"):
        models.load_teacher(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder with a config"):
        models.load_teacher(tmp_path / "absent")


def test_a_hub_name_without_a_network_says_what_works_without(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"'bert-base-uncased' is no folder .*cannot be reached\. Without a net"
    ):
        models.load_teacher("bert-base-uncased")


def test_load_teacher_refuses_other_weights_under_minilms_name(monkeypatch):
    monkeypatch.setattr(models.teacher, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="sha256"):
        models.load_teacher("minilm")


def test_saved_student_serves_fill_mask(tiny, tmp_path):
    teacher, tokenizer = tiny
    student = models.extract_student(teacher, [0, 3])
    student.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    guesses = pipeline("fill-mask", model=str(tmp_path), device="cpu")("The cat [MASK] on the roof.", top_k=3)
    ids = tokenizer("The cat [MASK] on the roof.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = student(input_ids=ids).logits[ids == tokenizer.mask_token_id].topk(3).indices[0]
    assert [guess["token"] for guess in guesses] == expected.tolist()


@pytest.mark.parametrize("masked", [0, 1, 64, 65])
def test_the_head_is_given_rows_in_sixty_fours_and_gives_back_the_masked(tiny, masked, monkeypatch):
    teacher, _ = tiny
    given, head = [], models.MaskedPositionLM.head
    monkeypatch.setattr(
        models.MaskedPositionLM, "head", lambda self, hidden: given.append(hidden) or head(self, hidden)
    )
    ids = torch.randint(5, 20, (3, 30), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(90).view(3, 30) < masked, ids, -100)
    logits, _ = models.MaskedPositionLM(teacher)(ids, torch.ones_like(ids), labels)
    assert len(given[0]) == -(-masked // 64) * 64
    full = teacher(input_ids=ids).logits
    torch.testing.assert_close(logits, full[labels != -100])


def test_an_output_bias_starts_at_the_log_of_smoothed_token_frequencies(tiny):
    model, _ = tiny
    rows = model.config.vocab_size
    counts = np.random.default_rng(0).integers(0, 50, rows - 3)
    counts[7] = 0
    models.start_head(model, counts)
    smoothed = np.concatenate([counts, [0, 0, 0]]) + 1
    expected = np.log(smoothed / smoothed.sum())
    bias = model.state_dict()["cls.predictions.bias"].numpy()
    np.testing.assert_allclose(bias, expected, rtol=1e-6)
    np.testing.assert_array_equal(model.get_output_embeddings().bias.detach().numpy(), bias)
    assert np.exp(bias.astype(np.float64)).sum() == pytest.approx(1.0, rel=1e-6)
    assert models.head_is_untrained(model)
    models.start_head(model)
    assert not model.get_output_embeddings().bias.any()
    with pytest.raises(ValueError, match=f"{rows + 1} token counts for an output bias of {rows} rows"):
        models.start_head(model, np.ones(rows + 1))
