"""Where a model runs, and in which numbers it is read."""

from __future__ import annotations

import torch

from retrv_r1.types import DeviceError

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}


def device_of(device: str | torch.device | None = None) -> torch.device:
    """A device by name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; the first GPU or the CPU when None.

    Raises:
        DeviceError: there is no such device here; the message says what there is.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if found else "cpu"
    try:
        asked = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"no device is called {device!r}; say cpu, cuda or cuda:N") from error
    if asked.type == "cpu":
        return torch.device("cpu")
    if asked.type != "cuda":
        raise DeviceError(f"models run on cpu and cuda, not on {device}")
    number = asked.index or 0
    if number >= found:
        there = f"GPUs here: {found}" if found else "PyTorch can use no GPU here"
        raise DeviceError(f"no device {device}: {there}; say cpu, or leave the device out")
    return torch.device("cuda", number)


def dtype_of(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype that weights are read in; None for the one that the checkpoint's config names.

    The default of a CPU is float32: few have fast products of anything narrower. On a GPU a
    checkpoint keeps its own: bfloat16 of Qwen2.5-VL, float32 of ``tiny``, whose file holds float16
    to be small.

    Raises:
        DeviceError: a dtype that models are not read in.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DeviceError(f"weights are read as {', '.join(DTYPES)}, not as {name}")
    return DTYPES[name]


def check_weights(weights: str, device: torch.device) -> None:
    """Raises :class:`DeviceError` for rounded weights on a device that has no kernels for them."""
    if weights != "model" and device.type != "cpu":
        raise DeviceError(
            f"{weights} weights are for CPUs, not for {device}: choose the device cpu, or leave "
            "the weights as they are"
        )
