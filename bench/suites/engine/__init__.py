"""Whole requests through engines: prefill, decode, rerank, rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from bench.harness import Entry, Prepared, Suite, Trial
from bench.suites.engine.entries import local, peers, plain, sglang, token
from bench.suites.engine.prompts import World
from retrv_engine import Request

TOKENS = 64
# Of logits, relative to the largest; two ids below 16,384 that differ at all differ by more.
TOLERANCE = 5e-5
_FULL = "transformers, full tokens"
_NOTES = (
    "Features are ready: encoding and compressing candidates is not timed here (bench.profile).",
    "A call begins with empty caches, where its name does not say warm. Decoding is greedy; all "
    "free tokens are compared, in fast mode the labels' logits: what differs has no speed.",
    "transformers: our plain engine, the reference: the model's own modules with SDPA and a "
    "contiguous cache. local: the embedded engine. Both write </think> and the answer besides, one "
    "pass more than peers.",
    "llama.cpp and vLLM get the same weights and the same rows of embeddings, in processes of "
    "their own; full tokens stand in a line instead of a grid, which costs the same, so that all "
    "agree. vLLM runs without compilation (enforce_eager).",
    "On a GPU models are in bfloat16, in which two engines may choose differently: nothing is "
    "compared there (pytest -m gpu does, in float32).",
    "× a baseline: its time divided by the row's, median over rounds (quartiles); above 1 is "
    "faster.",
)


def rerank(device: str, rate: float, quick: bool) -> Suite:
    """One query: K candidates, 64 tokens of reasoning, with and without inspections."""
    tiny, small = _worlds(device, quick)
    trials = [_listwise(tiny, 50, full=True), _listwise(tiny, 50, inspections=3)]
    if small is not None:
        trials += [
            _listwise(small, 10, full=True),
            _listwise(small, 50),
            _listwise(small, 100),
            _listwise(small, 50, inspections=1),
            _listwise(small, 50, inspections=3),
            _listwise(small, 50, full=True, asked=True),
        ]
    notes = "K = 100 at full tokens is left out: 8,320 rows take minutes a call."
    return Suite(trials, (*_NOTES, notes))


def engines(device: str, rate: float, quick: bool) -> Suite:
    """The engines beside each other, and what sharing prefixes is worth."""
    tiny, small = _worlds(device, quick)
    one = tiny.request(50, 50, tokens=TOKENS)
    looks = tiny.request(50, 50, tokens=TOKENS, inspections=1)
    trials = [
        _beside(tiny, "50 candidates", [one]),
        _beside(tiny, "50 candidates, an inspection", [looks]),
        _beside(tiny, "50 candidates, answer at once", [tiny.request(50, 50)]),
        _beside(tiny, "8 rollouts over 50 candidates", [one] * 8, unshared=True),
        _beside(tiny, "50 pointwise prompts", tiny.pointwise(50, 50), unshared=True),
    ]
    if small is not None:
        few = small.request(50, 50, tokens=16)
        trials += [
            _beside(small, "8 rollouts of 16 tokens over 50 candidates", [few] * 8, unshared=True),
            _beside(small, "12 pointwise prompts", small.pointwise(12, 12), unshared=True),
        ]
    notes = (
        "SGLang: a server of its own process, over HTTP; its cache is emptied before each call.",
        "rows computed: those that went through the model, of prompts and of what was written.",
    )
    return Suite(trials, (*_NOTES[:3], *notes, _NOTES[-1]))


def _beside(world: World, name: str, requests: Sequence[Request], unshared: bool = False) -> Trial:
    """Three engines; with ``unshared`` two of them also without a radix cache."""

    def prepare() -> Prepared:
        reference = plain(world, requests, 16)
        entries = [Entry("transformers", reference, baseline=True)]
        for radix in (True, False) if unshared else (True,):
            how = "" if radix else ", nothing shared"
            call = local(world, requests, radix=radix)
            entries.append(Entry(f"local{how}", call, counts=call.counts))
            entries.append(sglang(world, requests, f"SGLang{how}", radix=radix))
        return Prepared(reference, entries)

    rounds = None if world.name == "tiny" else 2
    return _trial("engines", world, name, prepare, {"requests": len(requests)}, rounds=rounds)


def rollout(device: str, rate: float, quick: bool) -> Suite:
    """Several sequences at once: chains of thought over one prompt, and different queries."""
    tiny, small = _worlds(device, quick)
    trials = [trial for world in (tiny, small) if world for trial in _several(world)]
    note = "8 rollouts are greedy copies, so that they can be compared; each decodes on its own."
    return Suite(trials, (*_NOTES, note))


def decode(device: str, rate: float, quick: bool) -> Suite:
    """Short prompts and 33 tokens: what a step costs, by sequences and by how weights are kept."""
    tiny, small = _worlds(device, quick)
    trials = [_decode(tiny, 1), _decode(tiny, 8)]
    if small is not None:
        trials += [_decode(small, count) for count in (1, 8)]
    note = "float16 and int8: rows with rounded weights, which are not compared."
    return Suite(trials, (*_NOTES, note))


def prefill(device: str, rate: float, quick: bool) -> Suite:
    """Prompts of words, read to the first token."""
    tiny, small = _worlds(device, quick)
    trials = [_prefill(tiny, 170)]
    if small is not None:
        trials += [_prefill(small, 170), _prefill(small, 1024)]
    return Suite(trials, _NOTES)


def _worlds(device: str, quick: bool) -> tuple[World, World | None]:
    """tiny, and unless the run is quick bench-small."""
    return World.tiny(device), None if quick else World.small(device)


def _listwise(
    world: World, k: int, *, full: bool = False, inspections: int = 0, asked: bool = False
) -> Trial:
    """A query over K candidates.

    Args:
        full: with prompts of full tokens; ``asked``: also of peers.
    """

    def prepare() -> Prepared:
        short = [world.request(k, k, tokens=TOKENS, inspections=inspections)]
        fast = [world.request(k, k)]
        entries = []
        if full:
            long = [world.request(k, k, full=True, tokens=TOKENS)]
            entries.append(Entry(_FULL, plain(world, long), baseline=True, compared=False))
            if asked:
                entries += peers(world, long, TOKENS, suffix=", full tokens", like=_FULL)
            entries.append(Entry("local, full tokens", local(world, long), like=_FULL))
        reference = plain(world, short)
        entries.append(Entry("transformers, compressed", reference, baseline=True))
        if world.name != "tiny" and not inspections:
            entries += peers(world, short, TOKENS, suffix=", compressed")
        entries.append(Entry("local, compressed", local(world, short)))
        if not inspections:
            name = "transformers, fast"
            entries.append(Entry(name, plain(world, fast), compared=False))
            entries.append(Entry("local, fast", local(world, fast), like=name))
        return Prepared(reference, entries)

    seen = f", {inspections} inspections" if inspections else ""
    return _trial(
        "rerank", world, f"K = {k}{seen}", prepare, {"K": k}, rounds=2 if full and k > 10 else None
    )


def _several(world: World) -> Iterator[Trial]:
    count = 8

    def trial(name: str, requests: Sequence[Request], serial: bool) -> Trial:
        def prepare() -> Prepared:
            batched = plain(world, requests, count)
            entries = [Entry("transformers, batched", batched, baseline=True)]
            if serial:
                each = plain(world, requests)
                entries.append(Entry("transformers, one by one", each, baseline=True))
            if world.name != "tiny":
                entries += peers(world, requests, TOKENS)
            entries.append(Entry("local", local(world, requests)))
            return Prepared(batched, entries)

        return _trial("rollout", world, name, prepare, {"sequences": count}, rounds=2)

    one = world.request(50, 50, tokens=TOKENS)
    yield trial("8 rollouts, K = 50", [one] * count, False)
    different = [world.request(100 + i, 50, tokens=TOKENS) for i in range(count)]
    yield trial("8 queries, K = 50", different, True)


def _decode(world: World, count: int) -> Trial:
    tokens, rows = 33, 16

    def prepare() -> Prepared:
        requests = [world.text(i, rows, tokens) for i in range(count)]
        reference = plain(world, requests, count)
        entries = [Entry("transformers", reference, baseline=True)]
        if world.name != "tiny":
            stored = ("float32", "float16", "int8")
            entries += peers(world, requests, tokens, weights=stored)
        entries.append(Entry("local", local(world, requests)))
        for weights in ("float16", "int8"):
            title = f"local, {weights}"
            if world.model.device.type == "cpu":
                run = local(world, requests, weights)
                entries.append(Entry(title, run, compared=False))
            else:
                entries.append(Entry(title, list, because="weights are rounded on CPUs only"))
        return Prepared(reference, entries)

    name = f"{count} sequence{'s' if count > 1 else ''}"
    flops = 2 * world.parameters * count * (rows + tokens)
    moved = world.model.dtype.itemsize * world.parameters * tokens
    return _trial("decode", world, name, prepare, {"sequences": count}, flops=flops, moved=moved)


def _prefill(world: World, rows: int) -> Trial:
    def prepare() -> Prepared:
        requests = [world.text(rows, rows, 0)]
        reference = plain(world, requests)
        entries = [
            Entry("transformers", reference, baseline=True),
            Entry("local", local(world, requests)),
            Entry("local, warm", local(world, requests, warm=True)),
        ]
        if world.name != "tiny":
            asked = world.text(rows, rows, 1)  # the same words, read as far as <think>
            name = "transformers, to a token"
            entries.append(Entry(name, token(world, asked), compared=False))
            entries += peers(world, [asked], 1, like=name)
        return Prepared(reference, entries)

    flops = 2 * world.parameters * rows
    name = f"{rows} rows"
    return _trial("prefill", world, name, prepare, {"rows": rows}, flops=flops)


def _trial(
    op: str,
    world: World,
    name: str,
    prepare: Callable[[], Prepared],
    shape: dict[str, int],
    *,
    flops: int = 0,
    moved: int = 0,
    rounds: int | None = None,
) -> Trial:
    exact = world.model.dtype == torch.float32

    def made() -> Prepared:
        prepared = prepare()
        if exact:
            return prepared
        entries = [replace(entry, compared=False) for entry in prepared.entries]
        return Prepared(lambda: [], entries)

    return Trial(
        op=op,
        name=f"{world.name}, {name}",
        dtype=str(world.model.dtype).removeprefix("torch."),
        shape=shape,
        flops=flops,
        bytes=moved,
        tolerance=TOLERANCE,
        prepare=made,
        rounds=rounds,
    )
