"""The command: compiles kernels, prints tables, and fails if a kernel has a fault."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retrv_kernels import gpu
from retrv_kernels.aot.compiling import TARGETS, CompiledKernel, compile_for
from retrv_kernels.aot.configurations import Configuration, configurations

NOTE = (
    "Compiled, never run: no evidence of speed or correctness on a GPU. The tables show what the "
    "compilers made of these shapes."
)
QUICK = ("sm_90", "gfx942")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a kernel does not compile, spills or needs too much shared memory."""
    parser = argparse.ArgumentParser(prog="python -m retrv_kernels.aot", description=NOTE)
    parser.add_argument("--quick", action="store_true", help="one shape of each op, two GPUs")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args(arguments)
    if os.environ.get(gpu.INTERPRETER) == "1":
        parser.error(f"{gpu.INTERPRETER}=1 replaces the compiler: unset it")
    if not (available := gpu.triton("cuda")):
        parser.error(f"triton is {available.reason}")
    targets = [target for target in TARGETS if not options.quick or target.name in QUICK]
    chosen = [one for one in configurations() if one.quick or not options.quick]
    # Progress goes to standard error, tables to standard output.
    progress = Console(stderr=True)
    kernels: list[CompiledKernel] = []
    moved: list[tuple[Configuration, int]] = []
    for number, configuration in enumerate(chosen, 1):
        for target in targets:
            step = f"{number} of {len(chosen)}: {configuration.op}, {configuration.name}"
            progress.print(f"{step}, {target.name}", highlight=False)
            compiled, bytes_moved = compile_for(configuration, target)
            kernels += compiled
        moved.append((configuration, bytes_moved))
    _print(kernels, moved, available.reason)
    if options.json:
        options.json.write_text(json.dumps(_record(kernels, moved), indent=1) + "\n")
    return int(any(kernel.faults for kernel in kernels))


def _print(
    kernels: Sequence[CompiledKernel], moved: Sequence[tuple[Configuration, int]], compiler: str
) -> None:
    # A file gets the full width of the table.
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(f"{NOTE} Compiler: {compiler}.")
    table = Table("op", "configuration", "kernel", "target", title="Machine code")
    for heading in ("registers", "spills", "shared", "limit", "load", "products", "TF32"):
        table.add_column(heading, justify="right")
    table.add_column("faults")
    for one in kernels:
        cells = [one.op, one.configuration, one.kernel, one.target]
        if code := one.code:
            numbers = code.registers, code.spills, code.shared, one.limit, code.load
            cells += [*(f"{number:,}" for number in numbers), code.products]
            cells.append("yes" if code.tf32 else "no")
        else:
            cells += [""] * 7
        table.add_row(*cells, "; ".join(one.faults))
    console.print(table)
    traffic = Table("op", "configuration", title="Bytes moved, each tensor once for each launch")
    for heading in ("least MB", "MB moved", "ratio"):
        traffic.add_column(heading, justify="right")
    for call, total in moved:
        figures = call.least / 1e6, total / 1e6, total / call.least
        traffic.add_row(call.op, call.name, *(f"{figure:.2f}" for figure in figures))
    console.print(traffic)


def _record(
    kernels: Sequence[CompiledKernel], moved: Sequence[tuple[Configuration, int]]
) -> dict[str, Any]:
    return {
        "note": NOTE,
        "kernels": [asdict(one) | {"faults": one.faults} for one in kernels],
        "traffic": [
            {"op": one.op, "configuration": one.name, "least": one.least, "moved": total}
            for one, total in moved
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
