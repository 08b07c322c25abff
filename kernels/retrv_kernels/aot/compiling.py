"""Compiles the kernels that an op would launch and reads their machine code.

It calls the op's own function, and Triton's just-in-time path compiles with its own specialisation
(divisibility of pointers and strides by 16). So there is no list of kernels, signatures or options
that could become outdated.
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
    """A GPU to compile for.

    Args:
        backend: Triton's name of the compiler, "cuda" or "hip".
        arch: architecture: compute capability times 10, or AMD's name.
        warp: threads in a warp.
        shared: bytes of shared memory that a program may use.
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
class MachineCode:
    """Properties of a kernel's machine code.

    Args:
        registers: registers of a thread.
        spills: bytes of stack of a thread, for values that do not fit its registers.
        shared: bytes of shared memory.
        load: bytes of the widest load from global memory.
        products: instruction of matrix products: none, mma, wgmma, tcgen05 or mfma.
        tf32: whether a product rounds float32 to TF32.
    """

    registers: int
    spills: int
    shared: int
    load: int
    products: str
    tf32: bool


TOLERATED_SPILLS = 64
"""Bytes of stack that are not a fault.

ptxas limits some kernels to 64, 80 or 128 registers, to run more threads at once, and puts a few
values on the stack; which kernels changes with its version. With Triton 3.6, paged_attention's
float32 decode on sm_80 gets 64 registers and 8 bytes of stack; if 128 registers are allowed, it
gets 88 and no stack.
"""


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel of a configuration for a target: its machine code, or the compiler's error.

    Args:
        limit: bytes of shared memory that the target allows.
    """

    op: str
    configuration: str
    kernel: str
    target: str
    limit: int
    code: MachineCode | None
    error: str = ""

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        if self.code is None:
            return [self.error]
        wrong = {
            f"spills {self.code.spills} bytes": self.code.spills > TOLERATED_SPILLS,
            f"shared memory over {self.limit} bytes": self.code.shared > self.limit,
        }
        return [fault for fault, is_so in wrong.items() if is_so]


@dataclass(frozen=True)
class StubDriver:
    """The part of a Triton driver that compiling needs, for a GPU that is not present."""

    target: Any
    number: int

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_for(configuration: Configuration, target: Target) -> tuple[list[CompiledKernel], int]:
    """All kernels that a call launches, compiled for a target, and the bytes that they move.

    The bytes are an estimate: each launch reads or writes each of its tensors once. Whether what a
    kernel reads again comes from a cache, only a GPU can tell.
    """
    # Imported here, so that the command can refuse the interpreter before Triton is loaded.
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
        except Exception as failure:  # of any kind: the table shows which kernels fail
            error = f"{type(failure).__name__}: {failure}"
        names = configuration.op, configuration.name, function.__name__.lstrip("_"), target.name
        compiled = CompiledKernel(*names, target.shared, code, error)
        if compiled not in kernels:  # a loop launches the same one again
            kernels.append(compiled)

    # Triton caches compiled kernels by the device's number.
    gpu = GPUTarget(target.backend, target.arch, target.warp)
    driver.set_active(StubDriver(gpu, TARGETS.index(target)))
    triton = next(one for one in registry.OPS[configuration.op] if one.name == "triton")
    with mock.patch.object(JITFunction, "run", launch):
        triton.run(*configuration.arguments)
    return kernels, moved


def _read(kernel: Any) -> MachineCode:
    shared = kernel.metadata.shared
    return (_read_amd if "amdgcn" in kernel.asm else _read_nvidia)(kernel.asm, shared)


def _read_nvidia(asm: dict[str, Any], shared: int) -> MachineCode:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", file)
        text = _tool("nvdisasm", "-c", file)
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.E[.\w]*", text)
    wide = [int(bits) for load in loads for bits in re.findall(r"\.(64|128)\b", load)]
    kinds = {"tcgen05": r"\bUTC\w*MMA", "wgmma": r"\bHGMMA", "mma": r"\b[HI]MMA"}
    return MachineCode(
        registers=_number(r"REG:(\d+)", usage),
        spills=_number(r"STACK:(\d+)", usage) or 4 * len(re.findall(r"\bSTL\b", text)),
        shared=shared,
        load=max(wide, default=32) // 8 if loads else 0,
        products=next((kind for kind, seen in kinds.items() if re.search(seen, text)), "none"),
        tf32="tf32" in asm["ptx"],
    )


def _read_amd(asm: dict[str, Any], shared: int) -> MachineCode:
    text = asm["amdgcn"]
    loads = re.findall(r"\b(?:global|buffer)_load_(?:dwordx?(\d?)|\w+)", text)
    return MachineCode(
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
    assert found, f"no {pattern} in the output of the disassembler"
    return int(found[1])


def _tool(name: str, *arguments: str | os.PathLike[str]) -> str:
    """Output of a tool that Triton's wheel contains."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
