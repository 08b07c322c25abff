"""The equation: each sequence attends to the concatenated rows of its nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from retrv_kernels.paged_attention.reference import attend, cached_rows


def shared_prefix_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    node_lens: Tensor,
    node_rows: Tensor,
    scale: float,
) -> Tensor:
    """Reference for `retrv_kernels.ops.shared_prefix_attention`."""
    nodes = list(zip(page_table, node_lens.tolist(), node_rows.tolist(), strict=True))
    out = [query.new_empty(0, *query.shape[1:])]
    for row in range(len(query)):
        own = [(table, length) for table, length, (first, end) in nodes if first <= row < end]
        keys, values = (
            torch.cat([pages[:0].flatten(0, 1), *(cached_rows(pages, *node) for node in own)])
            for pages in (key_pages, value_pages)
        )
        sees = torch.ones(1, len(keys), dtype=torch.bool, device=query.device)
        out.append(attend(query[row : row + 1], keys, values, sees, scale))
    return torch.cat(out)
