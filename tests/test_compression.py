"""Pruning, export and int8, against PyTorch and against arithmetic by hand; answers in a process without PyTorch."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoTokenizer, DistilBertForSequenceClassification, pipeline

from conftest import ROOT
from helpers import compression
from helpers.catalyst_today.saving import save_folder
from helpers.classification import classifier_of
from helpers.models import extract_student, load_teacher
from helpers.runs import answer, timing

LABELS = ["english", "german", "russian"]
TEXTS = ["Это русская фраза.", "Ein Satz.", "a", "An English sentence that is longer than the others " * 3]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """A classifier of three classes with its tokenizer, exported and quantized."""
    teacher, tokenizer = load_teacher(tiny_folder)
    target = tmp_path_factory.mktemp("classifier") / "student"
    classifier = classifier_of(extract_student(teacher, [0, 3]), LABELS, seed=0)
    save_folder(target, classifier, tokenizer)
    assert compression.export_onnx(classifier, target / "onnx" / "model.onnx") < 1e-5
    compression.quantize(target / "onnx" / "model.onnx", target / "onnx" / "model_quantized.onnx")
    return target


def in_pytorch(folder, texts):
    model = DistilBertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.numpy()


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model_quantized.onnx"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[2:]], ids=len)
def test_a_file_answers_as_pytorch_does_whatever_the_batch(folder, file, texts):
    classifier = answer.Classifier(folder, file)
    apart = np.abs(classifier.run(classifier.texts.encode(texts)) - in_pytorch(folder, texts)).max()
    assert apart < (0.05 if "quantized" in file else 1e-5)
    assert classifier.labels == LABELS


def test_the_folder_is_one_that_transformers_reads_and_says_the_same(folder):
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    for text in TEXTS[:3]:
        label, probability = answer.Classifier(folder, "onnx/model.onnx")(text)
        (expected,) = classify(text)
        assert label == expected["label"]
        assert probability == pytest.approx(expected["score"], abs=1e-5)


def test_a_teacher_and_a_masked_lm_are_exported_too(tiny, tmp_path):
    teacher, _ = tiny
    assert compression.export_onnx(teacher, tmp_path / "teacher.onnx") < 1e-4
    ids, mask = torch.tensor([[2, 7, 9, 3]]), torch.tensor([[1, 1, 1, 0]])
    session = compression.open_session(tmp_path / "teacher.onnx")
    (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = teacher(input_ids=ids, attention_mask=mask).logits.numpy()
    assert logits.shape == (1, 4, teacher.config.vocab_size)
    assert np.abs(logits - expected).max() < 1e-4


def test_no_path_of_the_exporting_machine_is_in_the_file(folder):
    content = (folder / "onnx" / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"modeling_distilbert" not in content


@pytest.mark.parametrize(("reduce_range", "levels"), [(False, 127), (True, 64)])
def test_int8_weights_are_the_weight_over_its_rows_largest(folder, tmp_path, reduce_range, levels):
    file = tmp_path / "quantized.onnx"
    compression.quantize(folder / "onnx" / "model.onnx", file, reduce_range=reduce_range)
    model = DistilBertForSequenceClassification.from_pretrained(folder)
    weight = model.distilbert.transformer.layer[1].ffn.lin1.weight.detach().numpy()
    by_hand = np.round(weight / (np.abs(weight).max(1, keepdims=True) / levels))
    stored = [onnx.numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer]
    same_shape = [each.T for each in stored if each.dtype == np.int8 and each.T.shape == weight.shape]
    assert len(same_shape) == 2  # a layer each
    assert min(np.abs(each - by_hand).max() for each in same_shape) == 0
    rows = [each for each in stored if each.dtype == np.uint8 and each.shape == (121, 64)]
    assert len(rows) == 1, "the words are in 8 bits too"


def test_the_operators_that_are_named_are_quantized_alone(folder, tmp_path):
    file = tmp_path / "quantized.onnx"
    compression.quantize(folder / "onnx" / "model.onnx", file, operators=["MatMul"])
    stored = {each.name: onnx.numpy_helper.to_array(each).dtype for each in onnx.load(file).graph.initializer}
    assert stored["model.distilbert.embeddings.word_embeddings.weight"] == np.float32


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2", True),
        ("x86_64", "fpu avx2 avx512_vnni", False),
        ("x86_64", "fpu avx_vnni", False),
        ("x86_64", None, True),
        ("aarch64", "fp asimd", False),
        ("arm64", None, False),
    ],
)
def test_the_range_is_reduced_on_x86_without_vnni(monkeypatch, tmp_path, machine, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    monkeypatch.setattr(compression.platform, "machine", lambda: machine)
    monkeypatch.setattr(compression, "CPUINFO", cpuinfo)
    assert compression.needs_reduced_range() is expected


def test_pruning_takes_the_smallest_weights_of_each_layer_and_leaves_the_model(tiny):
    model = classifier_of(extract_student(tiny[0], [0]), LABELS, seed=0)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    pruned = compression.prune_by_magnitude(model, 0.25).state_dict()
    weight, left = before["classifier.weight"], pruned["classifier.weight"]
    largest_gone = weight[left == 0].abs().max()
    assert (left == 0).sum() == weight.numel() // 4
    assert largest_gone <= weight[left != 0].abs().min()
    assert torch.equal(left[left != 0], weight[left != 0])
    assert torch.equal(
        pruned["distilbert.embeddings.word_embeddings.weight"], before["distilbert.embeddings.word_embeddings.weight"]
    )
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    with pytest.raises(ValueError, match=r"share is 1: it has to be at least 0 and below 1"):
        compression.prune_by_magnitude(model, 1)


def test_the_bytes_of_the_parts_are_those_of_the_shapes(tiny):
    teacher, student = tiny[0], extract_student(tiny[0], [0, 3])
    for model, layers in ((teacher, 4), (student, 2)):
        found = compression.bytes_by_part(model)
        assert found["words"] == 4 * 121 * 64
        assert found["attention"] == 4 * layers * (4 * (64 * 64 + 64) + 2 * 64)
        assert found["feed-forward"] == 4 * layers * (2 * 64 * 128 + 128 + 64 + 2 * 64)
        assert sum(found.values()) == 4 * model.num_parameters()


class WithoutCounterpart(DistilBertForSequenceClassification):
    def forward(self, **inputs):
        found = super().forward(**inputs)
        found.logits = torch.linalg.eigvalsh(found.logits[:, :, None] @ found.logits[:, None, :])
        return found


class DiffersOnLongTexts(DistilBertForSequenceClassification):
    """Traced on a short text, it is another function than it is."""

    def forward(self, input_ids, **inputs):
        found = super().forward(input_ids=input_ids, **inputs)
        if not torch.compiler.is_compiling():
            found.logits = found.logits + 1
        return found


def of_kind(kind, tiny):
    model = classifier_of(extract_student(tiny[0], [0]), LABELS, seed=0)
    model.__class__ = kind
    return model


def test_an_operator_that_onnx_lacks_is_a_sentence_and_no_file(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"WithoutCounterpart cannot be exported: .*Take a model of operators"):
        compression.export_onnx(of_kind(WithoutCounterpart, tiny), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_export_that_differs_from_pytorch_is_not_written(tiny, tmp_path):
    old = tmp_path / "model.onnx"
    old.write_bytes(b"the old one")
    with pytest.raises(ValueError, match=r"model\.onnx: on 1 texts of 1 tokens .* away from PyTorch's\. The file was"):
        compression.export_onnx(of_kind(DiffersOnLongTexts, tiny), old)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
    assert old.read_bytes() == b"the old one"


def test_a_file_that_is_no_model_is_a_sentence_and_nothing_is_written(folder, tmp_path):
    (tmp_path / "model.onnx").write_text("not a model", encoding="utf-8")
    with pytest.raises(ValueError, match="onnxruntime cannot read it as an ONNX model"):
        compression.quantize(tmp_path / "model.onnx", tmp_path / "quantized.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_the_pages_lines_make_any_classifiers_file(tiny_folder, tmp_path, monkeypatch):
    """Of docs/your_own_texts.md, on a classifier of the teacher's own class."""
    page = (ROOT / "docs" / "your_own_texts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from pathlib import Path\n.*?)```", page, re.DOTALL)
    teacher, tokenizer = load_teacher(tiny_folder)
    save_folder(tmp_path / "my_classifier", classifier_of(teacher, LABELS, seed=0), tokenizer)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    classify = pipeline("text-classification", model="my_classifier", device="cpu")
    label, probability = answer.Classifier("my_classifier")(TEXTS[1])
    (expected,) = classify(TEXTS[1])
    assert (label, probability) == (expected["label"], pytest.approx(expected["score"], abs=0.02))


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_answers_need_a_whole_folder_that_fits(copied):
    (copied / "onnx" / "model_quantized.onnx").rename(copied / "elsewhere.onnx")
    with pytest.raises(FileNotFoundError, match=r"onnx/model_quantized\.onnx is missing\. Notebook 07 writes"):
        answer.Classifier(copied)
    (copied / "onnx" / "model.onnx").write_text("not a model", encoding="utf-8")
    with pytest.raises(ValueError, match=r"onnx/model\.onnx: onnxruntime cannot read it"):
        answer.Classifier(copied, "onnx/model.onnx")
    config = json.loads((copied / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "no", "1": "yes"}
    (copied / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a model of the classes \['no', 'yes'\] maps .* of 2 columns"):
        answer.Classifier(copied, "elsewhere.onnx")
    settings = copied / "tokenizer_config.json"
    found = json.loads(settings.read_text(encoding="utf-8"))
    del found["pad_token"]
    settings.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json lacks pad_token\. Notebook 07 writes"):
        answer.Classifier(copied, "elsewhere.onnx")
    settings.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not JSON"):
        answer.Classifier(copied, "elsewhere.onnx")


def test_a_text_is_cut_at_the_positions_and_more_tokens_are_a_sentence(folder):
    classifier = answer.Classifier(folder)
    assert classifier.texts.most == 64
    assert classifier.texts.encode(["a " * 500])["input_ids"].shape == (1, 64)
    with pytest.raises(ValueError, match="a text of 65 tokens: the model takes 64"):
        classifier.run(dict.fromkeys(answer.INPUTS, np.ones((1, 65), dtype=np.int64)))


def test_the_script_answers_by_itself_where_torch_cannot_be_imported(folder, tmp_path):
    script = shutil.copy(ROOT / "helpers" / "runs" / "answer.py", tmp_path)
    code = "import runpy, sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'onnx', 'helpers']); "
    code += (
        f"sys.argv = ['answer.py', {str(folder)!r}, *{TEXTS[:2]!r}]; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    classifier = answer.Classifier(folder)
    expected = [f"{label} {probability:.3f}" for label, probability in map(classifier, TEXTS[:2])]
    expected = [f"{own} {text}" for own, text in zip(expected, TEXTS, strict=False)]
    assert done.stdout.splitlines() == expected, done.stderr


def test_each_engine_is_timed_in_a_process_of_its_own_and_onnx_in_one_without_torch(folder):
    contenders = {
        "pytorch": timing.Answering(folder),
        "int8": timing.Answering(folder, "onnx/model_quantized.onnx"),
    }
    found = timing.in_turn(contenders, TEXTS * 3, rounds=1)
    assert list(found) == ["pytorch", "int8"]
    for own in found.values():
        assert set(own["milliseconds"]) == {"1", "32"}
        assert all(0 < each < 1000 for each in own["milliseconds"].values())
        assert own["memory_mb"] > 10
    assert {"torch", "transformers"} <= set(found["pytorch"]["modules"])
    assert set(found["int8"]["modules"]) == {"helpers", "numpy", "onnxruntime", "tokenizers"}
    assert found["int8"]["start_seconds"] < found["pytorch"]["start_seconds"]
    with pytest.raises(RuntimeError, match="lost: the process that times it failed"):
        timing.in_turn({"lost": timing.Answering(folder, "onnx/none.onnx")}, TEXTS, rounds=1)
