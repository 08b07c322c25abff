"""Many callers, one engine: threads, streams, callers that give up."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from engine_doubles import NAMES, SIZE, Ledger, alone, ledger, made
from torch import Tensor

from retrv_engine import EngineConfig, LocalEngine, Output, Sampling


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
