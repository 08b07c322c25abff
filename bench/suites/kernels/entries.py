"""What the trials of all operations share: models and entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import Entry, Result
from retrv_kernels import native, ops, registry

UNCOMPILED = "left out: compiling takes longer than there is time"
# Implementations that are timed on a device; on a CPU Triton only has its interpreter.
_TIMED = {"cpu": ("native", "reference"), "cuda": ("triton", "xformers", "reference")}


@dataclass(frozen=True)
class Context:
    """The device on which trials run, and the dtype.

    Args:
        device: "cpu" or "cuda".
        rate: FLOP/s of products in the dtype.
        dtype: dtype of the floats.
        compiling: seconds that a peer may take to compile; 0 for no limit, None to leave out peers
            that must be compiled.
    """

    device: str
    rate: float
    dtype: torch.dtype = torch.float32
    compiling: float | None = 0.0

    @classmethod
    def of(cls, device: str, rate: float) -> Context:
        """The usual context of a device; on a GPU bfloat16, and 20 s for a peer to compile."""
        return cls(device, rate, torch.bfloat16, 20) if device == "cuda" else cls(device, rate)

    @property
    def dtype_name(self) -> str:
        """Name of the dtype."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Model:
    """Sizes of a model.

    Args:
        d: width of a row.
        w: width of a relation key.
        heads: number of heads of queries and of the cache.
        d_h: width of a head.
    """

    name: str
    d: int
    w: int
    heads: tuple[int, int]
    d_h: int = 128


TINY = Model("tiny", 192, 48, (3, 3), 64)
QWEN_3B = Model("3B", 2048, 512, (16, 2))
QWEN_7B = Model("7B", 3584, 896, (28, 4))
MULTI_HEAD = Model("multi-head", 2048, 512, (16, 16))


def call(op: str, arguments: Mapping[str, Any]) -> Any:
    """Calls the public function of an op."""
    return getattr(ops, op)(**arguments)


def implementations(
    op: str, device: str, run: Callable[[], Result], reference: str = "reference"
) -> list[Entry]:
    """An entry for each implementation of an op that is timed on the device.

    Args:
        run: calls the op by its public function.
        reference: name of the reference's entry, which is a baseline.
    """
    entries = []
    for implementation in registry.OPS[op]:
        name = implementation.name
        if name not in _TIMED[device]:
            continue
        chosen = partial(registry.use, name)
        if name == "reference":
            entries.append(Entry(reference, run, chosen, baseline=True))
            continue
        available = implementation.check(device)
        because = "" if available else available.reason
        isas = native.isas() if name == "native" else ()
        if isas:
            chosen = partial(registry.use, name, isa=isas[-1])
        optional = name == "xformers"  # it supports only some shapes
        entries.append(Entry(name, run, chosen, optional=optional, because=because))
        if "avx2" in isas[:-1]:
            entries.append(Entry("native, avx2", run, partial(registry.use, name, isa="avx2")))
    return entries


def compiled(name: str, run: Callable[[], Result], context: Context, because: str = "") -> Entry:
    """An entry for a function from torch.compile, which the first call compiles."""
    if context.compiling is None:
        because = because or UNCOMPILED
    return Entry(name, run, optional=True, because=because, limit=context.compiling or 0)


def copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with copied tensors, which keep their strides."""

    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(one) for one in value]
        return value.clone() if isinstance(value, Tensor) else value

    return {name: copy(value) for name, value in arguments.items()}


def converted(arguments: Mapping[str, Any], to: str | torch.dtype) -> dict[str, Any]:
    """Arguments with tensors on another device, or with floats in another dtype."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        return value.to(to) if value.is_floating_point() or isinstance(to, str) else value

    return {name: move(value) for name, value in arguments.items()}
