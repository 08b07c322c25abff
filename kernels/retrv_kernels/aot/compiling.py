"""Compiles what an op would launch and reads the machine code.

The op's own wrapper is called and Triton's own just-in-time path compiles for it, with its
specialisation (divisibility of pointers and strides by 16): no list of kernels, signatures or
options is kept that could go stale.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from retrv_kernels import registry
from retrv_kernels.aot.configurations import Configuration, size


@dataclass(frozen=True)
class Target:
    """A GPU.

    Args:
        shared: bytes of shared memory that a program may have.
    """

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int


TARGETS = (
    Target("sm_80", "cuda", 80, 32, 163 * 1024),
    Target("sm_90", "cuda", 90, 32, 227 * 1024),
    Target("sm_100", "cuda", 100, 32, 227 * 1024),
    Target("sm_120", "cuda", 120, 32, 99 * 1024),
    Target("gfx942", "hip", "gfx942", 64, 64 * 1024),
)


@dataclass(frozen=True)
class Code:
    """What the machine code of a kernel shows.

    Args:
        spills: bytes of stack a thread keeps, for registers that it has not.
        shared: bytes of shared memory.
        load: bytes of the widest load from global memory.
        products: the instructions of matrix products: none, mma, wgmma, tcgen05 or mfma.
        tf32: whether any rounds float32 to TF32.
    """

    registers: int
    spills: int
    shared: int
    load: int
    products: str
    tf32: bool


TRADED = 64
"""Bytes of stack that are no fault.

ptxas keeps some kernels to 64, 80 or 128 registers, for more threads at once, and puts a few values
on the stack; which ones changes with its version. paged_attention's float32 decode for sm_80 by
Triton 3.6: 64 registers and 8 bytes by itself, 88 registers and none where 128 are allowed.
"""


@dataclass(frozen=True)
class Compiled:
    """A kernel of a configuration for a target: its code, or why there is none."""

    op: str
    configuration: str
    kernel: str
    target: str
    limit: int
    code: Code | None
    error: str = ""

    @property
    def faults(self) -> list[str]:
        """What must not be."""
        if self.code is None:
            return [self.error]
        wrong = {
            f"spills {self.code.spills} bytes": self.code.spills > TRADED,
            f"shared memory over {self.limit} bytes": self.code.shared > self.limit,
        }
        return [fault for fault, is_so in wrong.items() if is_so]


@dataclass(frozen=True)
class _Driver:
    """As much of a Triton driver as compiling asks for, for a GPU that is not there."""

    target: Any
    number: int

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(configuration: Configuration, target: Target) -> tuple[list[Compiled], int]:
    """Every kernel that a call launches, compiled for a target; and the bytes that they move.

    The bytes are an estimate: each launch reads or writes each of its tensors once. What a kernel
    reads again comes out of a cache or does not; only a GPU can say.
    """
    # Here, so that the interpreter can be refused before Triton is loaded.
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    kernels, moved = [], configuration.gathered
    compile_kernel = JITFunction.run

    def launch(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        nonlocal moved
        moved += size(*(a for a in arguments if isinstance(a, Tensor)))
        code, error = None, ""
        try:
            code = _read(compile_kernel(function, *arguments, grid=grid, warmup=True, **options))
        except Exception as failure:  # of whatever kind: the table says which kernels fail
            error = f"{type(failure).__name__}: {failure}"
        names = configuration.op, configuration.name, function.__name__.lstrip("_"), target.name
        kernels.append(Compiled(*names, target.shared, code, error))

    # Triton keeps what it compiled by the device's number.
    gpu = GPUTarget(target.backend, target.arch, target.warp)
    driver.set_active(_Driver(gpu, TARGETS.index(target)))
    triton = next(one for one in registry.OPS[configuration.op] if one.name == "triton")
    with mock.patch.object(JITFunction, "run", launch):
        triton.run(*configuration.arguments)
    return kernels, moved


def _read(kernel: Any) -> Code:
    shared = kernel.metadata.shared
    return (_read_amd if "amdgcn" in kernel.asm else _read_nvidia)(kernel.asm, shared)


def _read_nvidia(asm: dict[str, Any], shared: int) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", file)
        text = _tool("nvdisasm", "-c", file)
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.E[.\w]*", text)
    wide = [int(bits) for load in loads for bits in re.findall(r"\.(64|128)\b", load)]
    kinds = {"tcgen05": r"\bUTC\w*MMA", "wgmma": r"\bHGMMA", "mma": r"\b[HI]MMA"}
    return Code(
        registers=_number(r"REG:(\d+)", usage),
        spills=_number(r"STACK:(\d+)", usage) or 4 * len(re.findall(r"\bSTL\b", text)),
        shared=shared,
        load=max(wide, default=32) // 8 if loads else 0,
        products=next((kind for kind, seen in kinds.items() if re.search(seen, text)), "none"),
        tf32="tf32" in asm["ptx"],
    )


def _read_amd(asm: dict[str, Any], shared: int) -> Code:
    text = asm["amdgcn"]
    loads = re.findall(r"\b(?:global|buffer)_load_(?:dwordx?(\d?)|\w+)", text)
    return Code(
        registers=_number(r"\.vgpr_count:\s+(\d+)", text),
        spills=4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        + _number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        shared=shared,
        load=max((4 * int(words or 1) for words in loads), default=0),
        products="mfma" if "v_mfma" in text else "none",
        tf32="xf32" in text,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in what the disassembler printed"
    return int(found[1])


def _tool(name: str, *arguments: str | os.PathLike[str]) -> str:
    """Output of one of the tools that Triton's wheel brings."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
