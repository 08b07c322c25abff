"""Float32 logits of an output head of any type and dtype.

Apart from ``model.py``, which an SGLang worker imports without ``retrv_kernels``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from retrv_kernels.linear import float_logits


def logits_of(head: Any, hidden: Tensor) -> Tensor:
    """``hidden [m, d]`` → float32 ``[m, vocabulary]``.

    bfloat16 logits between 8 and 16 have a step of 1/16, and tie half of a ranking.
    """
    if type(head) is nn.Linear:
        return float_logits(hidden, head.weight, head.bias)
    return head(hidden).float()  # a head with adapters, for example
