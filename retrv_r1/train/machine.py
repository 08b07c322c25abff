"""What a training run computes on: device, number format, processes that make batches."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn

from retrv_r1.devices import device_of
from retrv_r1.types import RetrvError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class MachineError(RetrvError, ValueError):
    """Options that do not go together, or that no training run can have."""


@dataclass(frozen=True)
class Machine:
    """Where and how a stage is trained; nothing of it changes what a batch holds.

    Args:
        device: of the model, the pictures and the losses.
        dtype: of what tower, text encoder and language model compute. Weights, compressor, head
            and losses are float32 always.
        workers: processes that make batches; 0 for none but this one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    workers: int = 0

    @classmethod
    def of(
        cls, device: str | None = None, dtype: str | None = None, workers: int | None = None
    ) -> Machine:
        """A machine by its options, None for what suits it.

        The device is a GPU if there is one; a GPU computes in bfloat16 and has a worker for each
        core but one, a CPU in float32 and has none.

        Raises:
            DeviceError: no such device here.
            MachineError: another GPU than the first, an unknown dtype, negative workers.
        """
        chosen = device_of(device)
        if chosen.index:
            raise MachineError(
                f"training uses the first GPU it sees: set CUDA_VISIBLE_DEVICES={chosen.index} "
                "and say cuda"
            )
        gpu = chosen.type == "cuda"
        if dtype is not None and dtype not in DTYPES:
            raise MachineError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if workers is None:
            workers = max(1, cores() - 1) if gpu else 0
        if workers < 0:
            raise MachineError(f"workers must be at least 0, got {workers}")
        return cls(chosen, DTYPES[dtype or ("bfloat16" if gpu else "float32")], workers)

    def take(self, model: nn.Module) -> None:
        """Puts a model on the device, its large parts into the number format.

        Autocast is put around the forward of those parts alone, and what leaves them is float32:
        what lies between them need not know of it.
        """
        model.to(self.device)
        if self.dtype == torch.float32:
            return
        for name in ("visual", "text", "language_model"):
            part: Any = getattr(model, name, None)
            if part is not None:
                half = torch.autocast(self.device.type, self.dtype)(part.forward)
                part.forward = convert_outputs_to_fp32(half)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
