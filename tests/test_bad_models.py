"""Models that do not fit: each ends with one sentence, before any work. And odd ones that do fit."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import papermill
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from conftest import ROOT
from helpers import classification, data, models
from helpers.data import masked

GEORGIAN = ["დღეს მცხობელმა ადრე გახსნა მაღაზია.", "წვიმა მოდიოდა ცარიელ მოედანზე.", "ექიმმა ორი წერილი დაწერა."]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{7:064d}\nsize 591160\n"
HEAD = "cls.predictions.transform.LayerNorm.weight"


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    """A folder with a teacher that has its head, and its tokenizer: what each row spoils."""
    teacher, tokenizer = models.load_teacher(tiny_folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in teacher.cls.predictions.transform.parameters():
            weight += 0.01 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("whole") / "model"
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def remove(*names: str):
    def spoil(folder: Path):
        for name in names:
            (folder / name).unlink()

    return spoil


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def cut(name: str, size: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def configured(name: str = "config.json", **changes):
    def spoil(folder: Path):
        said = json.loads((folder / name).read_text(encoding="utf-8"))
        kept = {key: value for key, value in (said | changes).items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return spoil


def without(*weights: str):
    def spoil(folder: Path):
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(weights)}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def into_subfolder(folder: Path):
    inside = folder / "checkpoint-500"
    inside.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inside / file.name)


def sharded(folder: Path):
    model = AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")


def a_shard_is_missing(folder: Path):
    sharded(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def pickled(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_and_cut(folder: Path):
    pickled(folder)
    cut("pytorch_model.bin", 5000)(folder)


class Code:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def pickled_with_code(folder: Path):
    pickled(folder)
    torch.save({"weight": Code(folder.parent / "ran")}, folder / "pytorch_model.bin")


def retokenized(**changes):
    """The tokenizer saved again by the general class, with these special tokens."""
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")} | changes
    kept = {name: token for name, token in tokens.items() if token is not None}

    def spoil(folder: Path):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **kept)
        (folder / "tokenizer_config.json").unlink()
        tokenizer.save_pretrained(folder)

    return spoil


def without_edges(folder: Path):
    retokenized()(folder)
    configured("tokenizer.json", post_processor=None)(folder)


def with_added_tokens(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[NEW1]", "[NEW2]", "[NEW3]"])
    tokenizer.save_pretrained(folder)


def vocabulary(words: list[str], **config):
    """vocab.txt alone, and what tokenizer_config.json says where it is there."""

    def spoil(folder: Path):
        rows = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{word}" for word in words)][:rows]
        (folder / "vocab.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
        if config:
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")

    return spoil


RUSSIAN = [chr(code) for code in range(0x410, 0x450)]
LOWER_RUSSIAN = [chr(code) for code in range(0x430, 0x450)]


def cased_without_its_configuration(folder: Path):
    """tokenizer.json keeps capitals, but transformers 5 lower-cases where no tokenizer_config.json says otherwise."""
    vocabulary(RUSSIAN)(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)


BOTH, TEACHER, BASELINE = ("TEACHER", "BASELINE"), ("TEACHER",), ("BASELINE",)


class Row(NamedTuple):
    """A root cause: its name, what spoils the folder, the parameters that may name it, and the sentence's two halves:
    what is wrong, and what would be right."""

    cause: str
    spoil: Callable[[Path], object]
    parameters: tuple[str, ...]
    wrong: str
    right: str


MODELS = [
    Row("an empty folder", lambda folder: shutil.rmtree(folder) or folder.mkdir(), BOTH, "holds nothing", "Name one"),
    Row("a folder of models", into_subfolder, BOTH, "no config.json, but its folder 'checkpoint-500'", "Name that"),
    Row("an old name", rename("config.json", "bert_config.json"), BOTH, "holds bert_config.json", "Rename it config"),
    Row("an adapter", rename("config.json", "adapter_config.json"), BOTH, "holds adapter_config.json", "merge it"),
    Row("no JSON", write("config.json", '{"model_type": "bert",}'), BOTH, "config.json is not valid JSON", "Mend it"),
    Row("other JSON", write("config.json", "[]"), BOTH, "config.json has to be a JSON object", "Fetch it again"),
    Row("no model_type", configured(model_type=None), BOTH, 'no "model_type"', "add it"),
    Row("an unknown model", configured(model_type="mine"), BOTH, "cannot read its config.json", "Take one that"),
    Row("no weights", rename("model.safetensors", "tf_model.h5"), BOTH, "no weights", "Save the model with"),
    Row("a pointer", write("model.safetensors", POINTER), BOTH, "model.safetensors is a pointer", "git lfs pull"),
    Row("a small pointer", write("tokenizer.json", POINTER), BOTH, "tokenizer.json is a pointer", "git lfs pull"),
    Row("cut weights", cut("model.safetensors", 9000), BOTH, "model.safetensors is damaged or cut", "Fetch it again"),
    Row("no bytes", cut("model.safetensors", 0), BOTH, "model.safetensors is damaged or cut", "Fetch it again"),
    Row("a missing shard", a_shard_is_missing, BOTH, "model-00002-of-", "Copy them"),
    Row("a cut .bin", pickled_and_cut, BOTH, "pytorch_model.bin is empty or cut short", "Fetch it again"),
    Row("code in a .bin", pickled_with_code, BOTH, "holds more than tensors", "as safetensors"),
    Row("another shape", configured(hidden_size=32), BOTH, "its weights|in another shape", "config.json"),
    Row("a missing layer", without("bert.encoder.layer.2."), BOTH, "lacks 16 weights", "Fetch the model again"),
    Row(
        "no tokenizer", remove("tokenizer.json", "tokenizer_config.json"), BOTH, "it has no tokenizer", "Put the files"
    ),
    Row("a spoilt tokenizer", write("tokenizer.json", "{}"), BOTH, "tokenizer cannot be loaded", "Fetch its files"),
    Row(
        "a package is missing",
        vocabulary(["猫", "犬"], tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="sudachi"),
        BOTH,
        "its tokenizer cannot be loaded",
        "install",
    ),
    Row("added tokens", with_added_tokens, BOTH, "124 tokens, .* word embeddings for 121", "resize_token_embeddings"),
    Row("no padding", retokenized(pad_token=None), BOTH, "has no pad_token", "Set it"),
    Row("no mask", retokenized(mask_token=None), TEACHER, "has no mask_token", "Set it"),
    Row("no [CLS], no [SEP]", without_edges, TEACHER, "does not put one token before a text", "cls_token and sep_"),
    Row(
        "capitals dropped", vocabulary(RUSSIAN), BOTH, "drops capitals or accents.*'А' is read as 'а'", "do_lower_case"
    ),
    Row(
        "accents dropped",
        vocabulary(["й", "ё", "и", "е"], do_lower_case=True),
        BOTH,
        "drops capitals or accents.*'й' is read as 'и'",
        "strip_accents",
    ),
    Row(
        "capitals dropped, though not by tokenizer.json", cased_without_its_configuration, BOTH, "'А' is read", "false"
    ),
    Row("a decoder", configured(is_decoder=True), BOTH, "says is_decoder", "set is_decoder to false"),
    Row("too few positions", configured(), BOTH, "MAX_LENGTH is 65, but .* takes 64 tokens at most", "Set it to"),
    Row(
        "another encoder", configured(model_type="electra"), TEACHER, "is a 'electra'; what fits", "modernbert, roberta"
    ),
    Row(
        "relative positions",
        configured(position_embedding_type="relative_key"),
        TEACHER,
        "only absolute",
        "Take a model",
    ),
    Row("untied", configured(tie_word_embeddings=False), TEACHER, "lacks cls.predictions.decoder.weight", "tie_word_"),
    Row("half a head", without(HEAD), TEACHER, f"not all of it: it lacks {HEAD}", "Fetch"),
]
CASES = [pytest.param(row, name, id=f"{name}: {row.cause}") for row in MODELS for name in row.parameters]


@pytest.mark.parametrize(("row", "parameter"), CASES)
def test_a_model_that_does_not_fit_is_named_with_its_remedy(row, parameter, folder):
    row.spoil(folder)
    most = 65 if "MAX_LENGTH" in row.wrong else 16
    load = models.load_teacher if parameter == "TEACHER" else partial(classification.load_baseline, labels="ab", seed=0)
    with pytest.raises((ValueError, FileNotFoundError), match=row.wrong) as caught:
        load(str(folder), max_length=most)
    said = str(caught.value)
    assert f"{parameter} {str(folder)!r}" in said
    assert row.right in said
    assert "\n" not in said
    assert not (folder.parent / "ran").exists(), "code in a pickle was run"


UNKNOWN = [
    (["the cat sat"] * 19 + ["დღეს მცხობელმა ადრე გახსნა მაღაზია"], None),
    (["the cat sat"] * 9 + ["დღეს მცხობელმა ადრე გახსნა მაღაზია"] * 9, "warning"),
    (["დღეს მცხობელმა ადრე, 17 გახსნა მაღაზია."] * 20, "error"),
    (["17 1 7"] * 20, "error"),
]
"""Texts to the tiny tokenizer, which knows letters, and what is said of them."""


@pytest.mark.parametrize(("texts", "said"), UNKNOWN)
def test_the_share_of_unknown_tokens_is_said_from_a_twentieth_on(tiny, texts, said):
    tokenizer = tiny[1]
    ids = [number for text in texts for number in tokenizer(text, add_special_tokens=False)["input_ids"]]
    words = [piece for piece in tokenizer.convert_ids_to_tokens(ids) if piece == "[UNK]" or piece.strip("#").isalpha()]
    share = words.count("[UNK]") / max(1, len(words))
    assert said == ("error" if share >= 0.9 or not words else "warning" if share >= 0.05 else None)
    corpus = datasets.Dataset.from_dict({"text": texts})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if said == "error":
            with pytest.raises(
                ValueError, match=rf"^CORPUS: {share:.0%} .* are \[UNK\].*Set TEACHER to one that knows"
            ):
                data.check_known(corpus, tokenizer)
        else:
            data.check_known(corpus, tokenizer)
    warned = [str(each.message) for each in caught if each.category is UserWarning]
    assert [message.startswith(f"CORPUS: {share:.0%} of the tokens") for message in warned] == [True] * (
        said == "warning"
    )


def test_texts_of_unknown_tokens_give_no_loaders(tiny):
    corpus = datasets.Dataset.from_dict({"text": [f"{text} {text}" for text in GEORGIAN]})
    with pytest.raises(ValueError, match="nothing is left to be learned"):
        data.masked_lm_loaders(corpus, tiny[1])


def test_a_validation_part_with_nothing_to_predict_is_an_error_not_a_loss_of_zero(tiny):
    corpus = datasets.Dataset.from_dict({"text": ["a b", "c d", "e f"]})
    with pytest.raises(ValueError, match=r"^CORPUS: of 4 tokens .* none is to be predicted\. Take more texts"):
        data.masked_lm_loaders(corpus, tiny[1], probability=0.001)


def differing(one, other):
    return [name for name, weight in one.state_dict().items() if not torch.equal(weight, other.state_dict()[name])]


@pytest.mark.parametrize("spoil", [sharded, pickled])
def test_weights_in_parts_or_in_an_old_file_are_the_same(spoil, folder):
    expected, _ = models.load_teacher(folder)
    spoil(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 2 or (folder / "pytorch_model.bin").is_file()
    assert not (folder / "model.safetensors").exists()
    assert not differing(models.load_teacher(folder)[0], expected)


def test_outputs_as_tuples_change_nothing(folder):
    configured(return_dict=False)(folder)
    teacher, tokenizer = models.load_teacher(folder)
    classifier, _ = classification.load_baseline(str(folder), ["a", "b"], 0)
    batch = tokenizer(["the cat", "the dog"], return_tensors="pt")
    assert models.MaskedPositionLM(teacher)(batch["input_ids"], batch["attention_mask"], batch["input_ids"])[0].shape
    assert classifier(**batch).logits.shape == (2, 2)


def test_a_vocabulary_alone_is_read_as_it_is_meant(folder):
    vocabulary(LOWER_RUSSIAN, do_lower_case=True, strip_accents=False)(folder)
    assert models.load_teacher(folder)[1].tokenize("Мой") == ["м", "##о", "##й"]
    vocabulary_file = (folder / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_text(vocabulary_file.replace("й\n", "ы́\n"), encoding="utf-8")
    (folder / "tokenizer_config.json").unlink()
    assert models.load_teacher(folder)[1].tokenize("Нос") == ["н", "##о", "##с"]


def test_special_tokens_may_have_other_names(folder, sentences):
    expected = masked.MaskingCollator(models.load_teacher(folder)[1])
    retokenized(cls_token=None, sep_token=None, bos_token="[CLS]", eos_token="[SEP]")(folder)
    _, tokenizer = models.load_teacher(folder)
    assert tokenizer.cls_token is None
    (row, *_) = data.masked_lm_loaders(sentences, tokenizer, max_length=16)["train"].dataset
    assert tokenizer.convert_ids_to_tokens(row["input_ids"][[0, -1]].tolist()) == ["[CLS]", "[SEP]"]
    assert set(masked.MaskingCollator(tokenizer).special.tolist()) == set(expected.special.tolist())


def test_a_slow_tokenizer_works_and_its_tokens_are_cached(folder, engine):
    words = list(dict.fromkeys("今日は雨が降っています猫犬の家店朝夜行く来た"))
    options = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character", "do_lower_case": False}
    vocabulary(words, tokenizer_class="BertJapaneseTokenizer", **options)(folder)
    teacher, tokenizer = models.load_teacher(folder, 16)
    assert not tokenizer.is_fast
    texts = datasets.Dataset.from_dict({"text": ["今日は雨が降っています", "猫の家", "犬の店 朝", "夜 行く 来た"]})
    first = masked.token_ids(texts, tokenizer)
    assert first["input_ids"][1] == [tokenizer.get_vocab()[letter] for letter in "猫の家"]
    again = masked.token_ids(texts, models.load_teacher(folder, 16)[1])
    assert first._fingerprint == again._fingerprint
    configured("tokenizer_config.json", do_lower_case=True)(folder)
    assert masked.token_ids(texts, models.load_teacher(folder, 16)[1])._fingerprint != first._fingerprint
    loaders = data.masked_lm_loaders(texts, tokenizer, max_length=16, batch_size=2, probability=0.5)
    logits, _ = models.MaskedPositionLM(teacher)(**next(iter(loaders["valid"])))
    assert len(logits)


def test_an_untied_head_is_started_at_the_word_embeddings_and_kept_where_it_is_there(folder):
    teacher, _ = models.load_teacher(folder)
    configured(tie_word_embeddings=False)(folder)
    without("cls.")(folder)
    started, _ = models.load_teacher(folder)
    assert models.head_is_untrained(started)
    assert torch.equal(started.cls.predictions.decoder.weight, teacher.get_input_embeddings().weight)
    with torch.no_grad():
        for weight in started.cls.predictions.parameters():
            weight.copy_(torch.randn_like(weight))
    started.cls.predictions.bias = started.cls.predictions.decoder.bias
    started.save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
        bias = whole.get("cls.predictions.bias", whole.get("cls.predictions.decoder.bias"))
        kept = {key: tensor for key, tensor in whole.items() if not key.endswith("predictions.decoder.bias")}
        kept.pop("cls.predictions.bias", None)
        save_file({**kept, name: bias}, folder / "model.safetensors", metadata={"format": "pt"})
        again, _ = models.load_teacher(folder)
        assert torch.equal(again.cls.predictions.decoder.bias, started.cls.predictions.decoder.bias)
        assert torch.equal(again.cls.predictions.decoder.weight, started.cls.predictions.decoder.weight)


def test_another_epsilon_is_said_and_a_saved_student_is_the_one_in_memory(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.extract_student(models.load_teacher(folder)[0], [0, 1, 2, 3])
    configured(layer_norm_eps=1e-5)(folder)
    teacher, tokenizer = models.load_teacher(folder)
    with pytest.warns(UserWarning, match="epsilon 1e-05. A DistilBERT's always have 1e-12"):
        student = models.extract_student(teacher, [0, 1, 2, 3])
    student.save_pretrained(tmp_path / "student")
    ids = tokenizer("the cat on the roof", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = student(ids).logits
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")(ids).logits
        assert torch.equal(again, logits)
        assert 1e-6 < (teacher(ids).logits - logits).abs().max() < 1e-2


def saved_baseline(folder: Path, tokenizer, model):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SHAPE = {"vocab_size": 121, "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "intermediate_size": 8}


def test_a_robertas_positions_begin_behind_its_padding(tiny, tmp_path):
    config = RobertaConfig(**SHAPE, max_position_embeddings=34, pad_token_id=1)
    folder = saved_baseline(tmp_path / "roberta", tiny[1], RobertaModel(config))
    classifier, _ = classification.load_baseline(folder, ["a", "b"], 0, 32)
    assert classifier(torch.full((2, 32), 5)).logits.shape == (2, 2)
    with pytest.raises(ValueError, match=r"MAX_LENGTH is 33, but BASELINE .* takes 32 tokens at most"):
        classification.load_baseline(folder, ["a", "b"], 0, 33)


def test_a_gpt2_with_padding_can_be_a_baseline(tiny, tmp_path):
    model = GPT2Model(GPT2Config(vocab_size=121, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    classifier, tokenizer = classification.load_baseline(
        saved_baseline(tmp_path / "gpt2", tiny[1], model), ["a", "b"], 0, 16
    )
    rows = data.encode(datasets.Dataset.from_dict({"text": ["the cat", "a"], "label": [0, 1]}), tokenizer, 16)
    (batch,) = data.row_loader(rows, tokenizer, 2)
    assert classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.shape == (2, 2)


def test_a_baseline_may_have_the_head_of_other_classes(tiny, tmp_path):
    classifier = classification.classifier_of(tiny[0], ["a", "b", "c"], 0)
    folder = saved_baseline(tmp_path / "three", tiny[1], classifier)
    two, _ = classification.load_baseline(folder, ["no", "yes"], 0)
    assert two.classifier.weight.shape == (2, 64)
    assert two.config.label2id == {"no": 0, "yes": 1}
    assert not differing(two.bert.encoder, classifier.bert.encoder)


def papermill_06(parameters: dict, folder: Path) -> str:
    notebook = ROOT / "notebooks" / "06_sentiment_evaluation.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            notebook, folder / "copy.ipynb", parameters, progress_bar=False, kernel_name="python3"
        )
    return str(caught.value)


def georgian(folder: Path, name: str) -> str:
    rows = [f"{text} {other};{number % 2}" for number, text in enumerate(GEORGIAN * 10) for other in GEORGIAN]
    (folder / name).write_text("\n".join(["text;label", *rows]), encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def short_baseline(tiny, tmp_path):
    config = DistilBertConfig(vocab_size=121, dim=8, n_layers=1, n_heads=1, hidden_dim=8, max_position_embeddings=12)
    return saved_baseline(tmp_path / "short", tiny[1], DistilBertModel(config))


def nothing_was_made(folder: Path) -> bool:
    return not [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".pt", ".csv")]


def test_the_notebook_looks_at_the_baseline_before_anything_is_trained(parameters, short_baseline, tmp_path):
    said = papermill_06(parameters | {"BASELINE": short_baseline}, tmp_path)
    assert "MAX_LENGTH is 16, but BASELINE" in said
    assert "takes 12 tokens at most" in said
    assert nothing_was_made(tmp_path / "artifacts")


@pytest.mark.slow
def test_the_notebook_looks_at_labelled_texts_before_anything_is_trained(parameters, tmp_path):
    own = {"LABELLED_CORPUS": georgian(tmp_path, "own.csv"), "LABELLED_TEXT_FIELD": "text", "LABEL_FIELD": "label"}
    assert "LABELLED_CORPUS: 100% of the tokens" in papermill_06(parameters | own, tmp_path)
    assert nothing_was_made(tmp_path / "artifacts")
