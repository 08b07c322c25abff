"""Which implementation a caller asks for: by `use`, or else by environment variables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

IMPLEMENTATION = "RETRV_KERNELS"  # name of an implementation
ISA = "RETRV_KERNELS_ISA"  # name of an instruction set for the native one

_used: ContextVar[Mapping[str, str]] = ContextVar("used", default=MappingProxyType({}))


@contextmanager
def use(implementation: str, *, isa: str | None = None) -> Iterator[None]:
    """Runs one implementation of every op that has it, whatever the environment asks for.

    It holds for calls made in this thread (or asyncio task) until the block ends, not in threads
    that start inside. Compiled functions follow it too: enter it around the call, not inside the
    function. `PreparedLinear` and `ops.unchecked` choose once, when they are called.

    Args:
        implementation: "reference", "native", "triton" or "xformers"; ops without it run their
            best one. Triton on a CPU also needs TRITON_INTERPRET=1.
        isa: instruction set of native kernels, "scalar", "avx2" or "avx512"; if None, the one of
            RETRV_KERNELS_ISA or else the strongest.

    Raises:
        ValueError, RuntimeError: a call inside, if there is no such implementation or it cannot
            run here.
    """
    asked = {IMPLEMENTATION: implementation} | ({ISA: isa} if isa else {})
    token = _used.set({**_used.get(), **asked})
    try:
        yield
    finally:
        _used.reset(token)


def requested(variable: str) -> str | None:
    """The choice made by `use`, or else by the environment variable; None if there is neither."""
    return _used.get().get(variable) or os.environ.get(variable) or None
