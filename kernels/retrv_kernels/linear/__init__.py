"""A linear layer for few rows, as in decoding: the weights are read once."""

from __future__ import annotations

from retrv_kernels.linear.logits import float_logits
from retrv_kernels.linear.prepared import PreparedLinear

__all__ = ["PreparedLinear", "float_logits"]
