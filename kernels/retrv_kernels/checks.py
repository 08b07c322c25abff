"""Checks that several ops share: what reaches an implementation is sound.

Values are read only on CPUs: there it costs next to nothing and stands between a caller's mistake
and a native kernel that reads past the end; on a GPU it would wait for the device.
"""

from __future__ import annotations

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


def offsets(name: str, tensor: Tensor, total: int) -> None:
    """Raises ValueError unless ``tensor`` [m + 1] rises from 0 to ``total``."""
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} must be [m + 1], not {list(tensor.shape)}")
    dtype(name, tensor, INTEGERS)
    if readable(tensor) and (
        tensor[0] != 0 or tensor[-1] != total or bool((tensor.diff() < 0).any())
    ):
        raise ValueError(f"{name} must rise from 0 to {total}, not {brief(tensor)}")


def indices(name: str, tensor: Tensor, below: int) -> None:
    """Raises ValueError unless all of ``tensor`` is in [0, below)."""
    dtype(name, tensor, INTEGERS)
    if readable(tensor) and tensor.numel() and not 0 <= tensor.min() <= tensor.max() < below:
        raise ValueError(f"{name} must be 0 or more and less than {below}, not {brief(tensor)}")


def finite(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is 0 or more."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more, not {value}")


def readable(tensor: Tensor) -> bool:
    """Whether the values can be looked at for nothing: on a CPU, and not while compiling."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def brief(tensor: Tensor) -> str:
    """A tensor's values for a message, cut after eight."""
    values = tensor.flatten().tolist()
    return f"[{', '.join(map(str, values[:8]))}{', …' if len(values) > 8 else ''}]"
