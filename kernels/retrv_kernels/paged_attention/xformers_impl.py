"""xFormers' operators over gathered pages, for half-precision prefills that they support.

This has not been run on a GPU. The mask, the gathering and the operators' answers for tensors
without storage are tested.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

from retrv_kernels.availability import Availability
from retrv_kernels.paged_attention.reference import cached_rows

# In order of preference.
OPERATORS = (fmha.flash.FwOp, fmha.cutlass.FwOp)


def accepts(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Availability:
    """Whether an operator says that it supports the batch; only shapes and dtypes are read."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        return Availability(False, f"its {query.dtype} products may be rounded to TF32")
    if len(query) <= len(kv_lens):
        return Availability(False, "a decode step would gather every page for a few rows")
    # Any lengths will do: an operator reads the mask's type and the tensors' shapes.
    rows = key_pages.select(1, 0)
    inputs = _inputs(
        query, rows, rows, mask([len(query)], [len(query)], torch.device("cpu")), scale
    )
    refused = {one.NAME: one.not_supported_reasons(inputs) for one in OPERATORS}
    for name, reasons in refused.items():
        if not reasons:
            return Availability(True, name)
    return Availability(False, "; ".join(f"{name}: {', '.join(r)}" for name, r in refused.items()))


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    page_table: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    scale: float,
) -> Tensor:
    """xFormers implementation of `retrv_kernels.ops.paged_attention`."""
    # This waits for the device once: the mask is made from the lengths as numbers.
    new, lengths = torch.stack([cu_seqlens.diff().long(), kv_lens.long()]).tolist()
    keys, values = (
        torch.cat([cached_rows(pages, *own) for own in zip(page_table, lengths, strict=True)])
        for pages in (key_pages, value_pages)
    )
    inputs = _inputs(query, keys, values, mask(new, lengths, query.device), scale)
    operator = next(one for one in OPERATORS if not one.not_supported_reasons(inputs))
    out = fmha.memory_efficient_attention_forward(
        inputs.query, inputs.key, inputs.value, inputs.attn_bias, scale=scale, op=operator
    )
    return out.reshape(query.shape)


def mask(
    new: list[int], lengths: list[int], device: torch.device
) -> BlockDiagonalCausalFromBottomRightMask:
    """The mask of sequences whose last cached rows are new and see the rows up to themselves."""
    return BlockDiagonalCausalFromBottomRightMask.from_seqlens(new, lengths, device=device)


def _inputs(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: BlockDiagonalCausalFromBottomRightMask,
    scale: float,
) -> Any:
    """Inputs of one batch of packed rows, ``[1, rows, H_kv, group, d_h]``."""
    heads = keys.shape[1]
    group = query.shape[1] // heads
    keys, values = (
        rows.unsqueeze(0).unsqueeze(3).expand(-1, -1, -1, group, -1) for rows in (keys, values)
    )
    query = query.unflatten(1, (heads, group)).unsqueeze(0)
    return fmha.Inputs(query, keys, values, bias, scale=scale)
