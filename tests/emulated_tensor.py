"""Tensors that say they are on ``cuda:0`` while their memory is on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda", 0)
BASE = 1 << 56  # offset of device addresses from CPU addresses


class Mismatch(RuntimeError):
    """Tensors of two devices in an operation that takes those of one."""


class NotCapturable(RuntimeError):
    """An operation that cannot be captured in a CUDA graph."""


class Emulated(Tensor):
    """A tensor on the device; ``raw`` is the CPU tensor that holds its values."""

    raw: Tensor
    owner: Any
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor, owner: Any) -> Emulated:
        self = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=DEVICE,
        )
        self.raw, self.owner = raw, owner
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Emulated({self.raw})"

    def data_ptr(self) -> int:
        """Another address than on the CPU, so that caches keyed by CPU addresses do not match."""
        return self.raw.data_ptr() + BASE

    def __deepcopy__(self, memo: dict[int, Any]) -> Emulated:
        if id(self) not in memo:
            memo[id(self)] = Emulated(self.raw.clone(), self.owner)
        return memo[id(self)]

    # PyTorch's own versions ask a driver first.

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        if self.is_contiguous(memory_format=memory_format):
            return self
        return self.clone(memory_format=memory_format)

    def item(self) -> Any:
        self.owner.wait("a number read")
        return self.raw.item()

    def tolist(self) -> Any:
        self.owner.wait("a list read")
        return self.raw.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on cuda:0 cannot be an array of numpy")

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.to("cpu")

    def __getitem__(self, index: Any) -> Emulated:
        return self.owner.get(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.owner.set(self, index, value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        """Reached in other threads, where the device's mode is not active."""
        one = next(x for x in tensors_in((args, kwargs)) if isinstance(x, Emulated))
        return one.owner.dispatch(func, args, kwargs or {})


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for one in value for tensor in tensors_in(one)]


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with ``change`` applied to all its tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(change, one) for key, one in value.items()}
    if not isinstance(value, tuple | list):
        return value
    parts = [mapped(change, one) for one in value]
    return type(value)._make(parts) if hasattr(value, "_make") else type(value)(parts)


def raw_of(value: Any) -> Any:
    """The value with CPU tensors in place of those on the device."""
    return mapped(lambda x: x.raw if isinstance(x, Emulated) else x, value)
