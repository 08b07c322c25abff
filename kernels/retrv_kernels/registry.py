"""Which implementation of an op runs, and why.

An op is a folder. `op.py` holds its public function and `reference.py` the equation in plain
PyTorch, which runs everywhere. The other implementations are faster; each has a check that says
whether it can run here. `OPS` lists them best first. A module is imported when it first runs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrv_kernels import gpu, native
from retrv_kernels.availability import Availability
from retrv_kernels.selection import IMPLEMENTATION, requested, use

__all__ = ["OPS", "Choice", "Implementation", "choose", "run", "use"]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op: the function with the op's name in a module of the op's folder.

    Args:
        check: function that says whether it can run on a device type ("cpu", "cuda"), and why.
        module: name of the module within the op's folder.
        conditional: whether it takes only some arguments: those that the module's ``accepts``,
            a function of the op's arguments, allows.
    """

    op: str
    name: str
    check: Callable[[str], Availability]
    module: str
    conditional: bool = False

    @functools.cached_property
    def run(self) -> Callable[..., Any]:
        """The function itself; it takes the operator's arguments and does not check them."""
        return getattr(self._module, self.op)

    def can_run(self, device: str, arguments: Sequence[Any] | None) -> Availability:
        """Whether it can run on a device type, with these arguments if given, and why."""
        available = self.check(device)
        if not available or not self.conditional:
            return available
        if arguments is None:
            return Availability(False, "only for some arguments")
        return self._module.accepts(*arguments)

    @functools.cached_property
    def _module(self) -> Any:
        return importlib.import_module(f"retrv_kernels.{self.op}.{self.module}")


@dataclass(frozen=True)
class Choice:
    """The implementation chosen for an op on a device type, and why the better ones were not."""

    op: str
    device: str
    implementation: Implementation
    because: str
    passed_over: Mapping[str, str]

    def __str__(self) -> str:
        rest = "".join(f"; not {name}: {reason}" for name, reason in self.passed_over.items())
        return f"{self.op} on {self.device}: {self.implementation.name} ({self.because}){rest}"


def _everywhere(_: str) -> Availability:
    return Availability(True, "plain PyTorch")


_KINDS: Mapping[str, tuple[Callable[[str], Availability], str]] = {
    "triton": (gpu.triton, "triton_impl"),
    "xformers": (gpu.xformers, "xformers_impl"),
    "native": (native.check, "native"),
    "reference": (_everywhere, "reference"),
}


def _implementations(op: str, *names: str) -> tuple[Implementation, ...]:
    """The named implementations of an op, best first, and its reference."""
    return tuple(
        Implementation(op, name, *_KINDS[name], conditional=name == "xformers")
        for name in (*names, "reference")
    )


OPS: Mapping[str, tuple[Implementation, ...]] = {
    "pool_tokens": _implementations("pool_tokens", "triton", "native"),
    "relate_tokens": _implementations("relate_tokens", "triton", "native"),
    "splice_features": _implementations("splice_features", "triton", "native"),
    # xFormers comes after Triton until both have been measured on a GPU.
    "paged_attention": _implementations("paged_attention", "triton", "xformers", "native"),
    "shared_prefix_attention": _implementations("shared_prefix_attention", "triton", "native"),
    # On a GPU PyTorch's product already reads the weights once, at the speed of the memory.
    "linear": _implementations("linear", "native"),
    # On a CPU decoder_layers runs few rows through all layers in one call instead.
    "add_rms_norm": _implementations("add_rms_norm", "triton"),
    "rotate_to_pages": _implementations("rotate_to_pages", "triton"),
    "silu_product": _implementations("silu_product", "triton"),
}


def choose(op: str, device: str, arguments: Sequence[Any] | None = None) -> Choice:
    """The best implementation of ``op`` that can run on a device type, with arguments if given.

    If `use`, or else the environment variable RETRV_KERNELS, names an implementation that the op
    has, only that one is considered.

    Raises:
        ValueError: no op has an implementation of that name.
        RuntimeError: the named implementation cannot run here.
    """
    only = _requested(op)
    passed_over: dict[str, str] = {}
    for implementation in OPS[op]:
        if only and implementation.name != only:
            passed_over[implementation.name] = f"{only} was asked for"
            continue
        if available := implementation.can_run(device, arguments):
            return Choice(op, device, implementation, available.reason, passed_over)
        passed_over[implementation.name] = available.reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise RuntimeError(f"no implementation of {op} can run on {device}: {reasons}")


def run(op: str, arguments: Sequence[Any]) -> Any:
    """Runs the best implementation for the arguments; for float64 always the reference."""
    tensors = list(_tensors(arguments))
    dtypes = [tensor.dtype for tensor in tensors]
    dtypes += [argument for argument in arguments if isinstance(argument, torch.dtype)]
    if torch.float64 in dtypes:
        return OPS[op][-1].run(*arguments)
    return choose(op, tensors[0].device.type, arguments).implementation.run(*arguments)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _requested(op: str) -> str | None:
    """The implementation that the caller asks for; None if there is none or the op lacks it."""
    name = requested(IMPLEMENTATION)
    if name is None:
        return None
    known = {implementation.name for choices in OPS.values() for implementation in choices}
    if name not in known:
        raise ValueError(
            f"no op has an implementation {name!r}: choose {', '.join(sorted(known))} "
            f"in registry.use or {IMPLEMENTATION}"
        )
    return name if name in {implementation.name for implementation in OPS[op]} else None
