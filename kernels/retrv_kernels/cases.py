"""The cases in which every implementation of an op must agree with float64, and how closely.

They are collected from ``<op>/cases.py``, which holds ``TOLERANCE``; ``make``, which makes a case
of any size; ``CASES``; ``SMOKE``, the name of one case; and ``LARGE``, the names of cases that
Triton's interpreter does not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from retrv_kernels import ops, registry
from retrv_kernels.inputs import Case

_MODULES = {op: import_module(f"retrv_kernels.{op}.cases") for op in registry.OPS}
CASES: tuple[Case, ...] = tuple(case for module in _MODULES.values() for case in module.CASES)
# Triton's interpreter takes seconds for what a GPU does in microseconds: it runs these only.
SMALL = tuple(case for case in CASES if case.name not in _MODULES[case.op].LARGE)
TOLERANCE: Mapping[str, Mapping[torch.dtype, float]] = {
    op: module.TOLERANCE for op, module in _MODULES.items()
}
# One case of each op, whose sizes fill no tile, vector or page, so that every mask is needed.
SMOKE = tuple(case for case in CASES if case.name == _MODULES[case.op].SMOKE)


def named(op: str, name: str) -> Case:
    """The case of an op with this name."""
    (case,) = (case for case in CASES if (case.op, case.name) == (op, name))
    return case


def written(op: str) -> tuple[str, ...]:
    """Names of the arguments that an op writes into."""
    schema = getattr(torch.ops.retrv_kernels, op).default._schema
    return tuple(argument.name for argument in schema.arguments if argument.is_write)


def result_of(op: str, arguments: Mapping[str, Any]) -> Any:
    """The result of an op, followed by copies of the arguments that it writes into."""
    own = {name: arguments[name].clone() for name in written(op)}
    out = getattr(ops, op)(**{**arguments, **own})
    return (out, *own.values()) if own else out


def expected_of(op: str, arguments: Mapping[str, Any]) -> Any:
    """The reference's result, in float64 unless the op must be exact."""
    wide = dict(arguments)
    if any(TOLERANCE[op].values()):
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                wide[name] = value.double()
    with registry.use("reference"):
        return result_of(op, wide)


def error_of(out: Any, expected: Any) -> float:
    """Largest error relative to the largest expected value, over one result or several.

    It is infinite, so that no tolerance allows it, where shapes differ or a value is NaN that
    should not be.
    """
    if not isinstance(out, Tensor):
        return max(error_of(*pair) for pair in zip(out, expected, strict=True))
    if out.shape != expected.shape:
        return float("inf")
    if out.numel() == 0:
        return 0.0
    exact = expected.detach().double()
    error, largest = (out.detach().double() - exact).abs().max(), exact.abs().max()
    if error == 0:
        return 0.0
    return float(error / largest) if error.isfinite() and largest > 0 else float("inf")
