"""Batches are trees of dicts and dataclasses around tensors; what is done to all their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.modeling import PackedItems

T = TypeVar("T")


def mapped(value: T, change: Callable[[Any], Any], whole: tuple[type, ...] = ()) -> T:
    """The same dicts and dataclasses with every tensor and array in them changed.

    Lists and tuples are left as they are: those of a batch hold numbers and names.

    Args:
        whole: dataclasses that ``change`` is given as they are.
    """
    result: Any = value
    if isinstance(value, (Tensor, np.ndarray, *whole)):
        result = change(value)
    elif isinstance(value, dict):
        result = {key: mapped(part, change, whole) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        result = replace(value, **mapped(parts, change, whole))
    return result


def to_device(value: T, device: torch.device | str) -> T:
    """The same on a device, as far as it is read there."""

    def move(one: Tensor | PackedItems) -> Tensor | PackedItems:
        if isinstance(one, PackedItems):
            return one.to(device)
        return one.to(device, non_blocking=True)

    return mapped(value, move, (PackedItems,))


def to_arrays(value: T) -> T:
    """The same with NumPy arrays for CPU tensors.

    Between processes arrays travel as bytes; PyTorch would open a shared file for each tensor,
    some sixty a batch, and sixteen workers with batches in reserve pass a system's usual limit of
    1,024 open files.
    """
    return mapped(value, Tensor.numpy)


def to_tensors(value: T) -> T:
    """What :func:`to_arrays` was given."""
    return mapped(value, torch.from_numpy)
