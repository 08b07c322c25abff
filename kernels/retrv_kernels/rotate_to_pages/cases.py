"""Inputs of rotate_to_pages, and the cases that every implementation must pass."""

from __future__ import annotations

from typing import Any

import torch

from retrv_kernels.inputs import Case, seeded, tolerance

TOLERANCE = tolerance(2e-6, 2e-3, 1.6e-2)
SMOKE = "norms_odd_width"
LARGE = ("rows_500",)


def make(
    name: str,
    rows: int,
    heads: tuple[int, int],
    width: int,
    *,
    page_size: int = 16,
    norms: bool = False,
    integers: torch.dtype = torch.int64,
) -> Case:
    """New rows with slots in random order; ``heads`` are those of queries and of the cache."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(rows, *heads, width)
        pages = -(-rows // page_size) + 2
        cache = torch.randn(2, pages, heads[1], page_size, width, generator=generator).to(dtype)
        keys, values = cache.transpose(2, 3)
        qkv = torch.randn(rows, heads[0] + 2 * heads[1], width, generator=generator)
        angles = torch.arange(rows)[:, None, None] * 10.0 ** -torch.linspace(0, 4, width // 2)
        sin, cos = angles.sin(), angles.cos()
        slots = torch.randperm(pages * page_size, generator=generator)[:rows]
        weights = torch.randn(2, width, generator=generator).to(dtype)
        return {
            "qkv": qkv.to(dtype),
            "cos": torch.cat([cos, cos], -1).to(dtype),
            "sin": torch.cat([-sin, sin], -1).to(dtype),
            "key_pages": keys,
            "value_pages": values,
            "slots": slots.to(integers),
            "heads": heads[0],
            "q_norm": weights[0] if norms else None,
            "k_norm": weights[1] if norms else None,
        }

    return Case(
        "rotate_to_pages",
        name,
        arguments,
        flops=4 * rows * sum(heads) * width,
        shape={"rows": rows, "heads": heads[0], "kv heads": heads[1], "d_h": width},
    )


CASES = (
    make("no_rows", 0, (4, 2), 16),
    *(make(f"width_{width}", 3, (4, 2), width) for width in (2, 8, 10, 64, 80, 128, 160)),
    make("norms", 5, (7, 1), 32, norms=True),
    make("norms_odd_width", 5, (3, 3), 18, norms=True, page_size=3),
    make("one_row", 1, (1, 1), 64, integers=torch.int32),
    make("rows_500", 500, (28, 4), 128, norms=True),
)
