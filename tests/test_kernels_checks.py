"""The errors that ops raise for invalid arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retrv_kernels import ops
from retrv_kernels.cases import named
from retrv_kernels.ops import Span

F, I = torch.ones, torch.tensor  # noqa: E741


def _change(op: str, name: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    return op, {**named(op, name).arguments(torch.float32), **changes}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_change("pool_tokens", "one_row", features=F(3)), r"features must be \[n, d\]"),
        (_change("pool_tokens", "one_row", features=F(3, 0)), "d > 0"),
        (_change("pool_tokens", "one_row", features=F(1, 64).int()), "int32"),
        (_change("pool_tokens", "one_row", features=F(1, 64).char()), "need scales"),
        (_change("pool_tokens", "one_row", scales=F(1)), "int8"),
        (_change("pool_tokens", "int8", scales=F(3)), "scales of features must be"),
        (_change("pool_tokens", "one_row", eps=-1.0), "eps"),
        (_change("pool_tokens", "one_row", eps=float("nan")), "eps"),
        (
            _change("pool_tokens", "one_row", cu_seqlens=I([0, 2])),
            r"start at 0, end at 1 and never fall, not \[0, 2\]",
        ),
        (_change("pool_tokens", "one_row", cu_seqlens=I([0, 2, 1])), "start at 0"),
        (_change("pool_tokens", "one_row", cu_seqlens=I([0.0, 1.0])), "int32"),
        (_change("pool_tokens", "one_row", cu_seqlens=I([]).long()), r"\[m \+ 1\]"),
        (_change("pool_tokens", "one_row", folded_queries=F(4, 63)), r"\[H, 64\]"),
        (_change("pool_tokens", "one_row", folded_queries=F(0, 64)), "H > 0"),
        (_change("pool_tokens", "one_row", folded_queries=F(4, 64).double()), "float64 or none"),
        (_change("pool_tokens", "one_row", cu_seqlens=I([0, 1]).to("meta")), "cu_seqlens.to"),
        (_change("relate_tokens", "text_query", folded_queries=F(0, 192)), "H > 0"),
        (_change("paged_attention", "decode", query=F(4, 0, 32)), "heads"),
        (_change("paged_attention", "decode", query=F(4, 4, 32).requires_grad_()), "no gradient"),
        (_change("relate_tokens", "text_query", query_values=F(8, 7, 24)), "divide"),
        (_change("relate_tokens", "text_query", output=F(192, 8, 23)), r"\[d, 8, 24\]"),
        (_change("relate_tokens", "text_query", folded_queries=F(4, 191)), r"\[H, 192\]"),
        (_change("relate_tokens", "text_query", candidate=I([0, 1, 3])), "less than 3"),
        (_change("relate_tokens", "text_query", candidate=None), "both or neither"),
        (_change("relate_tokens", "odd_sizes", candidate=None, query=None), "with 2 queries"),
        (_change("splice_features", "one_row", stores=[]), "1 to 16 stores"),
        (_change("splice_features", "one_row", spans=[Span(0, 3, 10, 0, 0, 0, 0)]), "needs rows"),
        (_change("splice_features", "one_row", spans=[Span(1, 0, 1, 0, 0, 0, 0)]), "needs rows"),
        (_change("splice_features", "one_row", spans=[Span(0, 3, 1, 0, 0, 4, 0)]), "slots"),
        (_change("splice_features", "one_row", spans=[Span(0, 3, 1, 0, 0, 0, 1024)]), "slots"),
        (_change("splice_features", "one_row", spans=[Span(0, -1, 1, 0, 0, 0, 0)]), "negative"),
        (_change("splice_features", "one_row", page_size=0), "page_size"),
        (_change("splice_features", "one_row", dtype=torch.int8), "must be a float dtype"),
        (_change("splice_features", "one_row", stores=[F(12, 7).requires_grad_()]), "no gradient"),
        (_change("paged_attention", "decode", key_pages=F(9, 16, 3, 32)), "value_pages must be"),
        (_change("paged_attention", "decode", query=F(4, 5, 32)), "do not divide"),
        (_change("paged_attention", "decode", query=F(4, 4, 32).half()), "float16"),
        (_change("paged_attention", "decode", kv_lens=I([1, 16, 17, 0])), "count the new rows"),
        (_change("paged_attention", "decode", kv_lens=I([1, 16, 17, 999])), "kv_lens must be"),
        (_change("paged_attention", "decode", kv_lens=I([1, 16, 17])), r"\[4\]"),
        (_change("shared_prefix_attention", "nested", node_rows=I([[3, 1]] * 6)), "ends before"),
        (_change("add_rms_norm", "width_7", x=F(7)), r"x must be \[n, d\]"),
        (_change("add_rms_norm", "width_7", delta=F(2, 7)), r"delta must be \[3, 7\]"),
        (_change("add_rms_norm", "width_7", delta=F(3, 7).half()), "float16"),
        (_change("add_rms_norm", "width_7", weight=F(6)), r"weight must be \[7\]"),
        (_change("add_rms_norm", "width_7", eps=-1.0), "eps"),
        (_change("add_rms_norm", "width_7", x=F(3, 7).requires_grad_()), "no gradient"),
        (_change("silu_product", "width_7", gate_up=F(3, 7)), "with f > 0"),
        (_change("silu_product", "width_7", gate_up=F(3, 0)), "with f > 0"),
        (_change("silu_product", "width_7", gate_up=F(3, 6).int()), "int32"),
        (_change("silu_product", "width_7", gate_up=F(3, 6).requires_grad_()), "no gradient"),
        (_change("rotate_to_pages", "norms", qkv=F(5, 8, 32)), r"qkv must be \[n, 9, 32\]"),
        (_change("rotate_to_pages", "norms", heads=0), "heads"),
        (_change("rotate_to_pages", "norms", key_pages=F(3, 16, 1, 31)), "an even width"),
        (_change("rotate_to_pages", "norms", value_pages=F(3, 16, 1, 16)), "value_pages must be"),
        (
            _change("rotate_to_pages", "norms", key_pages=F(3, 32, 16, 1).permute(0, 2, 3, 1)),
            "equal strides",
        ),
        (_change("rotate_to_pages", "norms", cos=F(5, 32)), r"cos must be \[5, 1, 32\]"),
        (_change("rotate_to_pages", "norms", sin=F(5, 1, 32).half()), "sin must be one of float32"),
        (_change("rotate_to_pages", "norms", k_norm=None), "both or neither"),
        (_change("rotate_to_pages", "norms", k_norm=F(31)), r"k_norm must be \[32\]"),
        (_change("rotate_to_pages", "norms", slots=I([0, 1, 2, 3, 48])), "less than 48"),
        (_change("rotate_to_pages", "norms", slots=I([0, 1, 2, 3, -1])), "slots must be 0 or more"),
        (_change("rotate_to_pages", "norms", slots=F(5)), "int32"),
        (_change("rotate_to_pages", "norms", qkv=F(5, 9, 32).requires_grad_()), "no gradient"),
        (_change("shared_prefix_attention", "nested", node_rows=I([[0, 9]] * 6)), "less than 6"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_invalid_arguments_raise(call, message):
    op, arguments = call
    with pytest.raises(ValueError, match=message):
        getattr(ops, op)(**arguments)


def test_a_missing_page_raises():
    arguments = named("paged_attention", "decode").arguments(torch.float32)
    arguments["page_table"][3, 0] = 99
    with pytest.raises(ValueError, match="page_table must be"):
        ops.paged_attention(**arguments)
