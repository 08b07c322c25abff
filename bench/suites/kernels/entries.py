"""What the trials of all operations share: models, and the entries of an operation."""

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
# What can be a speed on a device: Triton on a CPU is its interpreter, which is none.
_RUNS = {"cpu": ("native", "reference"), "cuda": ("triton", "xformers", "reference")}


@dataclass(frozen=True)
class Context:
    """Where trials run, and in which dtype.

    Args:
        rate: FLOP/s of products in that dtype.
        compiling: seconds that a peer's compiler may take; 0 for any number, None for no peer that
            has to be compiled.
    """

    device: str
    rate: float
    dtype: torch.dtype = torch.float32
    compiling: float | None = 0.0

    @classmethod
    def of(cls, device: str, rate: float) -> Context:
        """As each device runs models: a GPU in bfloat16, where a compiler may take 20 s."""
        return cls(device, rate, torch.bfloat16, 20) if device == "cuda" else cls(device, rate)

    @property
    def form(self) -> str:
        """Name of the dtype."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Model:
    """Widths of rows and relation keys; heads of query and cache, and their width."""

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
    """An op through its public function."""
    return getattr(ops, op)(**arguments)


def ours(op: str, device: str, run: Callable[[], Result], reference: str) -> list[Entry]:
    """An entry for every implementation of an op that belongs to the device.

    Args:
        run: calls the op through its public function, which follows the environment.
        reference: what the plain form is called here; it is a baseline.
    """
    entries = []
    for implementation in registry.OPS[op]:
        name = implementation.name
        if name not in _RUNS[device]:
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
        optional = name == "xformers"  # takes only some shapes
        entries.append(Entry(name, run, chosen, optional=optional, because=because))
        if "avx2" in isas[:-1]:
            entries.append(Entry("native, avx2", run, partial(registry.use, name, isa="avx2")))
    return entries


def compiled(name: str, run: Callable[[], Result], context: Context, because: str = "") -> Entry:
    """An entry whose ``run`` calls what torch.compile made, which its first call compiles."""
    if context.compiling is None:
        because = because or UNCOMPILED
    return Entry(name, run, optional=True, because=because, limit=context.compiling or 0)


def copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, their tensors in other memory and laid out with_equal_strides."""

    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(one) for one in value]
        return value.clone() if isinstance(value, Tensor) else value

    return {name: copy(value) for name, value in arguments.items()}


def moved(arguments: Mapping[str, Any], to: str | torch.dtype) -> dict[str, Any]:
    """Arguments with their tensors on a device, or their floats in a dtype."""

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        return value.to(to) if value.is_floating_point() or isinstance(to, str) else value

    return {name: move(value) for name, value in arguments.items()}
