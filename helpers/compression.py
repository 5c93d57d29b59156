"""A trained model made small, and written as a file that answers without PyTorch. Knows nothing of training."""

from __future__ import annotations

import copy
import io
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.models import LogitsAlone

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx.export needs it
    from onnxruntime.quantization import QuantType, quantize_dynamic
except ImportError as error:
    raise ImportError(
        f"{error.name} is missing, which exports and quantizes models: pip install -e '.[compress]' in the "
        "repository's root, or the three packages under `compress` in pyproject.toml."
    ) from error

INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
"""How far an exported model's logits may be from PyTorch's, relative to the largest: rounding stays far below."""
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""How Linux names the instructions of an x86 processor that add up int8 products without saturation."""
CPUINFO = Path("/proc/cpuinfo")


def bytes_by_part(model: PreTrainedModel) -> dict[str, int]:
    """What each part of a BERT or DistilBERT takes in a file, tied weights once.

    Returns:
        Bytes of ``words`` (the rows of the vocabulary), ``positions`` (the other embeddings), ``attention``,
        ``feed-forward`` and ``head``.
    """
    sizes = dict.fromkeys(("words", "positions", "attention", "feed-forward", "head"), 0)
    for name, parameter in model.named_parameters():
        if "word_embeddings" in name:
            part = "words"
        elif "embeddings" in name:
            part = "positions"
        elif "attention" in name or "sa_layer_norm" in name:
            part = "attention"
        else:
            part = "feed-forward" if "layer." in name else "head"
        sizes[part] += parameter.numel() * parameter.element_size()
    return sizes


@torch.no_grad()
def prune_by_magnitude(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """A copy in which a share of each linear layer's weights is zero, the smallest ones (Han et al. 2015, section 3).

    Args:
        model: it is left as it is.
        share: from 0 to below 1.

    Raises:
        ValueError: `share` out of its range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}: it has to be at least 0 and below 1.")
    pruned = copy.deepcopy(model)
    for layer in pruned.modules():
        if isinstance(layer, nn.Linear):
            smallest_first = layer.weight.abs().flatten().argsort()
            layer.weight.view(-1)[smallest_first[: int(share * layer.weight.numel())]] = 0
    return pruned


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing of what torch.onnx and onnxruntime tell of their own work: it is not about the model."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def open_session(file: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the processor.

    Raises:
        ValueError: it is no ONNX file, or of a model that does not map `INPUTS` to ``logits``.
    """
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no other parent
        raise ValueError(f"{file}: onnxruntime cannot read it as an ONNX model ({error}). Export it anew.") from error
    found = {each.name for each in session.get_inputs()}, {each.name for each in session.get_outputs()}
    if found != (set(INPUTS), {"logits"}):
        raise ValueError(
            f"{file}: the model maps {sorted(found[0])} to {sorted(found[1])}; it has to map {sorted(INPUTS)} to "
            "['logits']. Export it by export_onnx."
        )
    return session


def _sample(config, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random tokens and a mask that hides a tail of every second row: (batch, length) int64 twice."""
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1::2, (length + 1) // 2 :] = 0
    return ids, mask


def export_onnx(model: PreTrainedModel, file: Path) -> float:
    """Write a BERT or DistilBERT with its head as an ONNX file for any batch and any length.

    Before the file gets its name, it is compared with PyTorch on batches and lengths that it was not traced with, up to
    the longest that the model has positions for, or to 512 tokens.

    Args:
        model: its output has ``logits``; on the CPU.
        file: maps ``input_ids`` and ``attention_mask``, (batch, length) int64, to ``logits`` float32.

    Returns:
        The largest difference from PyTorch's logits.

    Raises:
        ValueError: an operator of the model has no counterpart in ONNX, or the exported model computes something else.
    """
    wrapped, config = LogitsAlone(model).eval(), model.config
    shape = {0: "batch", 1: "length"}
    try:
        with quiet():
            program = torch.onnx.export(
                wrapped,
                _sample(config, 2, 8),
                dynamo=True,
                input_names=INPUTS,
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(INPUTS, shape),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} cannot be exported: {reason} Take a model of operators that ONNX has."
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as beside:
        written = Path(beside) / file.name
        onnx.save(_without_traces(program.model_proto), written)
        largest = _check_export(wrapped, config, written, file)
        os.replace(written, file)
    return largest


def _without_traces(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same without the lines of Python that each node came from: kilobytes, and paths of the exporting machine."""
    for each in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    return proto


@torch.no_grad()
def _check_export(wrapped: nn.Module, config, written: Path, file: Path) -> float:
    session, largest = open_session(written), 0.0
    longest = min(config.max_position_embeddings, 512)
    for batch, length in ((1, 1), (1, 5), (3, 2), (5, 13), (2, longest)):
        inputs = _sample(config, batch, length)
        expected = wrapped(*inputs).numpy()
        feed = dict(zip(INPUTS, (each.numpy() for each in inputs), strict=True))
        difference = float(np.abs(session.run(None, feed)[0] - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ValueError(
                f"{file.name}: on {batch} texts of {length} tokens the exported model's logits are up to "
                f"{difference:.2g} away from PyTorch's. The file was not written."
            )
        largest = max(largest, difference)
    return largest


def needs_reduced_range() -> bool:
    """Whether int8 weights should use 7 bits on this processor.

    On x86 without VNNI, the sum of two products of uint8 and int8 is cut at 16 bits; with weights from -64 to 64 it
    fits. Where the processor's abilities cannot be read, True: it is right everywhere.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return False
    try:
        flags = CPUINFO.read_text(encoding="utf-8").split()
    except OSError:
        return True
    return not VNNI & set(flags)


def quantize(
    file: Path,
    target: Path,
    *,
    per_channel: bool = True,
    operators: Sequence[str] | None = None,
    reduce_range: bool | None = None,
) -> None:
    """Write an exported model with its weights in 8 bits; the activations are quantized as each batch comes (dynamic).

    Args:
        file: what `export_onnx` wrote.
        target: the file to write.
        per_channel: a scale for each output of a matrix, instead of one for the whole matrix. Embeddings have one
            scale each in any case: onnxruntime has no other for them.
        operators: the ONNX operators whose weights are quantized, such as ``["MatMul"]``; None for all that
            onnxruntime can quantize, the look-up in the embeddings (``Gather``) among them.
        reduce_range: see `needs_reduced_range`, which decides where it is None.

    Raises:
        ValueError: see `open_session`.
    """
    open_session(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as beside, quiet():
        written = Path(beside) / target.name
        quantize_dynamic(
            file,
            written,
            op_types_to_quantize=operators,
            per_channel=per_channel,
            reduce_range=needs_reduced_range() if reduce_range is None else reduce_range,
            weight_type=QuantType.QInt8,
        )
        open_session(written)
        os.replace(written, target)
