"""Cases in which every implementation of an op must agree with float64, and what agreeing is.

A tolerance belongs to an op and a dtype. It bounds the largest error against the reference in
float64 on the same rounded inputs, relative to the largest expected value: it is what the
arithmetic may lose, not what the storage lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from retrv_kernels import ops, registry
from retrv_kernels.inputs import (
    Case,
    add_rms_norm,
    linear,
    paged_attention,
    pool_tokens,
    relate_tokens,
    rotate_to_pages,
    shared_prefix_attention,
    silu_product,
    splice_features,
)
from retrv_kernels.splice_features.op import Span

TOLERANCE: Mapping[str, Mapping[torch.dtype, float]] = {
    "pool_tokens": {torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5},
    "relate_tokens": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "splice_features": {torch.float32: 0, torch.float16: 0, torch.bfloat16: 0},
    "paged_attention": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "shared_prefix_attention": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "linear": {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "add_rms_norm": {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "rotate_to_pages": {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    "silu_product": {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
}
# Arguments that an op writes into.
WRITTEN: Mapping[str, tuple[str, ...]] = {"rotate_to_pages": ("key_pages", "value_pages")}


def result_of(op: str, arguments: Mapping[str, Any]) -> Any:
    """What an op returns and, behind it, copies of the arguments that it writes into."""
    own = {name: arguments[name].clone() for name in WRITTEN.get(op, ())}
    out = getattr(ops, op)(**{**arguments, **own})
    return (out, *own.values()) if own else out


def expected_of(op: str, arguments: Mapping[str, Any]) -> Any:
    """The reference's result, in float64 where arithmetic can lose anything."""
    wide = dict(arguments)
    if op != "splice_features":  # a gather: exact in any dtype
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                wide[name] = value.double()
    with patch.dict(os.environ, {registry.OVERRIDE: "reference"}):
        return result_of(op, wide)


def error_of(out: Any, expected: Any) -> float:
    """Largest error relative to the largest expected value, over one result or several.

    Infinite where a value is NaN that should not be, or shapes differ: no tolerance lets it pass.
    """
    if not isinstance(out, Tensor):
        return max(error_of(*pair) for pair in zip(out, expected, strict=True))
    if out.shape != expected.shape:
        return float("inf")
    if out.numel() == 0:
        return 0.0
    exact = expected.detach().double()
    error, largest = (out.detach().double() - exact).abs().max(), exact.abs().max()
    if error == 0:
        return 0.0
    return float(error / largest) if error.isfinite() and largest > 0 else float("inf")


_WIDTHS = (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 897)  # around vectors and their tails
_WRAPPED = (
    Span(0, 5, 1, 40, 0, 2, 30),
    Span(1, 3, 12, 41, 4, 2, 31),
    Span(0, 6, 1, 45, 0, 2, 43),
    Span(0, 5, 1, 7, 0, 0, 15),
    Span(2, 0, 9, 8, 3, 0, 16),
    Span(0, 9, 3, 11, 0, 0, 25),
)
_CUT = (
    Span(1, 3, 5, 41, 4, 2, 31),
    Span(1, 8, 1, 41, 4, 2, 36, 5),
    Span(1, 9, 6, 41, 4, 2, 37, 6),
    Span(0, 2, 3, 7, 0, 1, 20, 4),
)
_NESTED = ((37, (0, 5)), (20, (0, 3)), (33, (3, 5)), (1, (0, 1)), (16, (1, 2)), (5, (2, 3)))

CASES: tuple[Case, ...] = (
    pool_tokens("no_items", [], 40, small=True),
    pool_tokens("items_without_rows", [0, 3, 0, 5, 0], 40, small=True),
    pool_tokens("one_row", [1], 64, small=True),
    pool_tokens("one_candidate", [81], 192, small=True),
    *(pool_tokens(f"width_{width}", [3, 5], width, small=True) for width in _WIDTHS),
    *(pool_tokens(f"heads_{heads}", [9, 2], 72, heads, small=True) for heads in (1, 2, 3, 7)),
    pool_tokens("candidates_200", [1 + 7 * i % 13 for i in range(200)], 48),
    pool_tokens("magnitude_1e4", [7, 30], 96, magnitude=1e4, small=True),
    pool_tokens("below_eps", [7, 3], 96, magnitude=1e-3, eps=1e-5, small=True),
    pool_tokens("eps_0", [7, 30, 1], 96, eps=0.0, small=True),
    pool_tokens("int8", [7, 30, 1], 200, int8=True, small=True),
    pool_tokens("ragged", [81, 1, 256, 37], 320, small=True),
    relate_tokens("no_pairs", [3, 4], [5], 16, 40, pairs=[], small=True),
    relate_tokens("empty_sides", [3, 0, 4], [5, 0], 16, 40, small=True),
    relate_tokens("one_row", [1], [1], 16, 40, small=True),
    relate_tokens("text_query", [81, 9, 40], [8], 64, 192, small=True),
    relate_tokens("picture_query", [30, 7], [256], 64, 96),
    relate_tokens("without_norm", [30, 7], [19], 64, 96, eps=None, small=True),
    relate_tokens("odd_sizes", [13, 30, 7], [3, 11], 21, 45, (3, 5), small=True),
    relate_tokens(
        "chosen_pairs", [5, 9, 2], [4, 7], 24, 40, pairs=[(2, 1), (0, 0), (2, 0), (1, 1)]
    ),
    relate_tokens("candidates_200", [1 + 7 * i % 13 for i in range(200)], [6], 16, 32),
    relate_tokens("magnitude_1e4", [30, 7], [9], 32, 48, magnitude=1e4, small=True),
    relate_tokens("sharp", [30, 7], [9], 32, 48, sharpness=30.0, small=True),
    relate_tokens("int8", [30, 7], [9], 32, 48, int8=True, small=True),
    splice_features("no_spans", [(12, False)], [], 40, small=True),
    splice_features("one_row", [(12, False)], [Span(0, 3, 1, 9, 0, 1, 700)], 7, small=True),
    splice_features("stores", [(12, False), (30, False), (9, True)], _WRAPPED, 33, small=True),
    splice_features("cut_spans", [(12, False), (30, False)], _CUT, 33, small=True),
    splice_features(
        "wide", [(12, False), (300, True), (9, False)], _WRAPPED, 2048, page_size=5, small=True
    ),
    paged_attention("no_sequences", [], (4, 2), 16, small=True),
    paged_attention("nothing_new", [(0, 7), (1, 20)], (4, 2), 16, small=True),
    paged_attention("decode", [(1, 1), (1, 16), (1, 17), (1, 100)], (4, 2), 32, small=True),
    paged_attention("prefill", [(1, 1), (33, 33), (5, 5)], (4, 4), 16, small=True),
    paged_attention("extend", [(7, 40), (1, 19), (20, 23)], (6, 2), 24, page_size=4, small=True),
    paged_attention("page_of_one", [(3, 9), (2, 2)], (3, 3), 64, page_size=1, small=True),
    paged_attention("odd_width", [(3, 9), (70, 131)], (7, 1), 33, page_size=7, small=True),
    paged_attention("magnitude_1e4", [(3, 90)], (4, 2), 64, magnitude=1e4, small=True),
    paged_attention("sequences_200", [(1, 1 + 7 * i % 53) for i in range(200)], (3, 3), 64),
    shared_prefix_attention("no_sequences", [], 0, (4, 2), 16, small=True),
    shared_prefix_attention("not_covered", [(9, (1, 2))], 3, (4, 2), 16, small=True),
    shared_prefix_attention(
        "nodes_without_rows", [(0, (0, 2)), (5, (0, 2))], 2, (4, 2), 16, small=True
    ),
    shared_prefix_attention("nested", _NESTED, 5, (6, 2), 32, small=True),
    shared_prefix_attention(
        "long", [(517, (0, 8)), *((9, (i, i + 1)) for i in range(8))], 8, (8, 2), 64
    ),
    shared_prefix_attention("odd_sizes", _NESTED, 5, (3, 3), 33, page_size=3, small=True),
    shared_prefix_attention("sequences_200", [(40, (0, 200)), (3, (100, 101))], 200, (3, 3), 64),
    linear("no_rows", 0, 9, 24, small=True),
    linear("no_outputs", 3, 0, 24, small=True),
    *(linear(f"rows_{rows}", rows, 29, 72, small=True) for rows in (*range(1, 10), 31, 32, 33)),
    *(linear(f"depth_{depth}", 3, 5, depth, small=True) for depth in _WIDTHS),
    *(linear(f"outputs_{width}", 5, width, 40, small=True) for width in (1, 7, 23, 25, 49)),
    linear("without_bias", 3, 29, 72, bias=False, small=True),
    linear("several_threads", 7, 397, 200),
    linear("int8", 7, 397, 200, int8=True, small=True),
    linear("int8_one_row", 1, 50, 75, bias=False, int8=True, small=True),
    add_rms_norm("no_rows", 0, 24, small=True),
    *(add_rms_norm(f"width_{width}", 3, width, small=True) for width in (1, 7, 64, 65, 1500)),
    add_rms_norm("without_delta", 2, 96, delta=False, small=True),
    add_rms_norm("magnitude_1e4", 2, 96, magnitude=1e4, small=True),
    add_rms_norm("rows_500", 500, 2048),
    silu_product("no_rows", 0, 24, small=True),
    *(silu_product(f"width_{width}", 3, width, small=True) for width in (1, 7, 64, 1025)),
    silu_product("magnitude_100", 2, 96, magnitude=100.0, small=True),
    silu_product("rows_500", 500, 11008),
    rotate_to_pages("no_rows", 0, (4, 2), 16, small=True),
    *(
        rotate_to_pages(f"width_{width}", 3, (4, 2), width, small=True)
        for width in (2, 8, 10, 64, 80, 128, 160)
    ),
    rotate_to_pages("norms", 5, (7, 1), 32, norms=True, small=True),
    rotate_to_pages("norms_odd_width", 5, (3, 3), 18, norms=True, page_size=3, small=True),
    rotate_to_pages("one_row", 1, (1, 1), 64, integers=torch.int32, small=True),
    rotate_to_pages("rows_500", 500, (28, 4), 128, norms=True),
)


def named(op: str, name: str) -> Case:
    """The case of an op that has this name."""
    (case,) = (case for case in CASES if (case.op, case.name) == (op, name))
    return case
