"""The kernels at the sizes of real models, compared with what they replace.

A trial is a case like those of :mod:`retrv_kernels.cases`, at the size of a real model. For a
comparison with the direct form, its folded arguments are computed from attention weights
(:mod:`bench.suites.kernels.weights`).
"""

from __future__ import annotations

from bench.harness import Suite
from bench.suites.kernels import attention, layer, linear, splice, tokens
from bench.suites.kernels.entries import Context
from bench.suites.kernels.sizes import all_sizes, left_out

_NOTES = (
    "Every call starts with cold caches: before it, twice the size of the last-level cache is "
    "read, as other layers of a model would. On a GPU the time is that of a replayed graph of 20 "
    "or more calls, whose inputs together fill the last-level cache twice. A call that cannot be "
    "captured is timed by itself; its row says so.",
    "× a baseline: its time divided by the row's time, median over rounds (quartiles); above 1 the "
    "row is faster.",
    "of bound: the least possible time divided by the measured time. The least time is the bytes "
    "that must be moved divided by the read bandwidth (on a GPU, that of copies), or the "
    "operations of the cheaper form divided by the rate of products, whichever is larger.",
    "error: largest difference from float64, relative to the largest value. A row whose error "
    "exceeds the tolerance has no speed.",
    "folded, dense and direct, dense: either form in plain PyTorch for items of one length, "
    "without padding; the direct one forms all of R.",
    "content token: pool_tokens, then value and output projection. direct: the paper's equation "
    "from the same features and weights, with the norm.",
    "relation token: computed from stored relation keys. What depends only on the query (its keys "
    "and values) is computed before timing, for every form. direct: forms and norms "
    "R, projects its keys and values, and pools.",
    "SDPA, dense: before timing, each sequence gets a contiguous copy of its keys and values. "
    "SDPA, gathered: copies them from pages within the call.",
    "paged, same pages: paged_attention over the shared pages, which reads them for each sequence. "
    "paged, copies: each sequence has its own copy of the prefix in pages.",
)


def suite(device: str, rate: float, quick: bool) -> Suite:
    """All trials on a device.

    Args:
        device: "cpu" or "cuda".
        rate: FLOP/s of products in the device's dtype, by which slow entries are left out.
        quick: whether each op gets only one shape of a real model and one of the tiny model.
    """
    context = Context.of(device, rate)
    sizes = all_sizes(quick)
    trials = [
        *tokens.trials(context, sizes),
        *splice.trials(context, quick),
        *attention.trials(context, quick),
        *linear.trials(context, quick),
        *layer.trials(context, quick),
    ]
    return Suite(trials, (*_NOTES, *left_out(sizes)))
