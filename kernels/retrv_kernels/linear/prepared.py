"""Linear layers prepared for decoding: what a call needs is looked up once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from retrv_kernels import native, registry
from retrv_kernels.linear.native import ROWS
from retrv_kernels.ragged import dequantize, quantize

STORED = (torch.float16, torch.bfloat16, torch.int8)


class PreparedLinear(nn.Module):
    """``x Wᵀ + b`` of one ``nn.Linear``, or of several concatenated, for inference.

    On a CPU with native kernels, up to ``ROWS`` float32 rows go directly to the kernel: checks and
    dispatch would take longer than a small layer. All other calls are PyTorch's product. The choice
    (see `registry.use`) is made by the constructor and by :meth:`refresh`.

    On a GPU several layers are one product: their parameters become views of one buffer. They are
    still the same parameters, for training and for saving.

    Args:
        linears: layers with the same input. They are not copied; their weights may change in place.
        dtype: dtype of a rounded copy that is read instead of the weights: float16, bfloat16 or
            int8 with a scale for each output; None reads the weights.
        side_by_side: whether the parameters of several layers move to one buffer; if None, only on
            a GPU. Parameters that are tied to each other, or are views, are not moved.

    Raises:
        ValueError: the dtype cannot be stored.
    """

    def __init__(
        self,
        *linears: nn.Linear,
        dtype: torch.dtype | None = None,
        side_by_side: bool | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and dtype not in STORED:
            raise ValueError(f"dtype must be float16, bfloat16 or int8, not {dtype}")
        self.linears, self.dtype, self.side_by_side = linears, dtype, side_by_side
        self.width = sum(linear.out_features for linear in linears)
        self._buffer: _Buffer | None = None
        self.refresh()

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedLinear:
        """A copy has its own layers and makes a buffer of its own for them."""
        linears = deepcopy(self.linears, memo)
        return type(self)(*linears, dtype=self.dtype, side_by_side=self.side_by_side)

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights again after they changed, and moves replaced ones to the buffer."""
        wanted = self.side_by_side
        if wanted is None:
            wanted = self.linears[0].weight.is_cuda
        if not wanted or self.dtype is not None:
            self._buffer = None
        elif self._buffer is None or not self._buffer.holds(self.linears):
            self._buffer = _Buffer.of(self.linears, self._buffer)
        self._copies = [self._rounded(linear.weight) for linear in self.linears]
        weight = self.linears[0].weight
        chosen = registry.choose("linear", weight.device.type).implementation.name
        use_kernel = chosen == "native" and all(map(_kernel_can_read, self.linears))
        self._kernel = native.function("linear") if use_kernel else None

    def _rounded(self, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The rounded copy of a layer's weights and its scales, if they are to be read."""
        if self.dtype is torch.int8:
            return quantize(weight.detach())
        return (None if self.dtype is None else weight.detach().to(self.dtype)), None

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Weight, scales and bias of each layer."""
        for linear, (stored, scales) in zip(self.linears, self._copies, strict=True):
            yield linear.weight if stored is None else stored, scales, linear.bias

    @property
    def uses_kernel(self) -> bool:
        """Whether few rows go directly to the kernel."""
        return self._kernel is not None

    def forward(self, x: Tensor) -> Tensor:
        """Results ``[..., n]`` of ``x [..., k]``."""
        depth = x.shape[-1]
        rows = x.numel() // depth
        if (
            self._kernel is None
            or rows > ROWS
            or x.dtype is not torch.float32
            or torch.is_grad_enabled()
            or not x.is_contiguous()
        ):
            return self._dense(x)
        out = x.new_empty(*x.shape[:-1], self.width)
        threads, at = torch.get_num_threads(), out.data_ptr()
        for weight, scales, bias in self.parts():
            self._kernel(
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
        buffer = self._buffer
        if (
            buffer is not None
            and x.dtype is buffer.weight.dtype
            and not torch.is_grad_enabled()
            and buffer.in_place
        ):
            return nn.functional.linear(x, buffer.weight, buffer.bias)
        parts = [
            nn.functional.linear(
                x, _widened(weight, scales, x.dtype), None if bias is None else bias.to(x.dtype)
            )
            for weight, scales, bias in self.parts()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Buffer:
    """A buffer with the parameters of several layers, which are views of it.

    Attributes:
        weight: weights of all layers, ``[n, k]``.
        bias: biases of all layers, ``[n]``, 0 for a layer without; None if no layer has one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, linears: tuple[nn.Linear, ...]) -> None:
        self.weight, self.bias = weight, bias
        self._parameters = _parameters(linears)
        self._places = [one.data_ptr() for one in self._parameters]

    @property
    def in_place(self) -> bool:
        """Whether the parameters are still views of the buffer."""
        return [one.data_ptr() for one in self._parameters] == self._places

    def holds(self, linears: tuple[nn.Linear, ...]) -> bool:
        """Whether the layers still have these parameters, and they are views of the buffer."""
        now = _parameters(linears)
        same = len(now) == len(self._parameters) and all(map(is_, now, self._parameters))
        return same and self.in_place

    @classmethod
    def of(cls, linears: tuple[nn.Linear, ...], former: _Buffer | None) -> _Buffer | None:
        """The buffer of these layers, to which their parameters move; None if they cannot.

        Args:
            former: the layers' buffer before some parameters were replaced.
        """
        if len(linears) == 1:
            return None
        weights, biases = [one.weight for one in linears], [one.bias for one in linears]
        own = _parameters(linears)
        given = [bias for bias in biases if bias is not None]
        # Another engine of the same model may have made the buffer.
        weight = _buffer_of(weights)
        bias = _buffer_of(biases) if len(given) == len(linears) else None
        if weight is not None and (bias is None) == (not given):
            return cls(weight, bias, linears)
        ours = set() if former is None else {_storage(former.weight), _storage(former.bias)}
        if (
            len({(one.dtype, one.device) for one in own}) > 1
            or len({one.data_ptr() for one in own}) < len(own)
            or any(
                one.untyped_storage().nbytes() != one.nbytes and _storage(one) not in ours
                for one in own
            )
        ):
            return None
        # Parameters made in inference mode could not be trained.
        with torch.inference_mode(False):
            weight = torch.cat([one.detach() for one in weights])
            bias = torch.cat([_bias(one) for one in linears]) if given else None
            first = 0
            for linear in linears:
                rows = slice(first, first := first + linear.out_features)
                linear.weight.data = weight[rows]
                if bias is not None and linear.bias is not None:
                    linear.bias.data = bias[rows]
        return cls(weight, bias, linears)


def _buffer_of(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor of which ``parts`` are consecutive rows; None if there is none."""
    first = parts[0].detach()
    place = first.data_ptr()
    for part in parts:
        apart = part.data_ptr() != place or _storage(part) != _storage(first)
        if apart or part.dtype != first.dtype or not part.is_contiguous():
            return None
        place += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _storage(tensor: Tensor | None) -> int:
    """Address of a tensor's storage; 0 for None."""
    if tensor is None:
        return 0
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()


def _parameters(linears: tuple[nn.Linear, ...]) -> list[Tensor]:
    """Weights and biases of layers."""
    return [one for linear in linears for one in (linear.weight, linear.bias) if one is not None]


def _bias(linear: nn.Linear) -> Tensor:
    """A layer's bias; zeros if it has none."""
    if linear.bias is None:
        return linear.weight.new_zeros(linear.out_features)
    return linear.bias.detach()


def _widened(weight: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights in a dtype; copied only if they are stored in another."""
    return weight.to(dtype) if scales is None else dequantize(weight, scales).to(dtype)


def _kernel_can_read(linear: nn.Linear) -> bool:
    """Whether the kernel can read a layer's parameters in place."""
    weight, bias = linear.weight, linear.bias
    return (
        weight.dtype in native.DTYPES
        and weight.is_contiguous()
        and (bias is None or (bias.dtype is torch.float32 and bias.is_contiguous()))
    )
