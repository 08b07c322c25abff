"""Who runs when and in which pages, with a runner that checks every row it reads."""

from __future__ import annotations

import random
from dataclasses import replace

from engine_doubles import CANDIDATES, LABELS, Source, alone, ledger, made

from retrv_engine import Output, Request, Sampling


def test_soak():
    """2,000 requests with cancellations, inspections, flushes; invariants after every step."""
    rng = random.Random(0)
    engine = ledger(60, max_sequences=6, chunk_rows=16)
    handles = []
    for number in range(2000):
        handles.append(
            (number % 300, engine.submit(made(number % 300), priority=rng.randint(0, 2)))
        )
        for _ in range(rng.randint(0, 6)):
            engine.step()
            engine.check()
        if rng.random() < 0.1:
            handles[-rng.randint(1, min(8, len(handles)))][1].cancel()
        if rng.random() < 0.02:
            engine.flush()
        if rng.random() < 0.01:
            engine.load_weights({})
    while engine.step():
        engine.check()
    engine.check()
    stats = engine.stats()
    assert stats.finished + stats.cancelled == 2000 and stats.failed == 0
    assert stats.cancelled > 50 and stats.preempted > 100 and stats.inspections > 1000
    assert stats.free_pages + stats.cached_pages == stats.pages
    assert list(stats.seconds) == ["schedule", "run", "take", "inspect"]
    engine.flush()
    assert engine.stats().free_pages == stats.pages, "a page leaked"
    expected: dict[int, Output] = {}
    for seed, handle in handles:
        if handle.future.cancelled():
            continue
        if seed not in expected:
            expected[seed] = alone(made(seed))
        assert handle.result().tokens == expected[seed].tokens
        assert handle.result().inspected == expected[seed].inspected


def test_a_second_identical_request_computes_the_last_row_of_its_prompt_alone():
    engine = ledger(radix=True)
    request = replace(made(3), sampling=Sampling(max_reasoning_tokens=3, max_inspections=0))
    first, second = engine.generate([request]) + engine.generate([request])
    rows = first.prompt_rows + 1  # and <think>
    assert first.cached_rows == 0 and second.cached_rows == rows - 1
    assert first.computed_rows - second.computed_rows == rows - 1
    assert first.tokens == second.tokens


def test_a_group_computes_its_prompt_once():
    engine = ledger(max_sequences=8)
    request = replace(made(3), sampling=Sampling(1.0, max_reasoning_tokens=9, max_inspections=0))
    group = [replace(request, sampling=replace(request.sampling, seed=n)) for n in range(8)]
    outputs = engine.generate(group)
    rows = outputs[0].prompt_rows + 1
    assert [output.cached_rows for output in outputs] == [0, *[rows - 1] * 7]
    assert len({output.tokens for output in outputs}) > 4
    assert [output.tokens for output in outputs] == [alone(one).tokens for one in group]


def test_inspected_candidates_are_loaded_together_and_once():
    source = Source(CANDIDATES.pieces)
    engine = ledger(max_sequences=8)
    looks = (replace(made(n), source=source, inspections=range(4)) for n in range(40))
    request = next(one for one in looks if one.reason and len(alone(one).inspected) > 1)
    (first,) = engine.generate([request])
    source.calls.clear()
    engine.generate([request] * 8)  # all find the prompt in the cache, and so go on in step
    assert source.calls == [[candidate] for candidate in first.inspected]
    assert len(first.inspected) > 1 and engine.stats().inspections == 9 * len(first.inspected)


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = ledger(chunk_rows=16, max_sequences=4)
    long = engine.submit(Request([11] * 400, LABELS, reason=False))
    engine.step()
    short = engine.submit(Request([12] * 20, LABELS, reason=False))
    for _ in range(4):
        engine.step()
    assert short.done() and not long.done()
    steps = engine.runner.steps
    assert all(dict(step)[0] >= 8 for step in steps), "and the long one gets half of every step"
    long.result()


def test_decoding_goes_on_while_a_prompt_is_read():
    engine = ledger(chunk_rows=8)
    writing = engine.submit(Request([11, 12], LABELS, range(4), CANDIDATES))
    engine.step()
    engine.submit(Request([13] * 100, LABELS, reason=False))
    engine.step()
    assert {number for number, _ in engine.runner.steps[-1]} == {0, 1}
    writing.result()


def test_higher_priorities_go_first_and_push_others_out():
    engine = ledger(40, max_sequences=2)
    low = [engine.submit(Request([11 + n] * 30, LABELS, range(4), CANDIDATES)) for n in range(2)]
    engine.step()
    high = engine.submit(Request([15] * 30, LABELS, reason=False), priority=1)
    while not high.done():
        engine.step()
        engine.check()
    assert not any(handle.done() for handle in low) and engine.stats().preempted == 1
    for handle in low:
        handle.result()


def test_new_weights_leave_nothing_of_the_old_ones():
    engine = ledger(max_sequences=4)
    running = engine.submit(made(3))
    for _ in range(3):
        engine.step()
    engine.load_weights({"version": 5})
    engine.check()
    assert engine.stats().cached_pages == 0
    running.result()  # the ledger would find a row of the old version
    fresh = ledger(radix=False)
    fresh.load_weights({"version": 5})
    assert engine.generate([made(4)])[0].tokens == fresh.generate([made(4)])[0].tokens
