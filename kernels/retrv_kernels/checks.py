"""Checks of arguments that several ops share.

The public functions check shapes, dtypes and devices. The operators check values, so that compiled
calls are checked too. They do so only on CPUs, where it takes next to no time and keeps a native
kernel from reading past the end; on a GPU it would wait for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# float64 is for tests and gradcheck; it always runs the reference.
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Raises ValueError unless ``tensor`` has these sizes; a string allows any size."""
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
    """Raises ValueError unless ``tensor`` is floats [n, d], or int8 [n, d] with scales [n]."""
    shape(name, tensor, "n", "d")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} must be [n, d] with d > 0, not {list(tensor.shape)}")
    if scales is None:
        if tensor.dtype == torch.int8:
            raise ValueError(f"int8 {name} need scales, one for each row")
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


def ascending(name: str, tensor: Tensor, total: int) -> None:
    """Raises ValueError unless ``tensor`` starts at 0, ends at ``total`` and never falls."""
    found = cpu_values(tensor)
    if found is not None and (
        found[0] != 0 or found[-1] != total or (found[1:] < found[:-1]).any()
    ):
        raise ValueError(
            f"{name} must start at 0, end at {total} and never fall, not {shortened(found)}"
        )


def indices(name: str, tensor: Tensor, below: int) -> None:
    """Raises ValueError unless all values of ``tensor`` are in [0, below)."""
    found = cpu_values(tensor)
    if found is not None:
        in_range(name, found, below)


def in_range(name: str, found: np.ndarray, below: int) -> None:
    """Raises ValueError unless all of ``found`` is in [0, below)."""
    if found.size and not 0 <= found.min() <= found.max() < below:
        raise ValueError(f"{name} must be 0 or more and less than {below}, not {shortened(found)}")


def not_negative(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is 0 or more."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 or more, not {value}")


def compatible(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are on one device, and all or none are float64.

    Tensors of integers may accompany float64.
    """
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
        raise ValueError(f"{', '.join(given)}: either all floats must be float64 or none")


def no_gradient(*tensors: Tensor | None) -> None:
    """Raises ValueError if a tensor needs a gradient, for ops that have none."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError("this op has no gradient: call it under torch.no_grad(), or detach()")


def cpu_values(tensor: Tensor) -> np.ndarray | None:
    """The values of a tensor on a CPU; None for other devices, where reading them would wait.

    NumPy's calls on a few numbers take less time than PyTorch's (docs/LOG.md).
    """
    return tensor.detach().numpy() if tensor.device.type == "cpu" else None


def shortened(found: np.ndarray) -> str:
    """The first eight values, for a message."""
    first = found.ravel()[:8].tolist()
    return f"[{', '.join(map(str, first))}{', …' if found.size > 8 else ''}]"
