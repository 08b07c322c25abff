"""The answer of an availability check."""

from __future__ import annotations

from dataclasses import dataclass

OVERRIDE = "RETRV_KERNELS"  # names the implementation to use


@dataclass(frozen=True)
class Availability:
    """Whether something can be used, and the reason either way; true where it can."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok
