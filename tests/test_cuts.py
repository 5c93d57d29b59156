"""Each family of encoders: fewer rows, neurons, layers; what is left computes what it did, saved as what it is."""

import json
import subprocess
import sys

import datasets
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as kinds
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    CamembertTokenizer,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaTokenizer,
)

from helpers import data, models
from helpers.catalyst_today.fast_cpu import fast_training

TEXTS = datasets.Dataset.from_dict(
    {"text": ["the cat sat on the mat", "the straße is long", "a cat, a mat, the cat!", "xylophones sat"] * 5}
)
WORDS = ["the", "cat", "sat", "on", "mat", "is", "long", "##ong", "straße", "xylo", "##phones", "zebra", "##bra"]
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def wordpiece():
    listed = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *LETTERS,
        *(f"##{each}" for each in LETTERS),
        ",",
        "!",
    ]
    return BertTokenizer({token: number for number, token in enumerate(listed)}, strip_accents=False)


MERGES = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("a", "t"),
    ("c", "at"),
    ("Ġ", "cat"),
    ("Ġ", "m"),
    ("Ġm", "at"),
    ("z", "e"),
]


def byte_level(kind=RobertaTokenizer, special=("<s>", "<pad>", "</s>", "<unk>")):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    listed = [*special, *alphabet, *(left + right for left, right in MERGES), "<mask>"]
    return kind(vocab={token: number for number, token in enumerate(listed)}, merges=MERGES)


def unigram(kind):
    first = {XLMRobertaTokenizer: ["<s>", "<pad>", "</s>", "<unk>"]}
    first = first.get(kind, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"])
    pieces = ["▁the", "▁cat", "▁mat", "at", "▁s", "▁zebra", "▁straße", "ones", "▁", ",", "!", *LETTERS]
    vocabulary = [(token, 0.0) for token in first] + [(token, -2.0 - 0.1 * i) for i, token in enumerate(pieces)]
    return kind(vocab=[*vocabulary, ("<mask>", 0.0)])


SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}


def filled(model):
    """Give every weight a value of its own, so that a part left out or mixed up shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + (1.0 if weight.dim() == 1 else 0.0))
    return model.eval()


def built(config, tokenizer):
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    return filled(AutoModelForMaskedLM.from_config(config)), tokenizer


FAMILIES = {
    "bert": lambda: built(BertConfig(**SHAPE, max_position_embeddings=64), wordpiece()),
    "distilbert": lambda: built(
        DistilBertConfig(dim=32, n_layers=4, n_heads=2, hidden_dim=48, max_position_embeddings=64), wordpiece()
    ),
    "roberta": lambda: built(RobertaConfig(**SHAPE, type_vocab_size=1, max_position_embeddings=66), byte_level()),
    "xlm-roberta": lambda: built(
        XLMRobertaConfig(**SHAPE, type_vocab_size=1, max_position_embeddings=66), unigram(XLMRobertaTokenizer)
    ),
    "camembert": lambda: built(
        CamembertConfig(**SHAPE, type_vocab_size=1, max_position_embeddings=66), unigram(CamembertTokenizer)
    ),
    "modernbert": lambda: built(
        ModernBertConfig(**SHAPE, max_position_embeddings=64, local_attention=4, norm_bias=True), byte_level()
    ),
}


@pytest.fixture(params=FAMILIES)
def pair(request):
    """(model, tokenizer) of each family, with weights of their own."""
    return FAMILIES[request.param]()


def logits_of(model, tokenizer, text):
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0]


def test_a_text_whose_tokens_all_stay_gets_the_teachers_logits_at_the_rows_that_stay(pair):
    model, tokenizer = pair
    size = len(tokenizer) - 3
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    small, trimmed = models.trim_vocabulary(model, tokenizer, TEXTS, size)
    old, new = tokenizer.get_vocab(), trimmed.get_vocab()
    assert len(new) == small.config.vocab_size == len(small.get_input_embeddings().weight) == size
    rows = [old[token] for token in sorted(new, key=new.get)]
    assert {each for each in old if old[each] not in rows} & {"zebra", "##bra", "Ġmat", "ze", "▁zebra", "j", "q"}
    compared = 0
    for text in TEXTS["text"][:4]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert trimmed.convert_ids_to_tokens(trimmed(text)["input_ids"]) == tokens or set(tokens) - set(new)
        if set(tokens) <= set(new):
            expected = logits_of(model, tokenizer, text)[:, rows]
            torch.testing.assert_close(logits_of(small, trimmed, text), expected, atol=1e-5, rtol=0)
            compared += 1
    assert compared >= 2
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])
    assert trimmed.mask_token == tokenizer.mask_token
    assert small.config.pad_token_id == trimmed.pad_token_id


def words_that_are_unknown(tokenizer, texts):
    return [word for text in texts for word in text.split() if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]


def test_no_word_becomes_unknown_however_few_rows_stay(pair):
    model, tokenizer = pair
    with pytest.raises(ValueError, match=r"VOCABULARY is 1, but special tokens.* need (\d+) rows") as caught:
        models.trim_vocabulary(model, tokenizer, TEXTS, 1)
    least = int(str(caught.value).split("need ")[1].split(" ")[0])
    # ß has no row of its own in WordPiece and Unigram: its word has to stay whole, which shows once it is tried.
    sizes = [size for size in range(least, least + 12) if size < len(tokenizer)]
    made = []
    for size in sizes:
        try:
            made.append(models.trim_vocabulary(model, tokenizer, TEXTS, size)[1])
        except ValueError:
            continue
    assert made
    for trimmed in made:
        assert words_that_are_unknown(trimmed, TEXTS["text"]) == words_that_are_unknown(tokenizer, TEXTS["text"])
        assert set(tokenizer.all_special_tokens) <= set(trimmed.get_vocab())
    straight = made[0].decode(made[0]("the cat sat", add_special_tokens=False)["input_ids"])
    assert straight.strip() == "the cat sat"


def test_the_rows_that_stay_are_the_most_frequent():
    model, tokenizer = FAMILIES["bert"]()
    counts, ids = data.token_counts(TEXTS, tokenizer), tokenizer.get_vocab()
    _, trimmed = models.trim_vocabulary(model, tokenizer, TEXTS, len(tokenizer) - 6)
    spareable = [word for word in WORDS if word != "straße"]  # without it, its ß would be unknown
    expected = sorted(spareable, key=lambda word: (counts[ids[word]], -ids[word]))[:6]
    assert set(ids) - set(trimmed.get_vocab()) == set(expected)


def test_rows_to_cover_against_counting_by_hand():
    counts = torch.tensor([0, 5, 1, 90, 4]).numpy()
    assert [models.rows_to_cover(counts, share) for share in (0.5, 0.9, 0.95, 0.951, 0.99, 1.0)] == [1, 1, 2, 3, 3, 4]


def test_token_counts_against_counting_by_hand():
    tokenizer = wordpiece()
    counts, ids = data.token_counts(TEXTS, tokenizer), tokenizer.get_vocab()
    assert counts[ids["the"]] == 20
    assert counts[ids["straße"]] == 5
    assert counts.sum() == sum(len(tokenizer.tokenize(text)) for text in TEXTS["text"])


LOAD = """
import json, sys
from pathlib import Path
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    AutoModelForMaskedLM.from_pretrained(folder)
    texts = json.loads(sys.argv[2]) + [f"a {tokenizer.mask_token} mat"]
    guess = pipeline("fill-mask", model=str(folder), device="cpu")(f"the cat {tokenizer.mask_token} .", top_k=1)
    found[folder.name] = [tokenizer(texts)["input_ids"], guess[0]["token"]]
print(json.dumps(found))
"""
READ = [*TEXTS["text"][:4], "zebra, jqx!"]


@pytest.fixture(scope="module")
def saved_and_read(tmp_path_factory):
    """Of each family, what is cut and saved; and what another process makes of it: ids of texts, and a guess."""
    cut, folder = {}, tmp_path_factory.mktemp("saved")
    for name, make in FAMILIES.items():
        model, tokenizer = make()
        small, trimmed = models.trim_vocabulary(model, tokenizer, TEXTS, len(tokenizer) - 5)
        cut[name] = models.narrow_feed_forward(small, 20, batches(trimmed)), trimmed
        for part in cut[name]:
            part.save_pretrained(folder / name)
    command = [sys.executable, "-c", LOAD, str(folder), json.dumps(READ)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return cut, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_reads_the_same_ids_in_another_process(family, saved_and_read):
    (small, trimmed), (ids, guess) = (each[family] for each in saved_and_read)
    assert ids == trimmed([*READ, f"a {trimmed.mask_token} mat"])["input_ids"]
    inputs = trimmed(f"the cat {trimmed.mask_token} .", return_tensors="pt")
    with torch.no_grad():
        expected = small(**inputs).logits[inputs["input_ids"] == trimmed.mask_token_id].argmax()
    assert guess == expected


def wordlevel():
    backend = Tokenizer(kinds.WordLevel({"[UNK]": 0, "[PAD]": 1, "cat": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def bpe_of_characters():
    backend = Tokenizer(kinds.BPE({"[UNK]": 0, "[PAD]": 1, "c": 2, "a": 3, "ca": 4}, [("c", "a")], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize(
    ("tokenizer", "size", "sentence"),
    [
        (wordlevel, 2, "TokenizersBackend is WordLevel. Trimmed are WordPiece"),
        (bpe_of_characters, 3, "is BPE, but not of bytes"),
        (wordpiece, 5000, "VOCABULARY is 5,000, but the tokenizer has 72 tokens: set it to fewer, or to None"),
    ],
)
def test_what_cannot_be_trimmed_is_refused_by_name(tokenizer, size, sentence):
    model, _ = FAMILIES["bert"]()
    with pytest.raises(ValueError, match=sentence):
        models.trim_vocabulary(model, tokenizer(), TEXTS, size)


def batches(tokenizer):
    """Two batches with a third of the tokens to be predicted."""
    generator, found = torch.Generator().manual_seed(3), []
    for start in (0, 4):
        batch = tokenizer(TEXTS["text"][start : start + 4], return_tensors="pt", padding=True)
        hidden = torch.rand(batch["input_ids"].shape, generator=generator) < 0.3
        labels = torch.where(hidden & batch["attention_mask"].bool(), batch["input_ids"], -100)
        found.append({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels})
    return found


def test_all_neurons_give_the_same_logits_and_fewer_give_those_without_the_others(pair):
    model, tokenizer = pair
    given = batches(tokenizer)
    same = models.narrow_feed_forward(model, 48, given)
    text = "the cat sat on the mat"
    torch.testing.assert_close(logits_of(same, tokenizer, text), logits_of(model, tokenizer, text))
    narrow = models.narrow_feed_forward(model, 20, given)
    assert narrow.num_parameters() < model.num_parameters()
    # The reference: the whole model, its other neurons silenced at the way out.
    importance = models.neuron_importance(model, given)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.shape == (32, 48):
                layer = int(next(part for part in name.split(".") if part.isdigit()))
                weight[:, importance[layer].argsort(descending=True)[20:]] = 0
    torch.testing.assert_close(logits_of(narrow, tokenizer, text), logits_of(model, tokenizer, text))
    assert all(weight.grad is None for weight in model.parameters())


def test_importance_is_the_change_of_the_loss_to_first_order(pair):
    model, tokenizer = pair
    (given, _) = batches(tokenizer)
    given = {key: value[:1] for key, value in given.items()}
    importance = models.neuron_importance(model, [given])
    assert importance.shape == (4, 48)
    family = models.FAMILIES[model.config.model_type]
    outward = model.get_submodule(f"{family.layers}.2.{family.outward}")

    def loss(position, scale):  # of the output of neuron 7 in layer 2
        def silence(module, inputs):
            silenced = inputs[0].clone()
            silenced[0, position, 7] *= scale
            return (silenced,)

        hook = outward.register_forward_pre_hook(silence)
        with torch.no_grad():
            logits = model.double()(given["input_ids"], attention_mask=given["attention_mask"]).logits[0]
        hook.remove()
        return torch.nn.functional.cross_entropy(logits, given["labels"][0], reduction="sum").item()

    change = 0.0
    for position in range(given["input_ids"].shape[1]):
        change += abs(loss(position, 1 + 1e-4) - loss(position, 1 - 1e-4)) / 2e-4
    assert change == pytest.approx(importance[2, 7].item(), rel=1e-3)


@pytest.mark.parametrize("width", [0, 49])
def test_a_width_that_is_no_part_of_the_models_is_refused(width):
    model, tokenizer = FAMILIES["bert"]()
    with pytest.raises(ValueError, match=f"FEED_FORWARD is {width}, but the model's feed-forward layers are 48 wide"):
        models.narrow_feed_forward(model, width, batches(tokenizer))


def test_masked_position_lm_gives_each_familys_own_logits(pair):
    model, tokenizer = pair
    for given in batches(tokenizer):
        with torch.no_grad():
            full = model(given["input_ids"], attention_mask=given["attention_mask"], output_hidden_states=True)
            logits, hidden = models.MaskedPositionLM(model)(**given)
        torch.testing.assert_close(logits, full.logits[given["labels"] != -100])
        torch.testing.assert_close(hidden[-1], full.hidden_states[-1])
        assert len(hidden) == 5


def without_types(texts, student):
    return {key: value for key, value in texts.items() if student == "same" or key != "token_type_ids"}


KINDS_OF_STUDENT = [*((kind, "same") for kind in FAMILIES), ("bert", "distilbert"), ("distilbert", "distilbert")]


@pytest.mark.parametrize(("kind", "student"), KINDS_OF_STUDENT)
def test_all_layers_of_each_family_give_the_teachers_logits(kind, student):
    teacher, tokenizer = FAMILIES[kind]()
    texts = without_types(tokenizer(["the cat sat on the mat", "a cat"], padding=True, return_tensors="pt"), student)
    with torch.no_grad():
        expected = teacher(**texts).logits
        found = models.extract_student(teacher, [0, 1, 2, 3], student=student)(**texts).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [[0, 2], [0, 1, 3], [0, 3]])
def test_some_layers_of_each_family_give_the_logits_of_a_teacher_without_the_others(pair, layers):
    teacher, tokenizer = pair
    student = models.extract_student(teacher, layers, student="same")
    assert type(student) is type(teacher)
    assert student.config.teacher_layers == layers
    texts = tokenizer(["the cat sat on the mat, the straße is long", "a cat"], padding=True, return_tensors="pt")
    family = models.FAMILIES[teacher.config.model_type]
    path, name = family.layers.rsplit(".", 1)
    kept = torch.nn.ModuleList(teacher.get_submodule(family.layers)[i] for i in layers)
    setattr(teacher.get_submodule(path), name, kept)
    if teacher.config.model_type == "modernbert":  # it looks up by number which tokens a layer sees
        teacher.config.layer_types = [teacher.config.layer_types[i] for i in layers]
        assert [layer.attention_type for layer in kept] == student.config.layer_types
        assert student.config.layer_types[0] == "full_attention"
    teacher.config.num_hidden_layers = len(layers)
    with torch.no_grad():
        torch.testing.assert_close(student(**texts).logits, teacher(**texts).logits, atol=1e-5, rtol=0)


def test_a_student_of_the_teachers_class_reads_pairs_as_the_teacher_does():
    teacher, tokenizer = FAMILIES["bert"]()
    text = tokenizer("the cat sat", "on the mat", return_tensors="pt")
    assert text["token_type_ids"].sum() > 0
    with torch.no_grad():
        expected = teacher(**text).logits
        same = models.extract_student(teacher, [0, 1, 2, 3], student="same")(**text).logits
        one_text = models.extract_student(teacher, [0, 1, 2, 3])(**without_types(text, "distilbert")).logits
    torch.testing.assert_close(same, expected, atol=1e-4, rtol=0)
    assert (one_text - expected).abs().max() > 1e-2


@pytest.mark.parametrize("weights", ["embeddings", "random"])
def test_a_student_of_the_teachers_class_starts_as_it_is_told(pair, weights):
    teacher, _ = pair
    torch.manual_seed(5)
    student = models.extract_student(teacher, [0, 2], weights=weights, student="same")
    prefix = models.FAMILIES[teacher.config.model_type].layers
    for name, weight in student.state_dict().items():
        if not name.startswith(prefix):
            assert torch.equal(weight, teacher.state_dict()[name]) == (weights == "embeddings"), name
        elif weight.dim() == 2:
            assert not torch.equal(weight, teacher.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "modernbert"])
def test_a_distilbert_of_another_family_is_refused_with_what_fits(kind):
    with pytest.raises(ValueError, match=f"STUDENT is 'distilbert', but the teacher is a '{kind}'.* to 'same'"):
        models.extract_student(FAMILIES[kind]()[0], [0, 3])


def test_the_first_layer_of_a_modernbert_stays():
    with pytest.raises(ValueError, match=r"LAYERS \[1, 3\]: layer 0 of a 'modernbert'.*such as \[0, 3\]"):
        models.extract_student(FAMILIES["modernbert"]()[0], [1, 3], student="same")


def test_an_unknown_kind_of_student_is_refused():
    with pytest.raises(ValueError, match="student='tiny': choose 'distilbert' or 'same'"):
        models.extract_student(FAMILIES["bert"]()[0], [0], student="tiny")


def save(folder, pair):
    for each in pair:
        each.save_pretrained(folder)
    return folder


def test_load_teacher_takes_each_family_with_its_head_and_without(pair, tmp_path):
    teacher, tokenizer = pair
    again, own = models.load_teacher(save(tmp_path / "whole", pair), 32)
    assert type(again) is type(teacher)
    assert own("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    assert not models.head_is_untrained(again)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    headless, _ = models.load_teacher(save(tmp_path / "headless", (teacher.base_model, tokenizer)))
    assert models.head_is_untrained(headless)
    hidden, table = torch.randn(3, 32), teacher.get_input_embeddings().weight
    norm = headless.get_submodule(models.FAMILIES[teacher.config.model_type].norm)
    activated = torch.nn.functional.layer_norm(torch.nn.functional.gelu(hidden), (32,), eps=norm.eps)
    with torch.no_grad():
        torch.testing.assert_close(models.MaskedPositionLM(headless).head(hidden), activated @ table.T)


def test_a_student_of_another_vocabulary_is_refused(tmp_path):
    folder = save(tmp_path, FAMILIES["bert"]())
    _, own = models.load_student(folder)
    models.check_vocabularies(own, wordpiece(), folder)
    with pytest.raises(ValueError, match=r"STUDENT .*its tokenizer has 72 tokens, the teacher's 270; \d+ are the"):
        models.check_vocabularies(own, byte_level(), folder)


def test_attention_for_training_on_a_processor_sees_what_each_familys_own_does(pair):
    model, _ = pair
    for part in model.modules():  # without dropout, which differs from run to run
        for name in ("p", "dropout_prob", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    ids = torch.randint(5, 40, (2, 40), generator=torch.Generator().manual_seed(0))  # more than ModernBERT's window
    mask = (torch.arange(40) < torch.tensor([[40], [30]])).long()
    for seen in (torch.ones_like(mask), mask):
        with torch.no_grad():
            expected = model.eval()(ids, attention_mask=seen).logits
            with fast_training(model.train()):
                found = model(ids, attention_mask=seen).logits
        torch.testing.assert_close(found[seen.bool()], expected[seen.bool()], atol=1e-4, rtol=1e-4)
