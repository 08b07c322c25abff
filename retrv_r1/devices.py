"""Device of a model and dtype of its weights, from what a caller says."""

from __future__ import annotations

import torch

from retrv_r1.types import DeviceError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}


def device_of(device: str | torch.device | None = None) -> torch.device:
    """A device by name (``"cpu"``, ``"cuda"``, ``"cuda:1"``); None: the first GPU, else the CPU.

    Raises:
        DeviceError: there is no such device here; the message says which there are.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if found else "cpu"
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"no device is called {device!r}; use cpu, cuda or cuda:N") from error
    if asked.type == "cpu":
        return torch.device("cpu")
    if asked.type != "cuda":
        raise DeviceError(f"models run on cpu or cuda, not on {device}")
    number = asked.index or 0
    if number >= found:
        there = f"GPUs here: {found}" if found else "PyTorch can use no GPU here"
        raise DeviceError(f"no device {device}: {there}; use cpu, or leave the device out")
    return torch.device("cuda", number)


def dtype_of(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype to load weights in; None for the one that the checkpoint's config names.

    The default on a CPU is float32, because few CPUs multiply narrower numbers fast. On a GPU a
    checkpoint keeps its own: bfloat16 for Qwen2.5-VL, float32 for ``tiny``, whose file holds
    float16 to be small.

    float64 is for comparisons: it runs slowly, in reference kernels.

    Raises:
        DeviceError: another dtype than those of ``DTYPES``, or float64 on a GPU.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DeviceError(f"the dtype must be one of {', '.join(DTYPES)}, not {name}")
    if name == "float64" and device.type != "cpu":
        raise DeviceError(f"float64 runs on cpu only, not on {device}; use float32")
    return DTYPES[name]


def check_weights(weights: str, device: torch.device) -> None:
    """Raises :class:`DeviceError` for rounded weights on a device without kernels for them."""
    if weights != "model" and device.type != "cpu":
        raise DeviceError(
            f"{weights} weights need a CPU, not {device}: use the device cpu, or leave the weights "
            "as they are"
        )
