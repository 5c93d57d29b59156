"""What PyTorch does slowly on a processor in a training step, done faster. Knows nothing of distillation.

docs/benchmark.md has what it brings.
"""

from __future__ import annotations

import ctypes
import platform
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "helpers"
"""The name under which `transformers` knows `attention`."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of handing it back to the system at once.

    A step frees and takes (masked, vocabulary) buffers of tens of megabytes many times over. By default each is mapped
    anew, and the kernel zeroes its pages. Elsewhere than on Linux with glibc, do nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)


def dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout (Srivastava et al. 2014) that draws sixteen random bits for each number, from torch's global generator.

    On processors other than Intel's, torch draws a double for each number, one after another. Here a draw of 64 bits
    serves four numbers.

    Args:
        x: of any shape and float type, on the CPU.
        probability: of a zero; rounded to a multiple of 2^-16, and what is left is scaled up for just that.
    """
    zeros = round(probability * 2**16)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= zeros - 2**15
    # Scaled after the product: rounded to bfloat16, the scale itself would be off by a sixth of a percent.
    return (x * kept.to(x.dtype)).mul_(2**16 / (2**16 - zeros))


class Dropout(nn.Dropout):
    """`dropout` in place of torch's, on a processor."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and x.device.type == "cpu":
            return dropout(x, self.p)
        return super().forward(x)


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options):
    """Attention (Vaswani et al. 2017, section 3.2.1) for training on a processor; elsewhere `transformers`' own.

    With dropout, torch's `scaled_dot_product_attention` computes all in float32 there. Here scores and softmax are
    float32, and the two products with the probabilities in the type of the query.

    Args:
        module: the attention layer.
        query, key, value: (batch, heads, length, width).
        attention_mask: (batch, 1 or heads, length, length) bool, True where a token is seen; None where all are.
        options: `dropout` and `scaling`, as `transformers` gives them to every attention function.

    Returns:
        (batch, length, heads, width), and None in place of the probabilities.
    """
    if not module.training or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    with torch.autocast("cpu", enabled=False):
        scores = (query.float() * scaling) @ key.float().mT
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(dim=-1).to(query.dtype)
    if options.get("dropout", 0) > 0:
        probabilities = dropout(probabilities, options["dropout"])
    return (probabilities @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def fast_training(model: PreTrainedModel):
    """Let a model that is trained meanwhile use this module's `Dropout` and, if it uses torch's, `attention`.

    Afterwards it is as before. An attention that was chosen otherwise, such as ``eager``, stays.
    """
    is_torchs = model.config._attn_implementation == "sdpa"
    replaced = [module for module in model.modules() if type(module) is nn.Dropout]
    if is_torchs:
        model.set_attn_implementation(ATTENTION)
    for module in replaced:
        module.__class__ = Dropout
    try:
        yield
    finally:
        if is_torchs:
            model.set_attn_implementation("sdpa")
        for module in replaced:
            module.__class__ = nn.Dropout
