"""A linear layer made ready for decoding: what a call needs is looked up once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrv_kernels import native, registry
from retrv_kernels.linear.native import ROWS
from retrv_kernels.ragged import dequantize, quantize

STORED = (torch.float16, torch.bfloat16, torch.int8)


class PreparedLinear(nn.Module):
    """``x Wᵀ + b`` of an ``nn.Linear``, without gradients.

    On a CPU with native kernels, up to ``ROWS`` float32 rows go straight to the kernel: checks and
    dispatch would take longer than a small layer. Everything else is PyTorch's product. Which it is
    (RETRV_KERNELS has a say) is decided here and at :meth:`refresh`.

    Args:
        linear: shared, not copied: its weights may change in place.
        dtype: of a rounded copy that is read instead of the weights: float16, bfloat16 or int8 with
            a scale for each output; None to read them as they are.
    Raises:
        ValueError: no such dtype is stored.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if dtype is not None and dtype not in STORED:
            raise ValueError(f"weights are stored as float16, bfloat16 or int8, not {dtype}")
        self.linear, self.dtype = linear, dtype
        self._copy: Tensor | None = None
        self._scales: Tensor | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights again, after they have changed."""
        weight = self.linear.weight
        if self.dtype is torch.int8:
            self._copy, self._scales = quantize(weight.detach())
        elif self.dtype is not None:
            self._copy = weight.detach().to(self.dtype)
        chosen = registry.choose("linear", weight.device.type).implementation.name
        self._call = native.function("linear") if chosen == "native" else None

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., k]`` → ``[..., n]``."""
        weight: Tensor = self.linear.weight if self._copy is None else self._copy
        rows = x.numel() // x.shape[-1]
        if (
            self._call is None
            or rows > ROWS
            or x.dtype is not torch.float32
            or torch.is_grad_enabled()
            or not (x.is_contiguous() and weight.is_contiguous())
        ):
            dense = dequantize(weight, self._scales)
            return nn.functional.linear(x, dense.to(x.dtype), self.linear.bias)
        bias, (width, depth) = self.linear.bias, weight.shape
        if bias is not None and bias.dtype is not torch.float32:
            bias = bias.float()
        out = x.new_empty(*x.shape[:-1], width)
        self._call(
            x.data_ptr(),
            depth,
            rows,
            weight.data_ptr(),
            native.DTYPES[weight.dtype],
            depth,
            native.address(self._scales),
            native.address(bias),
            width,
            depth,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out
