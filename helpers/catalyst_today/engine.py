"""Catalyst's engine on today's accelerate. Knows nothing of distillation."""

from __future__ import annotations

import atexit
import copy
import os
from types import MethodType

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from accelerate.utils.operations import ConvertOutputsToFp32
from catalyst import dl
from torch.nn.parallel import DistributedDataParallel

from helpers.catalyst_today.fast_cpu import keep_freed_memory
from helpers.losses import at_least_one

PRECISION_NAMES = {"no": "float32", "bf16": "bfloat16 autocast", "fp16": "float16 autocast with a loss scaler"}


def default_precision(cpu: bool = False) -> tuple[str, str]:
    """The mixed precision of an engine that is given none, and why: ``("bf16", "the GPU has it")``.

    What ``ACCELERATE_MIXED_PRECISION`` says, accelerate's own variable; without it, what the hardware does fast.

    Args:
        cpu: leave a GPU out of account.
    """
    if asked := os.environ.get("ACCELERATE_MIXED_PRECISION"):
        return asked, "ACCELERATE_MIXED_PRECISION says so"
    if torch.cuda.is_available() and not cpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has it"
        return "fp16", "the GPU has no bfloat16"
    if torch.backends.mps.is_available() and not cpu:
        return "no", "Apple's GPU"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the processor has it"
    return "no", "no bfloat16 instructions known of this processor"


def is_main_process() -> bool:
    """True in the one process that prints and writes; asks torchrun's environment, so it needs no engine."""
    return int(os.environ.get("RANK", 0)) == 0


@atexit.register
def _leave() -> None:
    """Leave the group of processes: its threads would abort a process that ends with them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait_for_everyone() -> None:
    """Wait until every process of the run is here; alone, do nothing."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _check_processes() -> None:
    """Raise a ValueError where torchrun has started more processes here than there are GPUs; Apple's is one."""
    started, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), max(torch.cuda.device_count(), 1)
    if started > gpus:
        raise ValueError(
            f"{started} processes on this machine, but {gpus} GPU{'s' * (gpus != 1)}: start torchrun with "
            f"--nproc-per-node={gpus}."
        )


class Engine(dl.Engine):
    """Catalyst's engine, which is an `accelerate.Accelerator`, with five differences.

    Upstream's `mean_reduce_ddp_metrics` reads a member that accelerate no longer has; this one asks the Accelerator to
    reduce. The precision is chosen from the hardware unless it is given, and said out loud. In mixed precision a
    model's outputs are left in the type that autocast gives them. On a processor, freed memory is kept
    (`keep_freed_memory`).

    Under torchrun the processes share each batch among them: a loader's ``batch_size`` is that of all together, which
    their number has to divide, and a run takes the same steps on one process and on many. A validation row is read
    once.

    Args:
        mixed_precision: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``; None chooses by `default_precision`.
        cpu: leave a GPU unused.

    Raises:
        ValueError: torchrun has started more processes than there are GPUs.
    """

    def __init__(self, mixed_precision: str | None = None, *, cpu: bool = False):
        # accelerate keeps its state in the class: without this a second engine could not have another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        reason = "as asked"
        if mixed_precision is None:
            mixed_precision, reason = default_precision(cpu)
        cpu = cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        if not cpu:
            _check_processes()
        super().__init__(
            mixed_precision=mixed_precision,
            # accelerate looks for other processes on processors only where it is told that there is nothing else.
            cpu=cpu,
            dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.state.__dict__ = dict(self.state.__dict__)  # its own, which the next engine leaves as it is
        self.new_scaler = copy.deepcopy(self.scaler)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.is_main_process:
            many = f", {self.num_processes} processes" if self.num_processes > 1 else ""
            print(f"Engine: {self.device.type}{many}, {PRECISION_NAMES[mixed_precision]} ({reason}).")

    def prepare_model(self, model: torch.nn.Module, *args, **options) -> torch.nn.Module:
        """Prepare as accelerate does, but without its conversion of the outputs to float32.

        That would double the memory of the logits and of their gradient; the losses widen a few rows at a time. A
        frozen model has no gradients to synchronise, and DistributedDataParallel refuses it: it stays unwrapped.
        """
        frozen = not any(parameter.requires_grad for parameter in model.parameters())
        prepared = super().prepare_model(model, *args, **{"evaluation_mode": frozen} | options)
        if isinstance(prepared, DistributedDataParallel):
            # Buffers are constants here; to synchronise them would hang where a process has a batch less to validate.
            prepared.forward_sync_buffers = False
        converting = getattr(model.forward, "__wrapped__", None)
        if isinstance(converting, ConvertOutputsToFp32):
            forward = converting.model_forward
            model.forward = MethodType(forward, model) if hasattr(model.forward, "__func__") else forward
        return prepared

    def free_memory(self, *objects):
        """Let go of what a run has left here, float16's loss scaler included: the next run begins with a new one."""
        self.scaler = copy.deepcopy(self.new_scaler)
        return super().free_memory(*objects)

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest float that the device adds in: float64, but float32 on Apple's GPU, which has no more."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def own_share(self, count: int | torch.Tensor) -> int | float | torch.Tensor:
        """What a process has to divide a sum over its tokens by: the count of all processes over their number.

        The mean over the processes, which is what becomes of their gradients, is then the sum of all tokens divided by
        their count. A count of nothing is taken for one.
        """
        if self.num_processes > 1:
            count = self.reduce(torch.as_tensor(count, dtype=self.sum_dtype, device=self.device), reduction="sum")
        return at_least_one(count) / self.num_processes

    def mean_reduce_ddp_metrics(self, metrics: dict) -> dict:
        """Mean over the processes of each metric: a number or a scalar tensor, given back as a float."""
        reduced = {}
        for key, value in metrics.items():
            value = torch.as_tensor(value, dtype=self.sum_dtype, device=self.device)
            reduced[key] = self.reduce(value, reduction="mean").item()
        return reduced
