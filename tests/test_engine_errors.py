"""What goes wrong with one request, and leaves the others and the engine as they were; and many
callers of one engine: threads, streams, callers that give up."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from engine_doubles import (
    CANDIDATES,
    LABELS,
    LOOK,
    NAMES,
    SIZE,
    Ledger,
    Source,
    alone,
    ledger,
    made,
)
from torch import Tensor

from retrv_engine import (
    DeadlineExceeded,
    EngineConfig,
    FeatureRows,
    LocalEngine,
    Output,
    Request,
    RequestTooLarge,
    Sampling,
)
from retrv_engine.generation import Generation


def test_a_prompt_that_cannot_fit_is_refused_and_one_that_fits_alone_is_served():
    engine = ledger(10)
    with pytest.raises(RequestTooLarge, match="cache of 40 rows; raise the engine's cache_bytes"):
        engine.submit(Request([11] * 40, LABELS, reason=False))
    fits = [Request([n] * 39, LABELS, reason=False) for n in (11, 12, 13)]
    assert len(engine.generate(fits)) == 3
    engine.check()


class Looking(Ledger):
    """Inspects as long as it may."""

    @staticmethod
    def _of(keys: list[int]) -> Tensor:
        return torch.arange(SIZE).eq(LOOK).float()


def test_what_outgrows_the_cache_fails_alone():
    engine = LocalEngine(None, NAMES, EngineConfig(page_size=4), runner=Looking(10, 4))
    source = Source({k: [FeatureRows(torch.zeros(60, 1), 0, 60, k)] for k in range(4)})
    big = engine.submit(Request([11] * 9, LABELS, range(4), source))
    small = [engine.submit(Request([12 + n] * 9, LABELS, reason=False)) for n in range(3)]
    assert len([handle.result() for handle in small]) == 3
    with pytest.raises(RequestTooLarge, match="73 rows does not fit"):
        big.result()
    engine.check()
    engine.flush()
    assert engine.stats().free_pages == 10


def test_cancelled_requests_give_their_pages_back_at_the_next_step():
    engine = ledger(radix=False)
    handle = engine.submit(Request([11] * 50, LABELS, range(4), CANDIDATES))
    engine.step()
    assert engine.stats().free_pages < 1000
    assert handle.cancel() and not engine.step()
    assert engine.stats().free_pages == 1000 and engine.stats().cancelled == 1
    with pytest.raises(CancelledError):
        handle.result()
    assert not handle.cancel() or handle.future.cancelled()


def test_a_source_that_gives_too_little_fails_only_who_asked():
    class Short(Source):
        def load(self, names):
            return super().load(names)[:-1]

    engine = ledger(max_sequences=8)
    looks = [n for n in range(40) if alone(made(n)).inspected][:2]
    broken = engine.submit(replace(made(looks[0]), source=Short(CANDIDATES.pieces)))
    fine = engine.submit(made(looks[1]))
    assert fine.result().tokens == alone(made(looks[1])).tokens
    with pytest.raises(ValueError, match="not enough values to unpack"):
        broken.result()
    engine.check()


@pytest.mark.parametrize("thread", [False, True])
def test_a_sequence_that_fails_touches_no_other(thread):
    class Picky(Generation):
        def think(self, token, logprob, likeliest):
            if self.request.sampling.seed == 99:
                raise ArithmeticError("cannot choose")
            super().think(token, logprob, likeliest)

    engine = LocalEngine(
        None, NAMES, EngineConfig(page_size=4), runner=Ledger(99, 4), generation_type=Picky
    )
    if thread:
        engine.start()
    broken = engine.submit(replace(made(4), reason=True, sampling=Sampling(seed=99)))
    fine = engine.submit(made(3))
    with pytest.raises(ArithmeticError, match="cannot choose"):
        broken.result(timeout=20)
    assert fine.result(timeout=20).tokens == alone(made(3)).tokens
    engine.check()
    engine.close()


def test_an_error_of_the_model_fails_what_runs_and_leaves_a_usable_engine():
    engine = ledger()
    first = engine.submit(made(3))
    engine.step()
    engine.runner.broken = True
    with pytest.raises(MemoryError, match="the model broke"):
        first.result()
    engine.runner.broken = False
    engine.check()
    assert engine.stats().free_pages == engine.stats().pages
    assert engine.stats().restarts == 1
    assert engine.generate([made(3)])[0].tokens == alone(made(3)).tokens


@pytest.mark.parametrize(
    "values", [{"page_size": 0}, {"max_sequences": 0}, {"chunk_rows": 0}, {"cache_bytes": 0}]
)
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        EngineConfig(**values)


def test_an_engine_needs_a_model():
    with pytest.raises(ValueError, match="needs a model"):
        LocalEngine(None, NAMES)


# Many callers.


def test_many_threads_share_an_engine():
    engine = ledger(60, max_sequences=6)
    outcomes: dict[int, Output] = {}

    def work(seed: int) -> None:
        (outcomes[seed],) = engine.generate([made(seed)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {s: o.tokens for s, o in outcomes.items()} == {
        s: alone(made(s)).tokens for s in range(24)
    }
    engine.check()


def test_steps_are_counted_by_the_requests_in_them():
    engine = ledger(max_sequences=3)
    engine.generate([made(seed) for seed in range(8)])
    stats = engine.stats()
    assert sum(stats.batches.values()) == stats.steps and set(stats.batches) <= {1, 2, 3}
    assert stats.batches[3] > 0 and stats.restarts == 0


def test_two_engines_in_one_process_do_not_touch_each_other():
    engines = [ledger(60), ledger(60)]
    handles = [engine.submit(made(3)) for engine in engines]
    engines[1].load_weights({"version": 9})
    assert handles[0].result().tokens == alone(made(3)).tokens
    handles[1].result()
    assert engines[0].stats().cached_pages > 0


def test_a_caller_that_awaits_no_longer_ends_its_request():
    async def run(engine: LocalEngine) -> None:
        handle = engine.submit(replace(made(3), sampling=Sampling(max_reasoning_tokens=10**6)))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(handle), 0.05)

    class Endless(Ledger):
        @staticmethod
        def _of(keys: list[int]) -> Tensor:
            return torch.zeros(SIZE).index_fill(0, torch.tensor([30]), 1.0)

    engine = LocalEngine(None, NAMES, EngineConfig(page_size=4), runner=Endless(10**5, 4))
    with engine:
        asyncio.run(run(engine))
        end = time.time() + 10
        while engine.stats().cancelled == 0 and time.time() < end:
            time.sleep(0.01)
        assert engine.stats().cancelled == 1 and engine.stats().running == 0


def test_streaming_without_a_thread_and_a_closed_engine():
    engine = ledger()
    assert tuple(engine.submit(made(3)).tokens()) == alone(made(3)).tokens
    pending = engine.submit(made(4))
    engine.close()
    with pytest.raises(CancelledError):
        pending.result()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(made(3))


def test_an_error_of_the_engine_itself_ends_all_requests_and_not_its_thread(monkeypatch):
    engine = ledger()
    handles = [engine.submit(made(seed)) for seed in (3, 4)]
    engine.step()
    handles.append(engine.submit(made(2)))

    def broken():
        raise RuntimeError("the plan went wrong")

    monkeypatch.setattr(engine.scheduler, "schedule", broken)
    engine.start()
    for handle in handles:
        with pytest.raises(RuntimeError, match="the plan went wrong"):
            handle.result(timeout=20)
    assert engine.submit(made(3)).result(timeout=20).tokens == alone(made(3)).tokens
    engine.check()
    stats = engine.stats()
    assert (stats.failed, stats.finished, stats.running, stats.waiting) == (3, 1, 0, 0)
    assert stats.restarts == 1 and engine.alive
    engine.close()
    assert not engine.alive


def test_an_engine_that_cannot_be_mended_ends_all_requests_and_takes_no_more(monkeypatch, caplog):
    engine = ledger()
    handles = [engine.submit(made(seed)) for seed in (3, 4)]
    engine.step()
    handles.append(engine.submit(made(2)))

    def broken(*_):
        raise RuntimeError("the plan went wrong")

    def worse():
        raise MemoryError("nothing helps")

    monkeypatch.setattr(engine.scheduler, "schedule", broken)
    monkeypatch.setattr(engine, "_new_scheduler", worse)
    engine.start()
    for handle in handles:
        with pytest.raises(RuntimeError, match="the plan went wrong"):
            handle.result(timeout=20)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(made(3))
    assert "cannot be mended" in caplog.text
    assert not engine.alive
    engine.close()


def test_a_listener_hears_every_token_once_from_the_first():
    engine = ledger()
    handle, heard = engine.submit(made(3)), []
    engine.step()
    engine.step()
    handle.listen(heard.extend)
    assert tuple(heard) == alone(made(3)).tokens[: len(heard)] != ()
    assert tuple(handle.result().tokens) == tuple(heard) == alone(made(3)).tokens
    assert list(handle.tokens()) == []


def test_a_late_request_says_what_it_has_used():
    engine = ledger()
    handle = engine.submit(replace(made(3), sampling=Sampling(seed=3)), deadline=0.05)
    engine.step()
    time.sleep(0.06)
    with pytest.raises(DeadlineExceeded) as late:
        handle.result()
    spent = late.value.spent
    assert spent is not None and spent.tokens >= 1 and spent.computed_rows >= 1
    assert spent.inspected == alone(made(3)).inspected[: len(spent.inspected)]
    assert {"queue", "prefill"} <= set(spent.timings)
