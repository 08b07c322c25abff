"""Linear layers made ready for decoding: what a call needs is looked up once."""

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
    """``x Wᵀ + b`` of one ``nn.Linear``, or of several side by side, for inference.

    On a CPU with native kernels, up to ``ROWS`` float32 rows go straight to the kernel: checks and
    dispatch would take longer than a small layer. Everything else is PyTorch's product. Which it is
    (RETRV_KERNELS has a say) is decided here and at :meth:`refresh`.

    On a GPU several layers are one product: their parameters become views of one buffer in which
    they lie side by side. They stay the parameters they were, for training and for saving.

    Args:
        linears: of one input; shared, not copied: their weights may change in place.
        dtype: of a rounded copy that is read instead of the weights: float16, bfloat16 or int8 with
            a scale for each output; None to read them as they are.
        together: whether several layers are laid side by side; if None, on a GPU. Parameters that
            are tied to one another, or are views themselves, are left where they are.
    Raises:
        ValueError: no such dtype is stored.
    """

    def __init__(
        self,
        *linears: nn.Linear,
        dtype: torch.dtype | None = None,
        together: bool | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and dtype not in STORED:
            raise ValueError(f"weights are stored as float16, bfloat16 or int8, not {dtype}")
        self.linears, self.dtype, self.together = linears, dtype, together
        self.width = sum(linear.out_features for linear in linears)
        self._laid: _Laid | None = None
        self.refresh()

    def __deepcopy__(self, memo: dict[int, Any]) -> PreparedLinear:
        """Copied layers have storage of their own, so they are laid side by side again."""
        linears = deepcopy(self.linears, memo)
        return type(self)(*linears, dtype=self.dtype, together=self.together)

    @torch.no_grad()
    def refresh(self) -> None:
        """Rounds the weights again, after they have changed, and lays replaced ones in place."""
        wanted = self.linears[0].weight.is_cuda if self.together is None else self.together
        if not wanted or self.dtype is not None:
            self._laid = None
        elif self._laid is None or not self._laid.holds(self.linears):
            self._laid = _Laid.of(self.linears, self._laid)
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
        for linear, (stored, scales) in zip(self.linears, self._copies, strict=True):
            yield linear.weight if stored is None else stored, scales, linear.bias

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
        laid = self._laid
        if (
            laid is not None
            and x.dtype is laid.weight.dtype
            and not torch.is_grad_enabled()
            and laid.in_place  # and none was moved since
        ):
            return nn.functional.linear(x, laid.weight, laid.bias)
        parts = [
            nn.functional.linear(
                x, _widened(weight, scales, x.dtype), None if bias is None else bias.to(x.dtype)
            )
            for weight, scales, bias in self.parts()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class _Laid:
    """Parameters of several layers side by side in one buffer, of which they are views.

    Attributes:
        weight: ``[n, k]``.
        bias: ``[n]``, 0 where a layer has none; None where no layer has one.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, linears: tuple[nn.Linear, ...]) -> None:
        self.weight, self.bias = weight, bias
        self._parameters = _parameters(linears)
        self._places = [one.data_ptr() for one in self._parameters]

    @property
    def in_place(self) -> bool:
        """Whether the parameters still lie in the buffer."""
        return [one.data_ptr() for one in self._parameters] == self._places

    def holds(self, linears: tuple[nn.Linear, ...]) -> bool:
        """Whether they do, and the layers still have these parameters."""
        now = _parameters(linears)
        same = len(now) == len(self._parameters) and all(map(is_, now, self._parameters))
        return same and self.in_place

    @classmethod
    def of(cls, linears: tuple[nn.Linear, ...], former: _Laid | None) -> _Laid | None:
        """Where the parameters lie side by side, which they may be moved for; None if they cannot.

        Args:
            former: their buffers before some were replaced.
        """
        if len(linears) == 1:
            return None
        weights, biases = [one.weight for one in linears], [one.bias for one in linears]
        own = _parameters(linears)
        given = [bias for bias in biases if bias is not None]
        # Another engine of the same model has laid them.
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
        # Parameters of inference mode could not be trained any more.
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
    """The tensor of which these are consecutive rows; None if they are not."""
    first = parts[0].detach()
    place = first.data_ptr()
    for part in parts:
        apart = part.data_ptr() != place or _storage(part) != _storage(first)
        if apart or part.dtype != first.dtype or not part.is_contiguous():
            return None
        place += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _storage(tensor: Tensor | None) -> int:
    """Address of the memory of which a tensor is a view."""
    if tensor is None:
        return 0
    return tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()


def _parameters(linears: tuple[nn.Linear, ...]) -> list[Tensor]:
    """Weights and biases."""
    return [one for linear in linears for one in (linear.weight, linear.bias) if one is not None]


def _bias(linear: nn.Linear) -> Tensor:
    """A layer's bias, zeros for none."""
    if linear.bias is None:
        return linear.weight.new_zeros(linear.out_features)
    return linear.bias.detach()


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
