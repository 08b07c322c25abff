"""Layers of the compressor: attention with folded queries, pooling, and the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from retrv_r1.model.config import ICMConfig


class DerivedTensor:
    """A tensor made of weights alone, kept until one of them changes.

    Weights count as changed when they lie elsewhere or were written to in place. What is written
    through ``parameter.data`` PyTorch does not count: :meth:`InformationCompressor.forget` then.
    Never kept while gradients are on.
    """

    def __init__(self) -> None:
        self._made: tuple[object, list[torch.UntypedStorage], Tensor] | None = None

    def get(self, weights: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        if torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
            return make()
        state = [(w.data_ptr(), w._version, w.dtype) for w in weights]
        kept = self._made
        if kept is None or kept[0] != state:
            # Their memory is held, so that no others can come to lie where these lay.
            kept = self._made = (state, [weight.untyped_storage() for weight in weights], make())
        return kept[2]

    def forget(self) -> None:
        self._made = None

    def __reduce__(self) -> tuple[type[DerivedTensor], tuple[()]]:  # copies begin empty
        return DerivedTensor, ()


class Attention(nn.Module):
    """Weights of ATT; queries and keys may be narrower than the values."""

    def __init__(self, hidden_size: int, heads: int, qk_dim: int) -> None:
        super().__init__()
        if hidden_size % heads or qk_dim % heads:
            raise ValueError(f"{heads} heads do not divide the widths {hidden_size} and {qk_dim}")
        self.heads = heads
        self.q_proj = nn.Linear(hidden_size, qk_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, qk_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    @property
    def scale(self) -> float:
        """``1 / √d_h``."""
        return (self.q_proj.out_features / self.heads) ** -0.5

    def by_head(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """Splits a dimension into heads and what is one head's."""
        return tensor.unflatten(dim, (self.heads, -1))

    def folded_values(self, rows: Tensor) -> Tensor:
        """What row j adds to the result where head e attends to it alone, ``[n, E, d]``."""
        values = self.by_head(self.v_proj(rows))
        return torch.einsum("nev,dev->ned", values, self.by_head(self.o_proj.weight))


class Pool(nn.Module):
    """One learned query row pools many rows into one token: ATT₁ with its embedding."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(hidden_size))
        self.attention = Attention(hidden_size, heads, hidden_size)
        self.kept = DerivedTensor()

    def folded_queries(self, norm: Tensor | None) -> Tensor:
        """``q̃_h = W_k,h (e W_q)_h / √d_h``, times the weight of the rows' norm, ``[H, d]``."""
        attention = self.attention
        weights = [self.embedding, attention.q_proj.weight, attention.k_proj.weight]
        weights += [] if norm is None else [norm]
        return self.kept.get(weights, lambda: self._fold(norm))

    def _fold(self, norm: Tensor | None) -> Tensor:
        attention = self.attention
        query = attention.by_head(attention.q_proj(self.embedding)) * attention.scale
        folded = torch.einsum("hk,hkd->hd", query, attention.by_head(attention.k_proj.weight, 0))
        return folded if norm is None else folded * norm

    def token(self, pooled: Tensor, norm: Tensor | None) -> Tensor:
        """Value and output projection of rows pooled by each head, ``[m, H, d]`` → ``[m, d]``."""
        attention = self.attention
        pooled = pooled.to(self.embedding.dtype)
        if norm is not None:
            pooled = pooled * norm
        weight = attention.by_head(attention.v_proj.weight, 0)
        return attention.o_proj(torch.einsum("mhd,hvd->mhv", pooled, weight).flatten(1))


class Memory(nn.Module):
    """What a content token resembles: a softmax over learned prototypes, each with a code.

        m(t) = W_m · norm(softmax(cos(t, P) / τ) C)

    Two unsure tokens may be alike and yet mean different things; their codes agree only as far as
    both resemble the same prototypes. A modern Hopfield layer (arXiv 2008.02217) whose values are
    not its keys.
    """

    def __init__(self, hidden_size: int, config: ICMConfig) -> None:
        super().__init__()
        width = config.memory_width or hidden_size // 2
        self.prototypes = nn.Parameter(torch.empty(config.memory_size, hidden_size))
        self.codes = nn.Parameter(torch.empty(config.memory_size, width))
        self.out = nn.Linear(width, hidden_size, bias=False)
        self.temperature, self.eps = config.memory_temperature, config.norm_eps
        self.kept = DerivedTensor()

    def code(self, tokens: Tensor) -> Tensor:
        """Normed codes ``[m, w]`` of what tokens ``[m, d]`` resemble."""
        normalize = nn.functional.normalize
        prototypes = self.kept.get([self.prototypes], lambda: normalize(self.prototypes, dim=-1))
        likeness = normalize(tokens, dim=-1) @ prototypes.T
        read = (likeness / self.temperature).softmax(-1) @ self.codes
        return nn.functional.rms_norm(read, read.shape[-1:], eps=self.eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[m, d]`` → what is added to them, ``[m, d]``."""
        return self.out(self.code(tokens))
