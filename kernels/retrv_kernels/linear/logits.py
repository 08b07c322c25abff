"""float32 logits from hidden states and a vocabulary table of any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrv_kernels import registry
from retrv_kernels.linear.native import ROWS, linear

_HALF = (torch.float16, torch.bfloat16)
# Elements of the table that are widened at once: 16 MiB in float32.
BLOCK = 2**22


def float_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``hidden Wᵀ + b`` in float32: bfloat16 logits between 16 and 32 are an eighth apart.

    float32 operands go to PyTorch's product. Half-precision ones are multiplied exactly and summed
    in float32: on CUDA by ``torch.mm(…, out_dtype=torch.float32)``, which PyTorch has since 2.8;
    on a CPU with native kernels and up to ``ROWS`` rows by the kernel that reads the table in
    place; otherwise by blocks of the vocabulary, so that no whole float32 table is made.
    Differentiable: if a gradient is needed, the whole table is widened. Autocast is ignored.

    Args:
        hidden: ``[m, d]`` float32, float16, bfloat16 or float64.
        weight: ``[V, d]``, any of these dtypes.
        bias: ``[V]`` floats.

    Returns:
        ``[m, V]`` float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return float_logits(hidden, weight, bias)
    if torch.float64 in (hidden.dtype, weight.dtype):
        bias = None if bias is None else bias.double()
        return nn.functional.linear(hidden.double(), weight.double(), bias).float()
    given = (hidden, weight) if bias is None else (hidden, weight, bias)
    if hidden.dtype is weight.dtype is torch.float32 or (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    ):
        bias = None if bias is None else bias.float()
        return nn.functional.linear(hidden.float(), weight.float(), bias)
    if device == "cuda" and hidden.dtype is weight.dtype and hidden.dtype in _HALF:
        out = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        return out if bias is None else out.add_(bias)
    chosen = registry.choose("linear", device).implementation.name
    if chosen == "native" and len(hidden) <= ROWS:
        return linear(hidden.float(), weight, bias, None)
    return _by_blocks(hidden.float(), weight, bias)


def _by_blocks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``hidden [m, d]`` float32 times ``weight [V, d]``, as ``[m, V]``."""
    out = hidden.new_empty(len(hidden), len(weight))
    step = max(1, BLOCK // weight.shape[1])
    for first in range(0, len(weight), step):
        block = slice(first, first + step)
        out[:, block] = hidden @ weight[block].float().T
    return out if bias is None else out.add_(bias)
