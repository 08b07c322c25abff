"""Each op once on a small awkward case, for a memory checker: ``python -m retrv_kernels.smoke``."""

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


def moved(value: Any, device: str) -> Any:
    """Tensors on a device, in lists too."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list) and any(isinstance(one, Tensor) for one in value):
        return [moved(one, device) for one in value]
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is chosen on a device; prints a line an op, returns 1 if any is wrong.

    On a GPU an op that has a Triton form must run it.
    """
    parser = argparse.ArgumentParser(prog="python -m retrv_kernels.smoke", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args(arguments).device
    right = True
    with _poisoned():
        for case in SMOKE:
            try:
                line, fits = _run(case, device)
            except Exception as failure:  # of whatever kind: the other ops are run all the same
                line, fits = f"{type(failure).__name__}: {failure}", False
            print(f"{'ok' if fits else 'WRONG':6}{case}: {line}", flush=True)
            right &= fits
    return int(not right)


def _run(case: Case, device: str) -> tuple[str, bool]:
    """What ran, with its errors and the tolerances, and whether all is well."""
    chosen = registry.choose(case.op, torch.device(device).type).implementation.name
    best = registry.OPS[case.op][0].name
    fits = device == "cpu" or best != "triton" or chosen == "triton"
    parts = [f"{chosen} on {device}"]
    for dtype in (torch.float32, torch.bfloat16):
        given = case.arguments(dtype)
        found = result_of(case.op, {name: moved(value, device) for name, value in given.items()})
        found = tuple(one.cpu() for one in found) if isinstance(found, tuple) else found.cpu()
        error, bound = error_of(found, expected_of(case.op, given)), TOLERANCE[case.op][dtype]
        fits &= error <= bound
        parts.append(f"{str(dtype).removeprefix('torch.')} {error:.1e} of {bound:.1e}")
    return ", ".join(parts), fits


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an element that is never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings(action="ignore"):  # of what PyTorch cannot do deterministically
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


if __name__ == "__main__":
    sys.exit(main())
