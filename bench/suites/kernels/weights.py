"""Weights of the compressor's attentions, for the forms that the operations are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.suites.kernels.entries import converted
from bench.suites.kernels.sizes import Sizes
from retrv_kernels.inputs import Case
from retrv_r1.model.icm_layers import Attention, Pool

EPS = 1e-6
HEADS = (8, 4)  # of ATT₂ and ATT₁
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}
"""dtype of the other floats, by the name of a trial's dtype."""


@dataclass(frozen=True)
class Weights:
    """ATT₁ with its embedding, ATT₂, and the rows of a query."""

    pool: Pool
    relate: Attention
    asked: Tensor

    @classmethod
    def random(cls, one: Sizes, device: str, dtype: torch.dtype) -> Weights:
        """Random weights that keep the size of rows of size 1."""
        d, generator = one.model.d, torch.Generator(device).manual_seed(one.model.d)
        with torch.device(device):
            pool, relate = Pool(d, HEADS[1]), Attention(d, HEADS[0], one.model.w)
        for weight in (*pool.attention.parameters(), *relate.parameters()):
            nn.init.normal_(weight, std=d**-0.5, generator=generator)
        nn.init.normal_(pool.embedding, std=2, generator=generator)
        asked = torch.randn(one.asked or 0, d, generator=generator, device=device).to(dtype)
        return cls(pool.to(dtype), relate.to(dtype), asked)

    @torch.no_grad()
    def folded(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The arguments of a case that depend on the weights, rounded once."""
        wide = self if dtype == torch.float64 else self.to(torch.float32)
        folded = {"folded_queries": wide.pool.folded_queries(None)}
        if len(wide.asked):
            folded["query_keys"] = wide.relate.k_proj(wide.asked) * wide.relate.scale
            folded["query_values"] = wide.relate.by_head(wide.relate.v_proj(wide.asked))
            folded["output"] = wide.relate.by_head(wide.relate.o_proj.weight)
        return converted(folded, dtype)

    def to(self, dtype: torch.dtype) -> Weights:
        """The same weights in another dtype."""
        pool, relate = copy.deepcopy(self.pool).to(dtype), copy.deepcopy(self.relate).to(dtype)
        return Weights(pool, relate, self.asked.to(dtype))

    def arguments(self, case: Case, form: str) -> dict[str, Any]:
        """The arguments of a case, with the folded ones of these weights."""
        arguments = converted(case.arguments(DTYPES[form]), str(self.asked.device))
        return arguments | self.folded(DTYPES[form])

    def token(self, pooled: Tensor) -> Tensor:
        """Value and output projection of what the heads pooled, in its dtype."""
        wide = pooled.dtype == torch.float64
        pool = copy.deepcopy(self.pool).double() if wide else self.pool
        return pool.token(pooled, None)

    @torch.no_grad()
    def direct(
        self, one: Sizes, arguments: Mapping[str, Any], form: Callable[..., Tensor], fused: bool
    ) -> Callable[[], Tensor]:
        """A function that computes the token by the paper's equations.

        The keys and values of the query are computed beforehand.

        Args:
            form: function of :mod:`bench.suites.kernels.peers`, compiled or not.
            fused: whether attention is PyTorch's scaled_dot_product_attention.
        """
        if one.asked is None:
            rows = arguments["features"].unflatten(0, (one.candidates, one.rows))
            return partial(form, self.pool, rows, EPS, fused)
        rows = arguments["relation_keys"].unflatten(0, (one.candidates, one.rows))
        query = (self.relate.k_proj(self.asked), self.relate.v_proj(self.asked))
        return partial(form, self.pool, self.relate, rows, *query, arguments["eps"], fused)
