"""pool_tokens and relate_tokens alone, and the content and relation tokens that they are for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels import peers
from bench.suites.kernels.entries import (
    QWEN_3B,
    QWEN_7B,
    TINY,
    Context,
    Model,
    call,
    compiled,
    copied,
    moved,
    ours,
)
from retrv_kernels import inputs
from retrv_kernels.cases import TOLERANCE
from retrv_kernels.inputs import Case
from retrv_r1.model.icm_layers import Attention, Pool

EPS = 1e-6
HEADS = (8, 4)  # of ATT₂ and ATT₁
# Bytes of float32 rows above which a combination is left out.
LARGEST = 1.2e9
# Seconds of a call above which a direct form is left out: four calls are needed at least.
SLOWEST = 10.0
# Rows at a time in float64: of all at once the reference would need 8 GB.
EXACT_ROWS = 2**14

FORMS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}
# A token's projections round to bfloat16 after the operation, and a direct form each of its steps.
HALF_TOLERANCE = 3e-2
SWEPT = tuple(Model(f"d={d}", d, d // 4, (1, 1)) for d in (192, 768))


@dataclass(frozen=True)
class Sizes:
    """Candidates and their rows; rows of a query that they relate to, None to pool alone."""

    model: Model
    candidates: int = 50
    rows: int = 256
    asked: int | None = None
    norm: bool = True
    plots: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        asked = "" if self.asked is None else f", {self.asked} asked"
        norm = "" if self.norm else ", no norm"
        return f"{self.model.name} {self.candidates} × {self.rows}{asked}{norm}"

    @property
    def row_width(self) -> int:
        return self.model.d if self.asked is None else self.model.w

    @property
    def too_large(self) -> bool:
        return 4 * self.candidates * self.rows * self.row_width > LARGEST


def sizes(quick: bool) -> list[Sizes]:
    """Of both operations."""
    make = _quick if quick else _full
    return [*make(None), *make(64)]


def left_out(sizes: Sequence[Sizes]) -> list[str]:
    """A note for each combination that is too large."""
    return [
        f"left out: {one.name}, whose float32 rows are "
        f"{4 * one.candidates * one.rows * one.row_width / 1e9:.1f} GB"
        for one in sizes
        if one.too_large
    ]


def trials(context: Context, sizes: Sequence[Sizes]) -> Iterator[Trial]:
    """The operation alone in every size; narrower rows, and whole tokens, in plotted ones.

    A GPU computes in bfloat16, and in float32 from int8 rows.
    """
    for one in sizes:
        if one.too_large:
            continue
        yield _operation(context, one, context.form)
        if "ratios" in one.plots:
            if context.form == "float32":
                yield _operation(context, one, "float16")
            yield _operation(context, one, "int8")
        if one.plots:
            yield _token(context, one)


def _quick(asked: int | None) -> Iterator[Sizes]:
    yield Sizes(TINY, rows=12, asked=asked and 12, plots=("ratios",))
    yield Sizes(QWEN_3B, asked=asked, plots=("ratios",))


def _full(asked: int | None) -> Iterator[Sizes]:
    tiny = Sizes(TINY, rows=12, asked=asked and 12)
    yield from (replace(tiny, candidates=k) for k in (10, 100))
    yield replace(tiny, plots=("ratios",))
    for k in (10, 50, 100):
        for rows in (81, 256, 1280):
            middle = k == 50 and rows == 256
            sweeps = {"K": rows == 256, "rows": k == 50, "d": middle, "ratios": middle}
            plots = tuple(name for name, there in sweeps.items() if there)
            yield Sizes(QWEN_3B, k, rows, asked, plots=plots)
    yield from (Sizes(model, asked=asked, plots=("d",)) for model in SWEPT)
    yield Sizes(QWEN_7B, asked=asked, plots=("d", "ratios"))
    yield Sizes(QWEN_7B, rows=81, asked=asked)
    yield Sizes(QWEN_7B, 100, 1280, asked)
    if asked is not None:
        yield replace(tiny, asked=8)
        for model in (QWEN_3B, QWEN_7B):
            yield Sizes(model, asked=8)
            yield Sizes(model, asked=8, norm=False)
            yield Sizes(model, asked=64, norm=False, plots=("ratios",))
        yield Sizes(QWEN_3B, asked=256)


def _case(one: Sizes, form: str) -> Case:
    lengths, model, int8 = [one.rows] * one.candidates, one.model, form == "int8"
    if one.asked is None:
        return inputs.pool_tokens(one.name, lengths, model.d, HEADS[1], eps=EPS, int8=int8)
    return inputs.relate_tokens(
        *(one.name, lengths, [one.asked], model.w, model.d, HEADS),
        eps=EPS if one.norm else None,
        int8=int8,
    )


@dataclass(frozen=True)
class Weights:
    """ATT₁ with its embedding, ATT₂, and rows of a query."""

    pool: Pool
    relate: Attention
    asked: Tensor

    @classmethod
    def random(cls, one: Sizes, device: str, dtype: torch.dtype) -> Weights:
        """Rows of size 1 keep their size."""
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
        """What a case's arguments hold of the weights, rounded once."""
        wide = self if dtype == torch.float64 else self.to(torch.float32)
        folded = {"folded_queries": wide.pool.folded_queries(None)}
        if len(wide.asked):
            folded["query_keys"] = wide.relate.k_proj(wide.asked) * wide.relate.scale
            folded["folded_values"] = wide.relate.folded_values(wide.asked)
        return moved(folded, dtype)

    def to(self, dtype: torch.dtype) -> Weights:
        """The same in another dtype."""
        pool, relate = copy.deepcopy(self.pool).to(dtype), copy.deepcopy(self.relate).to(dtype)
        return Weights(pool, relate, self.asked.to(dtype))

    def arguments(self, case: Case, form: str) -> dict[str, Any]:
        """The case's arguments, the folded ones of these weights."""
        arguments = moved(case.arguments(FORMS[form]), str(self.asked.device))
        return arguments | self.folded(FORMS[form])

    def token(self, pooled: Tensor) -> Tensor:
        """Value and output projection of what the heads have pooled, in its dtype."""
        wide = pooled.dtype == torch.float64
        pool = copy.deepcopy(self.pool).double() if wide else self.pool
        return pool.token(pooled, None)

    @torch.no_grad()
    def direct(
        self, one: Sizes, arguments: Mapping[str, Any], form: Callable[..., Tensor], fused: bool
    ) -> Callable[[], Tensor]:
        """The token by the paper's equations, by SDPA or not; the query's side is prepared.

        Args:
            form: of :mod:`bench.suites.kernels.peers`, or what a compiler made of it.
        """
        if one.asked is None:
            rows = arguments["features"].unflatten(0, (one.candidates, one.rows))
            return partial(form, self.pool, rows, EPS, fused)
        rows = arguments["relation_keys"].unflatten(0, (one.candidates, one.rows))
        query = (self.relate.k_proj(self.asked), self.relate.v_proj(self.asked))
        return partial(form, self.pool, self.relate, rows, *query, arguments["eps"], fused)


_RAGGED = ("cu_seqlens", "cu_queries", "candidate", "query")


def form_of(one: Sizes) -> Callable[..., Tensor]:
    """The operation in plain PyTorch where all items have one length: it waits for nothing."""
    return peers.folded_pool if one.asked is None else peers.folded_relate


def _operation(context: Context, one: Sizes, form: str) -> Trial:
    """The operation alone."""
    case = _case(one, form)
    charted = form == context.form

    def entries(arguments: Mapping[str, Any], fast: Callable[..., Tensor]) -> list[Entry]:
        made = ours(case.op, context.device, partial(call, case.op, arguments), "folded")
        dense = {name: value for name, value in arguments.items() if name not in _RAGGED}
        dense["count"] = one.candidates
        if charted:
            made.append(Entry("folded, dense", partial(form_of(one), **dense), baseline=True))
        if "ratios" in one.plots and charted:
            made.append(compiled("folded, dense, compiled", partial(fast, **dense), context))
        return made

    def prepare() -> Prepared:
        arguments = moved(case.arguments(FORMS[form]), context.device)
        fast = torch.compile(form_of(one), dynamic=False)
        return Prepared(
            partial(_exact, one, case.op, arguments),
            entries(arguments, fast),
            lambda: entries(copied(arguments), fast),
        )

    return Trial(
        op=case.op,
        name=case.name,
        dtype=form,
        shape=case.shape,
        flops=case.flops,
        bytes=_bytes(one, form),
        tolerance=TOLERANCE[case.op][FORMS[form]],
        prepare=prepare,
        plots=one.plots if charted else (),
    )


def _token(context: Context, one: Sizes) -> Trial:
    """The whole token: the operation, then ATT₁'s value and output projection."""
    form, d = context.form, one.model.d
    case = _case(one, form)
    projections = 4 if one.asked is None else 6  # FLOPs a row are this times d²
    seconds = projections * one.candidates * one.rows * d * d / context.rate
    because = f"left out: a call would take about {seconds:.0f} s" if seconds > SLOWEST else ""
    equation = peers.content_token if one.asked is None else peers.relation_token

    def entries(
        weights: Weights, arguments: Mapping[str, Any], fast: Callable[..., Tensor]
    ) -> list[Entry]:
        direct = partial(weights.direct, one, arguments)
        made = ours(
            case.op, context.device, lambda: weights.token(call(case.op, arguments)), "folded"
        )
        made.append(Entry("direct", direct(equation, False), baseline=True, because=because))
        if "ratios" in one.plots:
            made.append(Entry("direct, SDPA", direct(equation, True), because=because))
            run = direct(fast, False)
            made.append(compiled("direct, compiled", run, context, because))
        return made

    def prepare() -> Prepared:
        weights = Weights.random(one, context.device, context.dtype)
        arguments = weights.arguments(case, form)
        fast = torch.compile(equation, dynamic=False)
        return Prepared(
            lambda: weights.token(_exact(one, case.op, arguments)),
            entries(weights, arguments, fast),
            # The weights stay where they are: a compiler would begin anew with others.
            lambda: entries(weights, copied(arguments), fast),
        )

    # The result is H times smaller than the operation's; W_v and W_o are read.
    extra = 2 * d * d - (HEADS[1] - 1) * one.candidates * d
    exact = TOLERANCE[case.op][context.dtype]
    return Trial(
        op="content token" if one.asked is None else "relation token",
        name=case.name,
        dtype=form,
        shape=case.shape,
        flops=case.flops + 4 * one.candidates * d * d,
        bytes=_bytes(one, form) + context.dtype.itemsize * extra,
        tolerance=exact if context.dtype == torch.float32 else HALF_TOLERANCE,
        prepare=prepare,
        plots=one.plots,
    )


def _exact(one: Sizes, op: str, arguments: Mapping[str, Any]) -> Tensor:
    """The operation in float64, some candidates at a time."""
    rows = "features" if one.asked is None else "relation_keys"
    step = max(1, EXACT_ROWS // one.rows)
    parts = []
    for first in range(0, one.candidates, step):
        count = min(step, one.candidates - first)
        own = slice(first * one.rows, (first + count) * one.rows)
        scales = arguments["scales"]
        part = {
            rows: arguments[rows][own],
            "scales": None if scales is None else scales[own],
            "cu_seqlens": arguments["cu_seqlens"][: count + 1],
        }
        if one.asked is not None:
            part |= {name: arguments[name][:count] for name in ("candidate", "query")}
        parts.append(call(op, moved({**arguments, **part}, torch.float64)))
    return torch.cat(parts)


def _bytes(one: Sizes, form: str) -> int:
    """Of rows, their scales, the folded arguments and the result, each once."""
    d, size = one.model.d, FORMS[form].itemsize
    row = one.row_width * (1 if form == "int8" else size) + (4 if form == "int8" else 0)
    query = (one.asked or 0) * (one.model.w + HEADS[0] * d)
    out = 4 * one.candidates * HEADS[1] * d
    return one.candidates * one.rows * row + (query + HEADS[1] * d) * size + out
