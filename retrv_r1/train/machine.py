"""What a training run computes on: device, dtype, and processes that make batches."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from retrv_r1.devices import device_of
from retrv_r1.model.conv_tower import ConvTower
from retrv_r1.types import RetrvError

ENCODED_AT_ONCE = {"cpu": 256, "cuda": 2048}
"""Pictures or texts that are encoded together, by device, where no gradients are needed."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class MachineError(RetrvError, ValueError):
    """Options of a training run that are invalid or do not fit together."""


@dataclass(frozen=True)
class Machine:
    """Where and how a stage is trained; batches do not depend on it.

    Args:
        device: device of the model, the pictures and the losses.
        dtype: dtype in which tower, text encoder and language model compute. Weights, compressor,
            head and losses are always float32.
        workers: processes that make batches; 0 makes them in this one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    workers: int = 0

    @classmethod
    def of(
        cls, device: str | None = None, dtype: str | None = None, workers: int | None = None
    ) -> Machine:
        """A machine by its options; None chooses a default.

        Args:
            device: ``cpu`` or ``cuda``; by default the GPU if there is one.
            dtype: ``float32`` or ``bfloat16``; by default bfloat16 on a GPU and on a CPU that
                multiplies it in hardware (Intel's AMX), float32 on others.
            workers: processes that make batches; by default a process for each core but one on a
                GPU, none on a CPU.
        Raises:
            DeviceError: there is no such device here.
            MachineError: a GPU other than the first, an unknown dtype, negative workers, or one of
                several processes of a launcher.
        """
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise MachineError(
                "training runs in one process, on one GPU: start it without torchrun or accelerate"
            )
        chosen = device_of(device)
        if chosen.index:
            raise MachineError(
                f"training uses the first visible GPU: set CUDA_VISIBLE_DEVICES={chosen.index} "
                "and name the device cuda"
            )
        gpu = chosen.type == "cuda"
        if dtype is not None and dtype not in DTYPES:
            raise MachineError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if workers is None:
            workers = max(1, cores() - 1) if gpu else 0
        if workers < 0:
            raise MachineError(f"workers must be at least 0, got {workers}")
        default = "bfloat16" if gpu or multiplies_bfloat16() else "float32"
        return cls(chosen, DTYPES[dtype or default], workers)

    def prepare(self, model: nn.Module) -> None:
        """Moves a model to the device and makes its large parts compute in the dtype.

        Autocast wraps the calls of those parts only, and their outputs are float32, so that the
        code between them is the same for every dtype.
        """
        model.to(self.device)
        if self.dtype == torch.float32:
            return
        for name in ("visual", "text", "language_model"):
            part: Any = getattr(model, name, None)
            if part is None:
                continue
            # A convolutional tower's `forward` goes through `rows`, which training calls itself.
            entry = "rows" if isinstance(part, ConvTower) else "forward"
            half = torch.autocast(self.device.type, self.dtype)(getattr(part, entry))
            setattr(part, entry, convert_outputs_to_fp32(half))


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than float32: Intel's AMX.

    The convolutional tower's part of a step takes about half as long there (docs/LOG.md).
    """
    # PyTorch has no public function for it; without this one a CPU counts as one without AMX.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def no_collection() -> Iterator[None]:
    """Stops Python's garbage collector, and has it pass over all that exists when this ends.

    Training data are millions of objects. The collector would look at all of them again and again
    while they are read, and in every process that makes batches, which then copies them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system after every step.

    Otherwise a step's large tensors are fresh, zeroed pages each time: 60-90 % of the time of a
    CPU step of the sft stage went into the kernel, 0 % with this (docs/LOG.md). Without glibc it
    does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    for option, value in (
        (mmap_max, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 2**28),
        (arena_max, 1),
    ):
        mallopt(option, value)
