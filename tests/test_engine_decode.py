"""The decode step: fixed shapes, padding, and what a replay sees."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
from engine_doubles import Steered, names_of, real_requests, same

from retrv_engine import EngineConfig, LocalEngine, PlainEngine, Request, Sampling, decode, sharing
from retrv_engine.decode import BUCKETS, DecodeStep, DecodeSteps
from retrv_engine.graphs import Graphs
from retrv_engine.sampler import Level

FIXED = EngineConfig(cache_bytes=2**22, graphs=True, max_sequences=6)


@pytest.fixture(scope="module")
def steered(model, processor) -> Steered:
    return Steered(model, names_of(processor))


@pytest.fixture(scope="module")
def requests(processor) -> list[Request]:
    made = real_requests(processor.tokens.labels)
    drawn = [replace(one.sampling, temperature=1.2, top_p=0.9) for one in made]
    group = [replace(made[0], sampling=replace(drawn[0], seed=seed)) for seed in range(3)]
    return [*made, *(replace(r, sampling=s) for r, s in zip(made, drawn, strict=True)), *group]


@pytest.fixture(scope="module")
def expected(steered, requests) -> list:
    return [PlainEngine(steered, steered.vocabulary).generate([one])[0] for one in requests]


@pytest.fixture
def shapes(monkeypatch) -> Counter:
    """How often a step of each shape ran."""
    counted: Counter = Counter()
    compute = DecodeStep.compute

    def count(self, model):
        counted[self.shape] += 1
        compute(self, model)

    monkeypatch.setattr(DecodeStep, "compute", count)
    return counted


def test_fixed_steps_write_what_the_plain_engine_does(steered, requests, expected, shapes):
    """In few shapes, those that share a prefix among them."""
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    for one, output in zip(requests, expected, strict=True):
        same(engine.generate([one]), [output])
    same(engine.generate(requests), expected)
    assert {shape.rows for shape in shapes} <= {1, 2, 4, 6}
    assert {shape.nodes for shape in shapes} >= {0, 2 * 6}
    assert {shape.pages for shape in shapes} == {512 // 16}


def test_a_step_is_as_large_as_it_has_to_be_where_nothing_replays_it(steered, requests, shapes):
    engine = LocalEngine(steered, steered.vocabulary, replace(FIXED, graphs=None))
    engine.generate(requests[:5])
    assert {1, 3, 5} <= {shape.rows for shape in shapes}


def test_a_replay_sees_only_what_was_copied(steered, requests, expected, monkeypatch):
    """A graph reads the device's tensors, wherever the host's have got to."""
    compute = DecodeStep.compute
    read: dict[DecodeStep, set[tuple[int, ...]]] = {}

    def poison(self, model):
        kept = self.host.buffer.clone()
        self.host.buffer.fill_(-(2**40))
        inputs = self.inputs
        views = inputs.rows, inputs.columns, inputs.table, inputs.node_lens, self._masks
        read.setdefault(self, set()).add(tuple(view.data_ptr() for view in views))
        compute(self, model)
        self.host.buffer.copy_(kept)

    monkeypatch.setattr(DecodeStep, "compute", poison)
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    same(engine.generate(requests), expected)
    assert len(read) > 3 and all(len(addresses) == 1 for addresses in read.values())


def test_padding_rows_write_to_a_page_of_nobody(steered, requests, expected, poisoned):
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    pool = engine.scheduler.pool
    same(engine.generate(requests[:5]), expected[:5])
    values = engine.runner.cache.values
    assert values.shape[2] == pool.count + 1 and not values[:, :, -1, :, 0].isnan().any()
    assert values[:, :, -1, :, 1:].isnan().all(), "only its first row"


def test_a_long_context_gets_a_tier_of_its_own():
    steps = object.__new__(DecodeSteps)
    steps.cache = type("Cache", (), {"page_size": 16})
    steps.fixed, steps.buckets = True, [*BUCKETS, 32]
    level = Level(False, False)
    assert steps.shape(3, 512, 0, level) == (4, 32, 0, level)
    assert steps.shape(25, 513, 0, level) == (32, 128, 0, level)
    assert steps.shape(32, 9000, 40, level) == (32, 2048, 64, level)
    steps.fixed = False
    assert steps.shape(25, 513, 9, level) == (25, 128, 9, level)


def test_few_steps_are_kept(steered, monkeypatch):
    monkeypatch.setattr(decode, "KEPT", 2)
    engine = LocalEngine(steered, steered.vocabulary, replace(FIXED, cache_bytes=2**18))
    steps, level = engine.runner.steps, Level(False, False)
    one, two, three = (steps.shape(rows, 9, 0, level) for rows in (1, 2, 3))
    kept = steps.step(one)
    steps.step(two)
    assert steps.step(one) is kept
    steps.step(three)
    assert list(steps.kept) == [one, three]


def test_an_error_drops_what_was_kept(steered, requests, expected, monkeypatch):
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    engine.generate(requests[:2])
    assert engine.runner.steps.kept

    def broken(self, model):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(DecodeStep, "compute", broken)
        with pytest.raises(MemoryError, match="no room"):
            engine.generate(requests[:1])
    assert not engine.runner.steps.kept
    same(engine.generate(requests[:3]), expected[:3])


def test_parameters_that_moved_drop_what_was_kept(make_model, processor, requests):
    """A graph would read them where they were."""
    model = Steered(make_model(), names_of(processor))
    engine = LocalEngine(model, model.vocabulary, FIXED)
    engine.generate(requests[:1])
    weights = {name: p.data.clone() for name, p in model.named_parameters()}
    engine.load_weights(weights)
    assert engine.runner.steps.kept, "copied in place: nothing moved"
    layer = model.language_model.layers[0].mlp.down_proj.weight
    layer.data = layer.data.clone()
    engine.load_weights(weights)
    assert not engine.runner.steps.kept


def test_warming_leaves_no_trace(steered, requests, expected, shapes):
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    engine.warm([Sampling(), Sampling(0.7, 0.9)])
    levels = Level(False, False), Level(True, True)
    assert {(shape.rows, shape.level) for shape, count in shapes.items() if count >= 3} >= {
        (rows, level) for rows in (1, 2, 4, 6) for level in levels
    }, "run, captured, replayed"
    stats = engine.stats()
    assert (stats.finished, stats.steps, stats.cached_pages, sum(stats.seconds.values())) == (
        0,
    ) * 4
    engine.check()
    same(engine.generate(requests[:4]), expected[:4])
    handle = engine.submit(requests[0])
    with pytest.raises(RuntimeError, match="before it has requests"):
        engine.warm()
    handle.cancel()
    engine.step()
    engine.start()
    with pytest.raises(RuntimeError, match="before start"):
        engine.warm()
    engine.close()


def test_a_small_cache_is_warmed_as_far_as_it_goes(steered):
    row = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
    engine = LocalEngine(steered, steered.vocabulary, replace(FIXED, cache_bytes=96 * row))
    engine.warm(rows=3000)
    assert engine.stats().steps == 0


def test_warming_reaches_longer_contexts(steered, shapes):
    engine = LocalEngine(steered, steered.vocabulary, FIXED)
    engine.warm(sizes=[1], rows=3000)
    assert {shape.pages * 16 for shape in shapes} == {512, 2048, 8192}


def test_an_engine_that_is_let_go_lets_its_cache_go(steered, requests):
    """At once, without the collector of cycles: on a GPU it is most of the memory."""
    gc.disable()
    try:
        engine = LocalEngine(steered, steered.vocabulary, FIXED)
        engine.generate(requests[:1])
        runner = weakref.ref(engine.runner)
        del engine
        assert runner() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replay_is_the_eager_step_bit_for_bit(make_model, processor, dtype, monkeypatch):
    """Every bucket, paged and shared, greedy, drawn and cut."""
    names = names_of(processor)
    model = make_model().to("cuda", dtype)
    labels = processor.tokens.labels[:6]
    source = real_requests(labels, device="cuda")[0].source
    replays = 0
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        nonlocal replays
        replays += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    for shared in (1, 2**40):
        monkeypatch.setitem(sharing.SHARED_ROWS, "cuda", shared)
        for count in (*BUCKETS, 32):
            made = [
                Request(
                    [*range(30, 70), 30 + k],
                    labels,
                    range(6),
                    source,
                    sampling=Sampling(0.9 * (k % 3 > 0), (1.0, 1.0, 0.9)[k % 3], 12, 0, k),
                )
                for k in range(count)
            ]
            config = EngineConfig(cache_bytes=2**26, graphs=True)
            with monkeypatch.context() as patch:
                patch.setattr(Graphs, "capture", lambda self, call: None)
                eager = LocalEngine(model, names, config).generate(made)
            before = replays
            found = LocalEngine(model, names, config).generate(made)
            assert replays > before
            for one, other in zip(found, eager, strict=True):
                assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
                assert torch.equal(one.label_logits, other.label_logits)
