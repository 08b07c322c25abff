"""Runs each op once on a small case, for a memory checker: ``python -m retrv_kernels.smoke``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from retrv_kernels import registry
from retrv_kernels.cases import SMOKE, TOLERANCE, error_of, expected_of, result_of
from retrv_kernels.inputs import Case


def to_device(value: Any, device: str) -> Any:
    """A tensor or a list of tensors on a device; other values as they are."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list) and any(isinstance(one, Tensor) for one in value):
        return [to_device(one, device) for one in value]
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every op on a device and prints a line for each; returns 1 if one is wrong.

    On a GPU an op is also wrong if it has a Triton kernel but does not run it.
    """
    parser = argparse.ArgumentParser(prog="python -m retrv_kernels.smoke", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args(arguments).device
    right = True
    with _poisoned():
        for case in SMOKE:
            try:
                line, fits = _run(case, device)
            except Exception as failure:  # of any kind: the other ops are still run
                line, fits = f"{type(failure).__name__}: {failure}", False
            print(f"{'ok' if fits else 'WRONG':6}{case}: {line}", flush=True)
            right &= fits
    return int(not right)


def _run(case: Case, device: str) -> tuple[str, bool]:
    """The implementation that ran with its errors and tolerances, and whether it is right."""
    chosen = registry.choose(case.op, torch.device(device).type).implementation.name
    best = registry.OPS[case.op][0].name
    fits = device == "cpu" or best != "triton" or chosen == "triton"
    parts = [f"{chosen} on {device}"]
    for dtype in (torch.float32, torch.bfloat16):
        given = case.arguments(dtype)
        found = result_of(
            case.op, {name: to_device(value, device) for name, value in given.items()}
        )
        found = tuple(one.cpu() for one in found) if isinstance(found, tuple) else found.cpu()
        error, bound = error_of(found, expected_of(case.op, given)), TOLERANCE[case.op][dtype]
        fits &= error <= bound
        parts.append(f"{str(dtype).removeprefix('torch.')} {error:.1e} of {bound:.1e}")
    return ", ".join(parts), fits


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Makes `torch.empty` return NaN, so that an element that is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings(action="ignore"):  # about what PyTorch cannot do deterministically
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


if __name__ == "__main__":
    sys.exit(main())
