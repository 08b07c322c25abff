"""The compiled module: whether it is there, and which of its instruction sets to use."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch  # first, so that the module finds torch's OpenMP runtime loaded and shares its threads

from retrv_kernels.availability import Availability
from retrv_kernels.selection import ISA, requested

ISAS = ("scalar", "avx2", "avx512")  # csrc/isa.h
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}  # csrc/dtype.h

_NAME = "retrv_kernels._native"


def check(device: str) -> Availability:
    """Whether native kernels can run on a device type.

    Raises:
        ImportError: the compiled module is there but does not load.
        ValueError: RETRV_KERNELS_ISA names an instruction set that cannot run here.
    """
    if device != "cpu":
        return Availability(False, f"compiled for CPUs, not for {device}")
    if find() is None:
        return Availability(
            False,
            "not compiled when this package was installed, for which a C++ compiler is needed; "
            "install one, then this package again",
        )
    return Availability(True, f"compiled, {isa()}")


@functools.cache
def find() -> ModuleType | None:
    """The compiled module, None where it was not built.

    Raises:
        ImportError: it is there but does not load.
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
    """The compiled function of an op; its first argument is the instruction set.

    Raises:
        ImportError: the module was compiled before the op was written.
    """
    return partial(constant(op), ISAS.index(isa()))


def constant(name: str) -> Any:
    """What the compiled module has by a name.

    Raises:
        ImportError: the module is older than that.
    """
    try:
        return getattr(find(), name)
    except AttributeError:
        raise ImportError(f"{_NAME} is older than the sources: no {name}; reinstall it") from None


def lanes() -> int:
    """Float32 numbers in a vector of the instruction set in use."""
    return constant("LANES")[ISAS.index(isa())]


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor's values begin, 0 for none: a null pointer."""
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def isas() -> tuple[str, ...]:
    """The instruction sets that were compiled in and can run here, weakest first."""
    module = find()
    return () if module is None else tuple(ISAS[index] for index in module.isas())


def isa() -> str:
    """The instruction set to use: the strongest, or the one that RETRV_KERNELS_ISA names.

    Raises:
        ValueError: RETRV_KERNELS_ISA names one that cannot run here.
    """
    wanted = requested(ISA)
    if not wanted:
        return isas()[-1]
    if wanted not in isas():
        raise ValueError(f"{ISA}={wanted!r} cannot run here; one of: {', '.join(isas())}")
    return wanted
