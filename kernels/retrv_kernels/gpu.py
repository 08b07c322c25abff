"""Whether Triton and xFormers kernels can run here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os

from retrv_kernels.availability import Availability
from retrv_kernels.extras import install_command
from retrv_kernels.selection import IMPLEMENTATION, requested

INTERPRETER = "TRITON_INTERPRET"


def triton(device: str) -> Availability:
    """Whether Triton kernels can run on a device type.

    On a CPU they run only in Triton's interpreter, which is for tests (milliseconds a program), and
    only if `registry.use` or RETRV_KERNELS names "triton".

    Raises:
        ImportError: Triton is installed but does not load.
    """
    if device not in ("cuda", "cpu"):
        return Availability(False, f"for GPUs, not for {device}")
    if device == "cpu" and os.environ.get(INTERPRETER) != "1":
        return Availability(False, f"for GPUs; on a CPU it needs {INTERPRETER}=1")
    if device == "cpu" and requested(IMPLEMENTATION) != "triton":
        return Availability(
            False, f"on a CPU it is interpreted, and only with {IMPLEMENTATION}=triton"
        )
    return _installed("triton", "gpu", ", interpreted" if device == "cpu" else "")


def xformers(device: str) -> Availability:
    """Whether xFormers' kernels can run on a device type.

    Raises:
        ImportError: xFormers is installed but does not load.
    """
    if device != "cuda":
        return Availability(False, f"for GPUs, not for {device}")
    return _installed("xformers", "xformers")


def _installed(package: str, extra: str, suffix: str = "") -> Availability:
    """Whether a package of an extra is installed; its version and ``suffix`` are the reason."""
    version = _version(package)
    if version is None:
        return Availability(False, f"not installed: {install_command(extra)}")
    return Availability(True, f"{package} {version}{suffix}")


@functools.cache
def _version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.import_module(package).__version__
    except ImportError as error:
        raise ImportError(
            f"{package} is installed but does not load; reinstall it: {error}"
        ) from error
