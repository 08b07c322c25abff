"""The kernels at the sizes of real models, beside what they replace.

A trial is a case of :mod:`retrv_kernels.cases` at a speed size. Where a direct form is compared,
the case's folded arguments come from attention weights (:mod:`bench.suites.kernels.peers`).
"""

from __future__ import annotations

from bench.harness import Suite
from bench.suites.kernels import attention, layer, linear, splice, tokens
from bench.suites.kernels.entries import Context

_NOTES = (
    "Every call starts with cold caches: twice the last-level cache is read before it, as a "
    "model's other layers do. On a GPU the time is of a replayed graph of 20 calls or more over "
    "inputs of their own, twice the last-level cache in all; what cannot be captured is timed call "
    "by call, and says so.",
    "× a baseline: its time divided by the row's, median over rounds (quartiles); above 1 is "
    "faster.",
    "of bound: bytes that must be moved once over the read bandwidth (a GPU's: of copies), or "
    "operations of the folded form over the rate of products in the dtype, whichever takes longer, "
    "divided by the time.",
    "error: the largest against float64, relative to the largest value. What exceeds the tolerance "
    "has no speed.",
    "folded, dense: the folded form in plain PyTorch for items of one length, which pads nothing.",
    "content token: pool_tokens, then value and output projection. direct: the paper's equation "
    "from the same features and weights, norm included.",
    "relation token: from stored relation keys; what depends on the query alone (its keys and "
    "values, folded or not) is prepared beforehand for every form. direct: R formed, normed, its "
    "keys and values projected, pooled.",
    "SDPA, dense: keys and values lie contiguous beforehand, for each sequence its own copy; SDPA, "
    "gathered: from pages, in the call.",
    "paged, same pages: paged_attention over the shared pages, once for each sequence; paged, "
    "copies: each sequence has a copy of the prefix in pages of its own.",
)


def suite(device: str, rate: float, quick: bool) -> Suite:
    """All trials of a device, "cpu" or "cuda".

    Args:
        rate: FLOP/s of products in the device's dtype, to leave out what would take too long.
        quick: one shape of a real model and one of the tiny one for every op.
    """
    context = Context.of(device, rate)
    sizes = tokens.sizes(quick)
    trials = [
        *tokens.trials(context, sizes),
        *splice.trials(context, quick),
        *attention.trials(context, quick),
        *linear.trials(context, quick),
        *layer.trials(context, quick),
    ]
    return Suite(trials, (*_NOTES, *tokens.left_out(sizes)))
