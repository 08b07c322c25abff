"""Checks that several ops share: what reaches an implementation is sound.

Shapes, dtypes and devices are checked by the public functions; values inside the operators, so
that compiled calls are checked too, and only on CPUs: there it costs next to nothing and stands
between a caller's mistake and a native kernel that reads past the end; on a GPU it would wait for
the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# float64 is for tests and gradcheck: it always runs the reference.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Raises ValueError unless ``tensor`` has these sizes; a name stands for any size."""
    fits = tensor.ndim == len(sizes) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, sizes))
        raise ValueError(f"{name} must be [{wanted}], not {list(tensor.shape)}")


def dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raises ValueError unless ``tensor`` has one of these dtypes."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(one).removeprefix("torch.") for one in allowed)
        raise ValueError(f"{name} must be one of {names}, not {tensor.dtype}")


def rows(name: str, tensor: Tensor, scales: Tensor | None) -> None:
    """Raises ValueError unless ``tensor`` is [n, d] of floats, or of int8 with scales [n]."""
    shape(name, tensor, "n", "d")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} must be [n, d] with d > 0, not {list(tensor.shape)}")
    if scales is None:
        if tensor.dtype == torch.int8:
            raise ValueError(f"{name} of int8 need a scale for each row")
        dtype(name, tensor, FLOATS)
        return
    dtype(name, tensor, (torch.int8,))
    shape(f"scales of {name}", scales, tensor.shape[0])
    dtype(f"scales of {name}", scales, (torch.float32, torch.float64))


def offsets(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless ``tensor`` is [m + 1] integers."""
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} must be [m + 1], not {list(tensor.shape)}")
    dtype(name, tensor, INTEGERS)


def rising(name: str, tensor: Tensor, total: int) -> None:
    """Raises ValueError unless ``tensor`` rises from 0 to ``total``."""
    found = values(tensor)
    if found is not None and (
        found[0] != 0 or found[-1] != total or (found[1:] < found[:-1]).any()
    ):
        raise ValueError(f"{name} must rise from 0 to {total}, not {brief(found)}")


def indices(name: str, tensor: Tensor, below: int) -> None:
    """Raises ValueError unless all of ``tensor`` is in [0, below)."""
    found = values(tensor)
    if found is not None:
        within(name, found, below)


def within(name: str, found: np.ndarray, below: int) -> None:
    """Raises ValueError unless all of these values are in [0, below)."""
    if found.size and not 0 <= found.min() <= found.max() < below:
        raise ValueError(f"{name} must be 0 or more and less than {below}, not {brief(found)}")


def not_negative(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is 0 or more."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more, not {value}")


def together(**tensors: Tensor | None) -> None:
    """Raises ValueError unless tensors are on one device, and float64 all or none of the floats."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, one = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.device != one.device:
            raise ValueError(
                f"{name} is on {tensor.device} and {first} on {one.device}: "
                f"give {name}.to({first}.device)"
            )
    wide = {t.dtype == torch.float64 for t in given.values() if t.is_floating_point()}
    if len(wide) == 2:
        raise ValueError(f"of {', '.join(given)} either all floats are float64 or none")


def detached(*tensors: Tensor | None) -> None:
    """Raises ValueError where a gradient is wanted of an op that has none."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError("this op has no gradient: call it under torch.no_grad(), or detach()")


def values(tensor: Tensor) -> np.ndarray | None:
    """What a tensor holds, where it can be looked at for nothing: on a CPU.

    By numpy, whose calls on a few numbers are cheaper than PyTorch's (docs/LOG.md).
    """
    return tensor.detach().numpy() if tensor.device.type == "cpu" else None


def brief(found: np.ndarray) -> str:
    """Values for a message, cut after eight."""
    first = found.ravel()[:8].tolist()
    return f"[{', '.join(map(str, first))}{', …' if found.size > 8 else ''}]"
