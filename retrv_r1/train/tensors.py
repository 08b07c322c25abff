"""Batches are trees of dicts and dataclasses around tensors; what is done to all their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def mapped(value: T, change: Callable[[Any], Any]) -> T:
    """The same dicts and dataclasses with every tensor and array in them changed.

    Lists and tuples are left as they are: those of a batch hold numbers and names.
    """
    result: Any = value
    if isinstance(value, Tensor | np.ndarray):
        result = change(value)
    elif isinstance(value, dict):
        result = {key: mapped(part, change) for key, part in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        result = replace(value, **mapped(parts, change))
    return result


def to_device(value: T, device: torch.device | str) -> T:
    """The same with every tensor on a device; copies to a GPU are not waited for."""
    return mapped(value, lambda tensor: tensor.to(device, non_blocking=True))


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
