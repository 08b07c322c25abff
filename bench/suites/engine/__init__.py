"""Whole requests through engines: prefill, decode, rerank, rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from bench.harness import Entry, Prepared, Suite, Trial
from bench.suites.engine.entries import local, peers, plain, sglang, token
from bench.suites.engine.workload import Workload
from retrv_engine import Request

TOKENS = 64
# Of logits, relative to the largest; two ids below 16,384 that differ at all differ by more.
TOLERANCE = 5e-5
_FULL = "transformers, full tokens"
_NOTES = (
    "Features are computed before: encoding and compressing candidates is not timed here (see "
    "bench.profile).",
    "Calls start with empty caches unless their name says warm. Decoding is greedy; all free "
    "tokens are compared, in fast mode the labels' logits. An entry that differs is not timed.",
    "transformers: our plain engine, the reference, which runs the model's own modules with SDPA "
    "and a contiguous cache. local: the embedded engine. Both also write </think> and the answer, "
    "one forward pass more than peers.",
    "llama.cpp and vLLM run in separate processes on the same weights and rows of embeddings. Full "
    "tokens are placed in a line instead of a grid, which costs the same, so that all engines "
    "agree. vLLM runs without compilation (enforce_eager).",
    "On a GPU models are in bfloat16, where engines may choose different tokens: nothing is "
    "compared there (pytest -m gpu compares in float32).",
    "× a baseline: its time divided by the row's, median over rounds (quartiles); above 1 is "
    "faster.",
)


def rerank(device: str, quick: bool) -> Suite:
    """One query: K candidates, 64 tokens of reasoning, with and without inspections."""
    tiny, small = _workloads(device, quick)
    trials = [_listwise(tiny, 50, full=True), _listwise(tiny, 50, inspections=3)]
    if small is not None:
        trials += [
            _listwise(small, 10, full=True),
            _listwise(small, 50),
            _listwise(small, 100),
            _listwise(small, 50, inspections=1),
            _listwise(small, 50, inspections=3),
            _listwise(small, 50, full=True, full_peers=True),
        ]
    notes = "K = 100 with full tokens is left out: 8,320 rows take minutes per call."
    return Suite(trials, (*_NOTES, notes))


def engines(device: str, quick: bool) -> Suite:
    """The engines compared with each other, and the gain from shared prefixes."""
    tiny, small = _workloads(device, quick)
    one = tiny.request(50, 50, tokens=TOKENS)
    looks = tiny.request(50, 50, tokens=TOKENS, inspections=1)
    trials = [
        _engines(tiny, "50 candidates", [one]),
        _engines(tiny, "50 candidates, an inspection", [looks]),
        _engines(tiny, "50 candidates, answer at once", [tiny.request(50, 50)]),
        _engines(tiny, "8 rollouts over 50 candidates", [one] * 8, unshared=True),
        _engines(tiny, "50 pointwise prompts", tiny.pointwise(50, 50), unshared=True),
    ]
    if small is not None:
        few = small.request(50, 50, tokens=16)
        trials += [
            _engines(small, "8 rollouts of 16 tokens over 50 candidates", [few] * 8, unshared=True),
            _engines(small, "12 pointwise prompts", small.pointwise(12, 12), unshared=True),
        ]
    notes = (
        "SGLang: a server in a separate process, over HTTP; its cache is flushed before each call.",
        "rows computed: rows of prompts and of generated tokens that went through the model.",
    )
    return Suite(trials, (*_NOTES[:3], *notes, _NOTES[-1]))


def _engines(
    work: Workload, name: str, requests: Sequence[Request], unshared: bool = False
) -> Trial:
    """Three engines; with ``unshared`` also local and SGLang without a radix cache."""

    def prepare() -> Prepared:
        reference = plain(work, requests, 16)
        entries = [Entry("transformers", reference, baseline=True)]
        for radix in (True, False) if unshared else (True,):
            how = "" if radix else ", nothing shared"
            call = local(work, requests, radix=radix)
            entries.append(Entry(f"local{how}", call, counts=call.counts))
            entries.append(sglang(work, requests, f"SGLang{how}", radix=radix))
        return Prepared(reference, entries)

    rounds = None if work.name == "tiny" else 2
    return _trial("engines", work, name, prepare, {"requests": len(requests)}, rounds=rounds)


def rollout(device: str, quick: bool) -> Suite:
    """Several sequences at once: rollouts over one prompt, and different queries."""
    tiny, small = _workloads(device, quick)
    trials = [trial for work in (tiny, small) if work for trial in _rollouts(work)]
    note = "8 rollouts are greedy copies, so that they can be compared; each is decoded separately."
    return Suite(trials, (*_NOTES, note))


def decode(device: str, quick: bool) -> Suite:
    """Short prompts and 33 tokens: time of a step by number of sequences and dtype of weights."""
    tiny, small = _workloads(device, quick)
    trials = [_decode(tiny, 1), _decode(tiny, 8)]
    if small is not None:
        trials += [_decode(small, count) for count in (1, 8)]
    note = "float16 and int8: weights are rounded, so results are not compared."
    return Suite(trials, (*_NOTES, note))


def prefill(device: str, quick: bool) -> Suite:
    """Text prompts, up to the first token."""
    tiny, small = _workloads(device, quick)
    trials = [_prefill(tiny, 170)]
    if small is not None:
        trials += [_prefill(small, 170), _prefill(small, 1024)]
    return Suite(trials, _NOTES)


def _workloads(device: str, quick: bool) -> tuple[Workload, Workload | None]:
    """The models tiny and, unless ``quick``, bench-small."""
    return Workload.tiny(device), None if quick else Workload.small(device)


def _listwise(
    work: Workload, k: int, *, full: bool = False, inspections: int = 0, full_peers: bool = False
) -> Trial:
    """A query over K candidates.

    Args:
        full: whether prompts of full tokens are measured too.
        full_peers: whether peers are given those prompts.
    """

    def prepare() -> Prepared:
        short = [work.request(k, k, tokens=TOKENS, inspections=inspections)]
        fast = [work.request(k, k)]
        entries = []
        if full:
            long = [work.request(k, k, full=True, tokens=TOKENS)]
            entries.append(Entry(_FULL, plain(work, long), baseline=True, compared=False))
            if full_peers:
                entries += peers(work, long, TOKENS, suffix=", full tokens", like=_FULL)
            entries.append(Entry("local, full tokens", local(work, long), like=_FULL))
        reference = plain(work, short)
        entries.append(Entry("transformers, compressed", reference, baseline=True))
        if work.name != "tiny" and not inspections:
            entries += peers(work, short, TOKENS, suffix=", compressed")
        entries.append(Entry("local, compressed", local(work, short)))
        if not inspections:
            name = "transformers, fast"
            entries.append(Entry(name, plain(work, fast), compared=False))
            entries.append(Entry("local, fast", local(work, fast), like=name))
        return Prepared(reference, entries)

    seen = f", {inspections} inspections" if inspections else ""
    return _trial(
        "rerank", work, f"K = {k}{seen}", prepare, {"K": k}, rounds=2 if full and k > 10 else None
    )


def _rollouts(work: Workload) -> Iterator[Trial]:
    count = 8

    def trial(name: str, requests: Sequence[Request], serial: bool) -> Trial:
        def prepare() -> Prepared:
            batched = plain(work, requests, count)
            entries = [Entry("transformers, batched", batched, baseline=True)]
            if serial:
                each = plain(work, requests)
                entries.append(Entry("transformers, one by one", each, baseline=True))
            if work.name != "tiny":
                entries += peers(work, requests, TOKENS)
            entries.append(Entry("local", local(work, requests)))
            return Prepared(batched, entries)

        return _trial("rollout", work, name, prepare, {"sequences": count}, rounds=2)

    one = work.request(50, 50, tokens=TOKENS)
    yield trial("8 rollouts, K = 50", [one] * count, False)
    different = [work.request(100 + i, 50, tokens=TOKENS) for i in range(count)]
    yield trial("8 queries, K = 50", different, True)


def _decode(work: Workload, count: int) -> Trial:
    tokens, rows = 33, 16

    def prepare() -> Prepared:
        requests = [work.text(i, rows, tokens) for i in range(count)]
        reference = plain(work, requests, count)
        entries = [Entry("transformers", reference, baseline=True)]
        if work.name != "tiny":
            stored = ("float32", "float16", "int8")
            entries += peers(work, requests, tokens, weights=stored)
        entries.append(Entry("local", local(work, requests)))
        for weights in ("float16", "int8"):
            title = f"local, {weights}"
            if work.model.device.type == "cpu":
                run = local(work, requests, weights)
                entries.append(Entry(title, run, compared=False))
            else:
                entries.append(Entry(title, list, because="weights are rounded on CPUs only"))
        return Prepared(reference, entries)

    name = f"{count} sequence{'s' if count > 1 else ''}"
    flops = 2 * work.parameters * count * (rows + tokens)
    moved = work.model.dtype.itemsize * work.parameters * tokens
    return _trial("decode", work, name, prepare, {"sequences": count}, flops=flops, moved=moved)


def _prefill(work: Workload, rows: int) -> Trial:
    def prepare() -> Prepared:
        requests = [work.text(rows, rows, 0)]
        reference = plain(work, requests)
        entries = [
            Entry("transformers", reference, baseline=True),
            Entry("local", local(work, requests)),
            Entry("local, warm", local(work, requests, warm=True)),
        ]
        if work.name != "tiny":
            asked = work.text(rows, rows, 1)  # the same words, followed by <think>
            name = "transformers, to a token"
            entries.append(Entry(name, token(work, asked), compared=False))
            entries += peers(work, [asked], 1, like=name)
        return Prepared(reference, entries)

    flops = 2 * work.parameters * rows
    name = f"{rows} rows"
    return _trial("prefill", work, name, prepare, {"rows": rows}, flops=flops)


def _trial(
    op: str,
    work: Workload,
    name: str,
    prepare: Callable[[], Prepared],
    shape: dict[str, int],
    *,
    flops: int = 0,
    moved: int = 0,
    rounds: int | None = None,
) -> Trial:
    exact = work.model.dtype == torch.float32

    def made() -> Prepared:
        prepared = prepare()
        if exact:
            return prepared
        entries = [replace(entry, compared=False) for entry in prepared.entries]
        return Prepared(lambda: [], entries)

    return Trial(
        op=op,
        name=f"{work.name}, {name}",
        dtype=str(work.model.dtype).removeprefix("torch."),
        shape=shape,
        flops=flops,
        bytes=moved,
        tolerance=TOLERANCE,
        prepare=made,
        rounds=rounds,
    )
