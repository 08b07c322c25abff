"""Attention of a packed vision batch, plugged into transformers' attention interface.

transformers' CPU path runs one attention call per picture. Pictures of one size are the common
case, and then the packed batch is a plain batch: one call for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# transformers hands cu_seqlens only to implementations whose name holds "flash_attention".
PACKED = "retrv_packed_flash_attention"


def packed_vision_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: object,
) -> tuple[Tensor, None]:
    """Full attention inside each segment of a packed batch.

    Args:
        query, key, value: ``[1, heads, n, d_h]``.
        cu_seq_lens_q: segment offsets, ``[m + 1]``.
    Returns:
        ``[1, n, heads, d_h]`` and no weights.
    """
    lengths = cu_seq_lens_q.diff()
    attend = nn.functional.scaled_dot_product_attention
    if bool((lengths == lengths[0]).all()):
        batch = len(lengths)
        q, k, v = (
            x[0].unflatten(1, (batch, -1)).transpose(0, 1).contiguous() for x in (query, key, value)
        )
        out = attend(q, k, v, scale=scaling)
        return out.transpose(1, 2).flatten(0, 1)[None], None
    sizes = lengths.tolist()
    parts = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    out = torch.cat([attend(q, k, v, scale=scaling) for q, k, v in parts], dim=2)
    return out.transpose(1, 2), None


def use_packed_attention(visual: nn.Module) -> None:
    """Makes a Qwen-VL vision tower attend through :func:`packed_vision_attention`."""
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_vision_attention)
    visual.config._attn_implementation_internal = PACKED  # type: ignore[union-attr]
