"""Catalyst's engine on today's accelerate. Knows nothing of distillation."""

from __future__ import annotations

from types import MethodType

import torch
from accelerate.state import AcceleratorState
from accelerate.utils.operations import ConvertOutputsToFp32
from catalyst import dl

from helpers.processor import keep_freed_memory

PRECISION_NAMES = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast with a loss scaler"}


def fastest_precision(cpu: bool = False) -> tuple[str, str]:
    """The mixed precision that the hardware computes in, and why: ``("bf16", "the GPU has it")``.

    Args:
        cpu: leave a GPU out of account.
    """
    if torch.cuda.is_available() and not cpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has it"
        return "fp16", "the GPU has no bfloat16"
    if torch.backends.mps.is_available() and not cpu:
        return "no", "Apple's GPU"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor has it"
    return "no", "no bfloat16 instructions known of this processor"


class Engine(dl.Engine):
    """Catalyst's engine, which is an `accelerate.Accelerator`, with four differences.

    Upstream's `mean_reduce_ddp_metrics` reads a member that accelerate no longer has; this one asks the Accelerator to
    reduce. The precision is chosen from the hardware unless it is given, and said out loud. In mixed precision a
    model's outputs are left in the type that autocast gives them. On a processor, freed memory is kept
    (`keep_freed_memory`).

    Args:
        mixed_precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``; None chooses by `fastest_precision`.
        cpu: leave a GPU unused.
    """

    def __init__(self, mixed_precision: str | None = None, *, cpu: bool = False):
        # accelerate keeps its state in the class: without this a second engine could not have another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        reason = "as asked"
        if mixed_precision is None:
            mixed_precision, reason = fastest_precision(cpu)
        super().__init__(mixed_precision=mixed_precision, cpu=cpu)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.is_main_process:
            print(f"Engine: {self.device.type}, {PRECISION_NAMES[mixed_precision]} ({reason}).")

    def prepare_model(self, model: torch.nn.Module, *args, **options) -> torch.nn.Module:
        """Prepare as accelerate does, but without its conversion of the outputs to float32.

        That would double the memory of the logits and of their gradient; the losses widen a few rows at a time.
        """
        prepared = super().prepare_model(model, *args, **options)
        converting = getattr(model.forward, "__wrapped__", None)
        if isinstance(converting, ConvertOutputsToFp32):
            forward = converting.model_forward
            model.forward = MethodType(forward, model) if hasattr(model.forward, "__func__") else forward
        return prepared

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest float that the device adds in: float64, but float32 on Apple's GPU, which has no more."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def mean_reduce_ddp_metrics(self, metrics: dict) -> dict:
        """Mean over the processes of each metric: a number or a scalar tensor, given back as a float."""
        reduced = {}
        for key, value in metrics.items():
            value = torch.as_tensor(value, dtype=self.sum_dtype, device=self.device)
            reduced[key] = self.reduce(value, reduction="mean").item()
        return reduced
