"""Operations on all tensors of a batch, which is a tree of dicts and dataclasses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.model.modeling import PackedItems

T = TypeVar("T")


def map_tensors(value: T, change: Callable[[Any], Any], whole: tuple[type, ...] = ()) -> T:
    """A copy of a tree of dicts and dataclasses, with ``change`` of every tensor and array.

    Dataclasses in ``whole`` are given to ``change`` as they are. Lists and tuples stay: in a batch
    they hold numbers and names.
    """
    result: Any = value
    if isinstance(value, (Tensor, np.ndarray, *whole)):
        result = change(value)
    elif isinstance(value, dict):
        result = {key: map_tensors(part, change, whole) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        result = replace(value, **map_tensors(parts, change, whole))
    return result


def to_device(value: T, device: torch.device | str) -> T:
    """The same batch on a device; what is read on the CPU stays there."""

    def move(one: Tensor | PackedItems) -> Tensor | PackedItems:
        if isinstance(one, PackedItems):
            return one.to(device)
        return one.to(device, non_blocking=True)

    return map_tensors(value, move, (PackedItems,))


def to_arrays(value: T) -> T:
    """The same batch with NumPy arrays instead of CPU tensors.

    Processes send arrays as bytes. For tensors PyTorch would open a shared file each, about sixty
    per batch: sixteen workers with batches in reserve exceed the usual limit of 1,024 open files.
    """
    return map_tensors(value, Tensor.numpy)


def to_tensors(value: T) -> T:
    """The inverse of :func:`to_arrays`."""
    return map_tensors(value, torch.from_numpy)


def digest_of(module: nn.Module, *about: str) -> str:
    """A short hash of a module's weights and statistics, and of texts."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    for text in about:
        digest.update(text.encode())
    return digest.hexdigest()
