"""Linear layers made ready for decoding: what a call needs is looked up once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from retrv_kernels import native, registry
from retrv_kernels.linear.native import ROWS
from retrv_kernels.ragged import dequantize, quantize

STORED = (torch.float16, torch.bfloat16, torch.int8)


class PreparedLinear(nn.Module):
    """``x Wᵀ + b`` of one ``nn.Linear``, or of several side by side, for inference.

    On a CPU with native kernels, up to ``ROWS`` float32 rows go straight to the kernel: checks and
    dispatch would take longer than a small layer. Everything else is PyTorch's product. Which it is
    (RETRV_KERNELS has a say) is decided here and at :meth:`refresh`.

    Args:
        linears: of one input; shared, not copied: their weights may change in place.
        dtype: of a rounded copy that is read instead of the weights: float16, bfloat16 or int8 with
            a scale for each output; None to read them as they are.
    Raises:
        ValueError: no such dtype is stored.
    """

    def __init__(self, *linears: nn.Linear, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if dtype is not None and dtype not in STORED:
            raise ValueError(f"weights are stored as float16, bfloat16 or int8, not {dtype}")
        self.linears, self.dtype = linears, dtype
        self.width = sum(linear.out_features for linear in linears)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights again, after they have changed."""
        self._copies = [self._rounded(linear.weight) for linear in self.linears]
        weight = self.linears[0].weight
        chosen = registry.choose("linear", weight.device.type).implementation.name
        direct = chosen == "native" and all(map(_readable, self.linears))
        self._call = native.function("linear") if direct else None

    def _rounded(self, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The copy of a layer's weights that is read, and its scales."""
        if self.dtype is torch.int8:
            return quantize(weight.detach())
        return (None if self.dtype is None else weight.detach().to(self.dtype)), None

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Weight, scales and bias of each layer."""
        for linear, (copy, scales) in zip(self.linears, self._copies, strict=True):
            yield linear.weight if copy is None else copy, scales, linear.bias

    @property
    def direct(self) -> bool:
        """Whether few rows go straight to the kernel."""
        return self._call is not None

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., k]`` → ``[..., n]``."""
        depth = x.shape[-1]
        rows = x.numel() // depth
        if (
            self._call is None
            or rows > ROWS
            or x.dtype is not torch.float32
            or torch.is_grad_enabled()
            or not x.is_contiguous()
        ):
            return self._dense(x)
        out = x.new_empty(*x.shape[:-1], self.width)
        threads, at = torch.get_num_threads(), out.data_ptr()
        for weight, scales, bias in self.parts():
            self._call(
                x.data_ptr(),
                depth,
                rows,
                weight.data_ptr(),
                native.DTYPES[weight.dtype],
                depth,
                native.address(scales),
                native.address(bias),
                len(weight),
                depth,
                at,
                self.width,
                threads,
            )
            at += 4 * len(weight)
        return out

    def _dense(self, x: Tensor) -> Tensor:
        parts = [
            nn.functional.linear(x, _widened(weight, scales, x.dtype), bias)
            for weight, scales, bias in self.parts()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _widened(weight: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights in the dtype of the rows; copied only where they are stored in another."""
    return weight.to(dtype) if scales is None else dequantize(weight, scales).to(dtype)


def _readable(linear: nn.Linear) -> bool:
    """Whether the kernel can read a layer's parameters as they lie."""
    weight, bias = linear.weight, linear.bias
    return (
        weight.dtype in native.DTYPES
        and weight.is_contiguous()
        and (bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()))
    )
