"""pool_tokens and relate_tokens alone, and within content and relation tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.harness import Entry, Prepared, Trial
from bench.suites.kernels import peers
from bench.suites.kernels.entries import Context, call, compiled, converted, copied, implementations
from bench.suites.kernels.sizes import Sizes
from bench.suites.kernels.weights import DTYPES, EPS, HEADS, Weights
from retrv_kernels.cases import TOLERANCE
from retrv_kernels.inputs import Case
from retrv_kernels.pool_tokens import cases as pool_tokens
from retrv_kernels.relate_tokens import cases as relate_tokens

# Seconds of a call above which a peer is left out; it needs four calls or more.
SLOWEST = 10.0
# Rows at a time in float64: the reference would need 8 GB for all at once.
EXACT_ROWS = 2**14

# A token's projections round to bfloat16, and so does every step of a direct form.
HALF_TOLERANCE = 3e-2


def trials(context: Context, sizes: Sequence[Sizes]) -> Iterator[Trial]:
    """Trials of the operation in all sizes; of narrower rows and whole tokens in plotted ones.

    A GPU computes in bfloat16, and in float32 from int8 rows.
    """
    for one in sizes:
        if one.too_large:
            continue
        yield _operation(context, one, context.dtype_name)
        if "ratios" in one.plots:
            if context.dtype_name == "float32":
                yield _operation(context, one, "float16")
            yield _operation(context, one, "int8")
        if one.plots:
            yield _token(context, one)


def case_of(one: Sizes, form: str) -> Case:
    """The case of these sizes, with rows in the dtype that ``form`` names."""
    lengths, model, int8 = [one.rows] * one.candidates, one.model, form == "int8"
    if one.asked is None:
        return pool_tokens.make(one.name, lengths, model.d, HEADS[1], eps=EPS, int8=int8)
    return relate_tokens.make(
        *(one.name, lengths, [one.asked], model.w, model.d, HEADS),
        eps=EPS if one.norm else None,
        int8=int8,
    )


_RAGGED = ("cu_seqlens", "cu_queries", "candidate", "query")


def dense_form(one: Sizes) -> Callable[..., Tensor]:
    """The operation in plain PyTorch for items of one length, which never waits for the device."""
    return peers.folded_pool if one.asked is None else peers.folded_relate


def _operation(context: Context, one: Sizes, form: str) -> Trial:
    """A trial of the operation alone."""
    case = case_of(one, form)
    charted = form == context.dtype_name

    def entries(arguments: Mapping[str, Any], fast: Callable[..., Tensor]) -> list[Entry]:
        made = implementations(case.op, context.device, partial(call, case.op, arguments), "folded")
        dense = {name: value for name, value in arguments.items() if name not in _RAGGED}
        dense["count"] = one.candidates
        if charted:
            because = _too_slow(context, _dense_operations(one))
            run = partial(dense_form(one), **dense)
            made.append(Entry("folded, dense", run, baseline=True, because=because))
        if one.asked is not None and "ratios" not in one.plots and charted:
            run = partial(peers.direct_relate, **dense)
            made.append(Entry("direct, dense", run, baseline=True))
        if "ratios" in one.plots and charted:
            made.append(compiled("folded, dense, compiled", partial(fast, **dense), context))
        return made

    def prepare() -> Prepared:
        arguments = converted(case.arguments(DTYPES[form]), context.device)
        fast = torch.compile(dense_form(one), dynamic=False)
        return Prepared(
            partial(_expected, one, case.op, arguments),
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
        tolerance=TOLERANCE[case.op][DTYPES[form]],
        prepare=prepare,
        plots=one.plots if charted else (),
    )


def _token(context: Context, one: Sizes) -> Trial:
    """A trial of the whole token: the operation, then ATT₁'s value and output projection."""
    form, d = context.dtype_name, one.model.d
    case = case_of(one, form)
    projections = 4 if one.asked is None else 6  # FLOPs a row are this times d²
    because = _too_slow(context, projections * one.candidates * one.rows * d * d)
    equation = peers.content_token if one.asked is None else peers.relation_token

    def entries(
        weights: Weights, arguments: Mapping[str, Any], fast: Callable[..., Tensor]
    ) -> list[Entry]:
        direct = partial(weights.direct, one, arguments)
        made = implementations(
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
            lambda: weights.token(_expected(one, case.op, arguments)),
            entries(weights, arguments, fast),
            # The weights are not copied: with other weights a compiler would start again.
            lambda: entries(weights, copied(arguments), fast),
        )

    # The result is H times smaller than that of the operation; W_v and W_o are read too.
    extra = 2 * d * d - (HEADS[1] - 1) * one.candidates * d
    tolerance = TOLERANCE[case.op][context.dtype]
    return Trial(
        op="content token" if one.asked is None else "relation token",
        name=case.name,
        dtype=form,
        shape=case.shape,
        flops=case.flops + 4 * one.candidates * d * d,
        bytes=_bytes(one, form) + context.dtype.itemsize * extra,
        tolerance=tolerance if context.dtype == torch.float32 else HALF_TOLERANCE,
        prepare=prepare,
        plots=one.plots,
    )


def _dense_operations(one: Sizes) -> int:
    """Operations of the folded form's norms in plain PyTorch, which does not use their symmetry."""
    weights = HEADS[0] * (one.asked or 0) if one.norm else 0
    return 2 * weights * weights * (one.candidates * one.rows + one.model.d)


def _too_slow(context: Context, operations: int) -> str:
    """Why an entry is left out; empty if it is not."""
    seconds = operations / context.rate
    return f"left out: a call would take about {seconds:.0f} s" if seconds > SLOWEST else ""


def _expected(one: Sizes, op: str, arguments: Mapping[str, Any]) -> Tensor:
    """The result of the operation in float64, computed for some candidates at a time."""
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
        parts.append(call(op, converted({**arguments, **part}, torch.float64)))
    return torch.cat(parts)


def _bytes(one: Sizes, form: str) -> int:
    """Bytes of the rows, their scales, the folded arguments and the result, each once."""
    d, size = one.model.d, DTYPES[form].itemsize
    row = one.row_width * (1 if form == "int8" else size) + (4 if form == "int8" else 0)
    query = 0 if one.asked is None else one.asked * (one.model.w + d) + d * d
    out = 4 * one.candidates * HEADS[1] * d
    return one.candidates * one.rows * row + (query + HEADS[1] * d) * size + out
