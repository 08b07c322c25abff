"""Memory layout of a paged cache."""

from __future__ import annotations

from torch import Tensor


def with_equal_strides(key_pages: Tensor, value_pages: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with equal strides and contiguous columns; copied only if needed."""
    if key_pages.stride() == value_pages.stride() and key_pages.stride(3) == 1:
        return key_pages, value_pages
    return key_pages.contiguous(), value_pages.contiguous()
