"""Inputs of splice_features, and the cases that every implementation must pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from retrv_kernels.inputs import Case, quantized, seeded, tolerance
from retrv_kernels.splice_features.op import Span

TOLERANCE = tolerance(0, 0, 0)
SMOKE = "stores"
LARGE: tuple[str, ...] = ()


def make(
    name: str,
    stores: Sequence[tuple[int, bool]],
    spans: Sequence[Span],
    width: int,
    *,
    page_size: int = 16,
    pages: tuple[int, int] = (4, 64),
) -> Case:
    """Stores given as (rows, int8?); the first one is the embedding table."""

    def arguments(dtype: torch.dtype) -> dict[str, Any]:
        generator = seeded(len(spans), width, page_size)
        made = [
            quantized(torch.randn(rows, width, generator=generator), dtype, int8)
            for rows, int8 in stores
        ]
        count = pages[0] * pages[1]
        return {
            "stores": [rows for rows, _ in made],
            "spans": list(spans),
            "page_table": torch.randperm(count, generator=generator).view(pages).int(),
            "page_size": page_size,
            "scales": [scales for _, scales in made],
        }

    rows = sum(span.length for span in spans)
    return Case(
        "splice_features", name, arguments, shape={"spans": len(spans), "rows": rows, "d": width}
    )


WRAPPED = (
    Span(0, 5, 1, 40, 0, 2, 30),
    Span(1, 3, 12, 41, 4, 2, 31),
    Span(0, 6, 1, 45, 0, 2, 43),
    Span(0, 5, 1, 7, 0, 0, 15),
    Span(2, 0, 9, 8, 3, 0, 16),
    Span(0, 9, 3, 11, 0, 0, 25),
)
CUT = (
    Span(1, 3, 5, 41, 4, 2, 31),
    Span(1, 8, 1, 41, 4, 2, 36, 5),
    Span(1, 9, 6, 41, 4, 2, 37, 6),
    Span(0, 2, 3, 7, 0, 1, 20, 4),
)
CASES = (
    make("no_spans", [(12, False)], [], 40),
    make("one_row", [(12, False)], [Span(0, 3, 1, 9, 0, 1, 700)], 7),
    make("stores", [(12, False), (30, False), (9, True)], WRAPPED, 33),
    make("cut_spans", [(12, False), (30, False)], CUT, 33),
    make("wide", [(12, False), (300, True), (9, False)], WRAPPED, 2048, page_size=5),
)
