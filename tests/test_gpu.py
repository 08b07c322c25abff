"""Engine and reranker on a GPU write what they do on the CPU; an emulated GPU shows it in CI."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_doubles import Steered, names_of, real_requests

from retrv_engine import EngineConfig, LocalEngine, Output, PlainEngine, Request, Sampling, decode
from retrv_engine.decode import DecodeStep
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import Item, RankedResults

PAGES = EngineConfig(cache_bytes=2**22)
ROW = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
SMALL = Sampling(max_reasoning_tokens=12, max_inspections=2)


def requests_on(device: str, labels: tuple[int, ...]) -> list[Request]:
    """Greedy, sampled and fast ones."""
    made = real_requests(labels, device=device)
    again = [replace(r, sampling=replace(r.sampling, temperature=1.2, top_p=0.9)) for r in made]
    return [*made, *again, *(replace(r, reason=False) for r in made)]


@pytest.fixture(scope="module")
def expected(make_model, processor) -> list[Output]:
    """What the plain engine writes on the CPU."""
    names = names_of(processor)
    plain = PlainEngine(Steered(make_model(), names), names)
    outputs = [plain.generate([one])[0] for one in requests_on("cpu", processor.tokens.labels)]
    assert sum(len(output.inspected) for output in outputs) >= 8
    return outputs


def same(found: list[Output], expected: list[Output]) -> None:
    """Token for token, and logits of labels within 1e-3: sums are in another order."""
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert (one.answer, one.inspected, one.well_formed) == (
            other.answer,
            other.inspected,
            other.well_formed,
        )
        torch.testing.assert_close(one.label_logits, other.label_logits, atol=1e-3, rtol=1e-3)


SETTINGS = {
    "default": PAGES,
    "pages run out": EngineConfig(cache_bytes=220 * ROW, page_size=4, chunk_rows=7),
}


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_the_engine_writes_what_the_plain_one_does(gpu, make_model, processor, expected, config):
    """With inspections, cold and warm; where pages run out, evicted and preempted."""
    names = names_of(processor)
    engine = LocalEngine(Steered(gpu.move(make_model()), names), names, config)
    made = requests_on("cuda", processor.tokens.labels)
    for _ in range(2):
        same(engine.generate(made), expected)
        engine.check()
    assert not engine.runner.steps.graphs.refused
    stats = engine.stats()
    assert stats.cached_rows > 0
    assert (stats.preempted > 0 and stats.evicted_pages > 0) == (config.cache_bytes < 2**22)


@pytest.fixture
def replays(monkeypatch) -> list[object]:
    """Graphs that were replayed; made anew by each test."""
    seen: list[object] = []
    graph = torch.cuda.CUDAGraph
    replay = graph.replay
    monkeypatch.setattr(graph, "replay", lambda self: (seen.append(self), replay(self))[1])
    return seen


@pytest.mark.parametrize("what", ["an error", "moved parameters"])
def test_steps_are_captured_again_after(what, gpu, replays, make_model, processor, monkeypatch):
    """In memory of their own: a pool whose graphs are gone takes no others."""
    names = names_of(processor)
    model = Steered(gpu.move(make_model()), names)
    engine = LocalEngine(model, names, PAGES)
    made = requests_on("cuda", processor.tokens.labels)[:3]
    first = engine.generate(made)
    before = set(replays)
    assert before
    if what == "an error":
        with monkeypatch.context() as patch:
            patch.setattr(DecodeStep, "take", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.generate(made)
    else:
        engine.runner._places = []  # nothing lies where it lay
        engine.load_weights({})
    del replays[:]
    engine.flush()
    same(engine.generate(made), first)
    assert replays and not before & set(replays)
    assert not engine.runner.steps.graphs.refused


def test_a_refused_capture_leaves_an_engine_that_works(
    gpu, make_model, processor, expected, monkeypatch, caplog
):
    """Without graphs, and it says so."""
    taken = decode.sample
    waits = True

    def waiting(logits, *others):
        if waits:
            logits.sum().item()
        return taken(logits, *others)

    monkeypatch.setattr(decode, "sample", waiting)
    names = names_of(processor)
    engine = LocalEngine(Steered(gpu.move(make_model()), names), names, PAGES)
    made = requests_on("cuda", processor.tokens.labels)
    same(engine.generate(made), expected)
    assert engine.runner.steps.graphs.refused
    assert caplog.text.count("run without CUDA graphs") == 1
    engine.flush()
    waits = False
    same(engine.generate(made), expected)


def test_a_group_shares_its_prompt(gpu, make_model, processor):
    """Rollouts of one prompt, sampled: each follows its seed, whoever runs beside it."""
    names = names_of(processor)
    hot = dict(temperature=1.0, top_p=0.95)

    def group(device: str) -> list[Request]:
        one = real_requests(processor.tokens.labels, device=device)[0]
        return [replace(one, sampling=replace(one.sampling, seed=g, **hot)) for g in range(6)]

    plain = PlainEngine(Steered(make_model(), names), names)
    wanted = [plain.generate([one])[0] for one in group("cpu")]
    assert len({output.tokens for output in wanted}) > 1
    engine = LocalEngine(Steered(gpu.move(make_model()), names), names, PAGES)
    same(engine.generate(group("cuda")), wanted)


def test_scores_are_the_plain_engines(gpu, make_model, processor):
    names = names_of(processor)
    prompt, tokens = [11, 12, 13], [40, 41, 42, 43]
    plain = LocalEngine(make_model(), names, PAGES).score(prompt, tokens)
    found = LocalEngine(gpu.move(make_model()), names, PAGES).score(prompt, tokens)
    assert found == pytest.approx(plain, abs=1e-4)


@pytest.fixture(scope="module")
def items(picture) -> list[Item]:
    """Texts, pictures, both."""
    return [
        Item(text="a red apple"),
        Item(text="a blue bird"),
        Item(image=picture(0, 64, 48)),
        Item(image=picture(1)),
        Item(text="a red apple", image=picture(9, 32, 64)),
    ]


WAYS: dict[str, dict[str, Any]] = {
    "reason": dict(sampling=SMALL),
    "votes": dict(sampling=replace(SMALL, temperature=0.7), votes=3),
    "fast": dict(mode="fast"),
    "full": dict(reading="full", sampling=SMALL),
    "pointwise": dict(mode="fast", reading="pointwise"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_reranker_ranks_as_on_the_cpu(gpu, checkpoint, items, way):
    """Random weights that like to inspect, in float32."""
    model, processor, _ = checkpoint
    wanted = Reranker(copy.deepcopy(model), processor, config=PAGES).rank(
        "house", items, **WAYS[way]
    )
    reranker = Reranker(gpu.move(copy.deepcopy(model)), processor, config=PAGES)
    found = reranker.rank("house", items, **WAYS[way])
    assert story(found) == story(wanted)
    assert bool(wanted.tokens.inspected) == ("sampling" in WAYS[way])
    scores = [line.score for line in wanted]
    assert [line.score for line in found] == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_the_reranker_runs_in_half_precision(gpu, checkpoint, items, way, dtype):
    """Complete rankings: what halves round to differs from one processor to the other."""
    model, processor, _ = checkpoint
    reranker = Reranker(gpu.move(copy.deepcopy(model).to(dtype)), processor, config=PAGES)
    found = reranker.rank("high", items, **WAYS[way])
    assert sorted(line.index for line in found) == list(range(len(items)))
    assert all(0 <= line.score <= 1 for line in found)


def story(result: RankedResults) -> tuple:
    """What was decided and how."""
    return result.answer, [line.index for line in result], result.inspected, result.reasoning
