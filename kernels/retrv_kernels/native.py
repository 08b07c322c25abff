"""The compiled module, and the instruction set that its kernels use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch  # first, so that the module shares torch's OpenMP runtime and threads

from retrv_kernels.availability import Availability
from retrv_kernels.selection import ISA, requested

ISAS = ("scalar", "avx2", "avx512")  # csrc/isa.h
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}  # csrc/dtype.h

_NAME = "retrv_kernels._native"


def check(device: str) -> Availability:
    """Whether native kernels can run on a device type.

    Raises:
        ImportError: the compiled module is installed but does not load.
        ValueError: the instruction set that the caller asks for cannot run here.
    """
    if device != "cpu":
        return Availability(False, f"compiled for CPUs, not for {device}")
    if find() is None:
        return Availability(
            False,
            "not compiled when this package was installed; install a C++ compiler, then this "
            "package again",
        )
    return Availability(True, f"compiled, {isa()}")


@functools.cache
def find() -> ModuleType | None:
    """The compiled module; None if it was not built.

    Raises:
        ImportError: the module is installed but does not load.
    """
    if importlib.util.find_spec(_NAME) is None:
        return None
    try:
        return importlib.import_module(_NAME)
    except ImportError as error:
        raise ImportError(
            f"{_NAME} is installed but does not load; reinstall it: {error}"
        ) from error


def function(op: str) -> Callable[..., None]:
    """The compiled function of an op, for the instruction set in use.

    Raises:
        ImportError: the module was compiled before the op was added.
    """
    return partial(constant(op), ISAS.index(isa()))


def constant(name: str) -> Any:
    """An attribute of the compiled module.

    Raises:
        ImportError: the module was compiled before the attribute was added.
    """
    try:
        return getattr(find(), name)
    except AttributeError:
        raise ImportError(f"{_NAME} is older than the sources: no {name}; reinstall it") from None


def lanes() -> int:
    """float32 lanes of a vector of the instruction set in use."""
    return constant("LANES")[ISAS.index(isa())]


def address(tensor: torch.Tensor | None) -> int:
    """Address of a tensor's first element; 0, a null pointer, for None."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def isas() -> tuple[str, ...]:
    """The instruction sets that were compiled in and can run here, weakest first."""
    module = find()
    return () if module is None else tuple(ISAS[index] for index in module.isas())


def isa() -> str:
    """The instruction set in use: the one that the caller asks for, or else the strongest.

    Raises:
        ValueError: `registry.use` or RETRV_KERNELS_ISA names one that cannot run here.
    """
    name = requested(ISA)
    if name is None:
        return isas()[-1]
    if name not in isas():
        raise ValueError(f"{ISA}={name!r} cannot run here: choose one of {', '.join(isas())}")
    return name
