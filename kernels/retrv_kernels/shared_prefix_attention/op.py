"""The public function, its checks and its registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrv_kernels import checks
from retrv_kernels.paged_attention.op import check_cache, check_pages
from retrv_kernels.torch_operator import register


def shared_prefix_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    node_lens: Tensor,
    node_rows: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Decode attention of sequences whose cached rows form a tree; every node is read once.

    Sequences that share a prefix are neighbours in the batch. A node is a run of cached rows and
    the range of sequences that share it: all of them for a system prompt, a group for a query, one
    for a tail. Each row attends to all nodes that cover it. A node's partial attention is computed
    for all of its sequences together; the parts are merged by log-sum-exp.

    Args:
        query: the new row of each sequence, ``[b, H, d_h]``, float32, float16 or bfloat16.
        key_pages, value_pages: the cache, as in :func:`paged_attention`.
        page_table: pages of each node in order, ``[nodes, max_pages]`` integers.
        node_lens: cached rows of each node, ``[nodes]`` integers.
        node_rows: first sequence of each node and the one after its last, ``[nodes, 2]`` integers.
        scale: factor of the scores; 1/√d_h if None.

    Returns:
        ``[b, H, d_h]`` in the query's dtype, accumulated in float32; 0 for a row that no node
        covers. Not differentiable.

    Raises:
        ValueError: a shape or dtype is invalid; on a CPU also a length, range or page.

    Source: the merge is FlashAttention's (Dao 2023), applied across a tree as in Hydragen
    (Juravsky et al. 2024) and FlashInfer's cascade attention.
    """
    check_cache(query, key_pages, value_pages, page_table)
    nodes = len(page_table)
    checks.shape("node_lens", node_lens, nodes)
    checks.shape("node_rows", node_rows, nodes, 2)
    checks.dtype("node_lens", node_lens, checks.INTEGERS)
    checks.dtype("node_rows", node_rows, checks.INTEGERS)
    checks.compatible(query=query, node_lens=node_lens, node_rows=node_rows)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return torch.ops.retrv_kernels.shared_prefix_attention(
        query, key_pages, value_pages, page_table, node_lens, node_rows, scale
    )


def _check(*arguments: Any) -> None:
    query, key_pages, _, page_table, node_lens, node_rows, _ = arguments
    check_pages("node_lens", node_lens, page_table, key_pages)
    checks.indices("node_rows", node_rows, len(query) + 1)
    ranges = checks.cpu_values(node_rows)
    if ranges is not None and (ranges[:, 0] > ranges[:, 1]).any():
        raise ValueError("node_rows must be [first, one after the last]: one ends before it begins")


def _fake(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


register("shared_prefix_attention", _fake, _check)
