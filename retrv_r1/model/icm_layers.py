"""Layers of the compressor: attention with folded queries, pooling, and the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from retrv_r1.model.config import ICMConfig


class DerivedTensor:
    """A tensor computed from weights alone, cached until one of them changes.

    A weight counts as changed when its memory is another or it was written to in place. PyTorch
    does not notice writes through ``parameter.data``; ``InformationCompressor.forget`` drops the
    tensor after those. Nothing is cached while gradients are enabled.
    """

    def __init__(self) -> None:
        self._cached: tuple[object, list[torch.UntypedStorage], Tensor] | None = None

    def get(self, weights: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        if torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
            return make()
        state = [(w.data_ptr(), w._version, w.dtype) for w in weights]
        kept = self._cached
        if kept is None or kept[0] != state:
            # Holding their memory keeps other weights from getting the same addresses.
            kept = self._cached = (state, [weight.untyped_storage() for weight in weights], make())
        return kept[2]

    def forget(self) -> None:
        self._cached = None

    def __reduce__(self) -> tuple[type[DerivedTensor], tuple[()]]:  # copies start empty
        return DerivedTensor, ()


class Attention(nn.Module):
    """Weights of ATT.

    Args:
        hidden_size: width of rows, values and output.
        heads: number of heads.
        qk_dim: width of queries and keys, which may be less.
    """

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
        """Splits a dimension into heads and the width of a head."""
        return tensor.unflatten(dim, (self.heads, -1))


class Pool(nn.Module):
    """ATT₁ with its learned query embedding: pools many rows into one token."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(hidden_size))
        self.attention = Attention(hidden_size, heads, hidden_size)
        self.derived = DerivedTensor()

    def folded_queries(self, norm: Tensor | None) -> Tensor:
        """Folded queries ``q̃_h = W_k,h (e W_q)_h / √d_h``, ``[H, d]``.

        Args:
            norm: weight of the rows' norm, folded in as well; None if rows are not normed.
        """
        attention = self.attention
        weights = [self.embedding, attention.q_proj.weight, attention.k_proj.weight]
        weights += [] if norm is None else [norm]
        return self.derived.get(weights, lambda: self._fold(norm))

    def _fold(self, norm: Tensor | None) -> Tensor:
        attention = self.attention
        query = attention.by_head(attention.q_proj(self.embedding)) * attention.scale
        folded = torch.einsum("hk,hkd->hd", query, attention.by_head(attention.k_proj.weight, 0))
        return folded if norm is None else folded * norm

    def token(self, pooled: Tensor, norm: Tensor | None) -> Tensor:
        """Value and output projection of each head's pooled rows, ``[m, H, d]`` → ``[m, d]``."""
        attention = self.attention
        pooled = pooled.to(self.embedding.dtype)
        if norm is not None:
            pooled = pooled * norm
        weight = attention.by_head(attention.v_proj.weight, 0)
        return attention.o_proj(torch.einsum("mhd,hvd->mhv", pooled, weight).flatten(1))


class Memory(nn.Module):
    """A softmax over learned prototypes, each with a code: what a content token resembles.

        m(t) = W_m · norm(softmax(t·P / (|t| τ)) C)

    Two ambiguous tokens may be similar although they mean different things; their codes agree only
    as far as both resemble the same prototypes. This is a modern Hopfield layer (arXiv 2008.02217)
    whose values differ from its keys.
    """

    def __init__(self, hidden_size: int, config: ICMConfig) -> None:
        super().__init__()
        width, rank = config.memory_width or hidden_size // 2, config.memory_rank
        self.basis = None if rank is None else nn.Parameter(torch.empty(hidden_size, rank))
        self.prototypes = nn.Parameter(torch.empty(config.memory_size, rank or hidden_size))
        self.codes = nn.Parameter(torch.empty(config.memory_size, width))
        self.out = nn.Linear(width, hidden_size, bias=False)
        self.temperature, self.eps = config.memory_temperature, config.norm_eps
        self.derived = DerivedTensor()

    def reminds(self, tokens: Tensor) -> Tensor:
        """Softmax over the prototypes, ``[m, n]``, of tokens ``[m, d]``."""
        # In float32: a small temperature makes much of what bfloat16 rounds away.
        normed = nn.functional.normalize(tokens.float(), dim=-1)
        if self.basis is not None:  # prototypes are the parts of unit vectors in its directions
            likeness = normed @ self.basis.float() @ self.prototypes.float().T
        else:
            likeness = normed @ self.derived.get([self.prototypes], self._unit_prototypes).T
        return (likeness / self.temperature).softmax(-1)

    def _unit_prototypes(self) -> Tensor:
        return nn.functional.normalize(self.prototypes.float(), dim=-1)

    def code(self, reminds: Tensor) -> Tensor:
        """Normed codes ``[m, w]`` of what :meth:`reminds` gives."""
        read = reminds.to(self.codes.dtype) @ self.codes
        return nn.functional.rms_norm(read, read.shape[-1:], eps=self.eps)

    def forward(self, code: Tensor) -> Tensor:
        """The part of a code that is added to tokens: ``[m, w]`` → ``[m, d]``."""
        return self.out(code)
