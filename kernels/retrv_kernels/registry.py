"""Which implementation of an op runs, and why.

An op is a folder: `reference.py` is the equation in plain PyTorch and always there; the others are
faster, each with a check that says whether it can run here. `OPS` lists them best first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retrv_kernels import native
from retrv_kernels.availability import Availability
from retrv_kernels.row_inverse_rms import native as native_row_inverse_rms
from retrv_kernels.row_inverse_rms import reference as reference_row_inverse_rms

OVERRIDE = "RETRV_KERNELS"


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Args:
        run: the function, with the arguments of the op in `ops.py`, already checked.
        check: whether it can run on a device type ("cpu", "cuda"), and why.
    """

    name: str
    run: Callable[..., Any]
    check: Callable[[str], Availability]


@dataclass(frozen=True)
class Choice:
    """What was chosen for an op on a device, why, and why the better ones were not."""

    op: str
    device: str
    implementation: Implementation
    because: str
    passed_over: Mapping[str, str]

    def __str__(self) -> str:
        rest = "".join(f"; not {name}: {reason}" for name, reason in self.passed_over.items())
        return f"{self.op} on {self.device}: {self.implementation.name} ({self.because}){rest}"


def _reference(run: Callable[..., Any]) -> Implementation:
    return Implementation("reference", run, lambda _: Availability(True, "plain PyTorch"))


OPS: Mapping[str, tuple[Implementation, ...]] = {
    "row_inverse_rms": (
        Implementation("native", native_row_inverse_rms.row_inverse_rms, native.check),
        _reference(reference_row_inverse_rms.row_inverse_rms),
    ),
}


def choose(op: str, device: str) -> Choice:
    """The best implementation of `op` that can run on a device type.

    The environment variable RETRV_KERNELS names the one to use where an op has it, for tests.

    Raises:
        ValueError: RETRV_KERNELS names no implementation of any op.
        RuntimeError: the one that it names cannot run here.
    """
    only = _override(op)
    passed_over: dict[str, str] = {}
    for implementation in OPS[op]:
        if only and implementation.name != only:
            passed_over[implementation.name] = f"{OVERRIDE}={only}"
        elif available := implementation.check(device):
            return Choice(op, device, implementation, available.reason, passed_over)
        else:
            passed_over[implementation.name] = available.reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise RuntimeError(f"no implementation of {op} can run on {device}: {reasons}")


def _override(op: str) -> str | None:
    """The implementation that the environment asks for, None where this op has no such one."""
    only = os.environ.get(OVERRIDE)
    if not only:
        return None
    known = {implementation.name for choices in OPS.values() for implementation in choices}
    if only not in known:
        raise ValueError(f"{OVERRIDE}={only!r} is not one of: {', '.join(sorted(known))}")
    return only if only in {implementation.name for implementation in OPS[op]} else None
