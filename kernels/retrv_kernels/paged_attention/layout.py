"""How a paged cache lies in memory."""

from __future__ import annotations

from torch import Tensor


def alike(key_pages: Tensor, value_pages: Tensor) -> tuple[Tensor, Tensor]:
    """The two caches with equal strides and columns next to one another; copied only if not."""
    if key_pages.stride() == value_pages.stride() and key_pages.stride(3) == 1:
        return key_pages, value_pages
    return key_pages.contiguous(), value_pages.contiguous()
