"""The rerank service under load: queue, deadlines, hang-ups, failures, draining, health."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from rerank_doubles import never_ending, same

from retrv_engine import DeadlineExceeded
from retrv_r1 import Item, ItemError, RankedResults, Reranker
from retrv_r1.rerank.events import Draft, Inspection, Reasoning
from retrv_r1.serve import probe
from retrv_r1.serve.admission import Load
from retrv_r1.serve.calls import EngineFailed, NotReady, QueueFull, RankCall
from retrv_r1.serve.service import RerankService

QUERY, THREE = Item(text="a red apple"), tuple(Item(text=text) for text in ("red", "blue", "sky"))
FAST = RankCall(QUERY, THREE, mode="fast")
SHORT = RankCall(QUERY, THREE, max_reasoning_tokens=12)
LONG = RankCall(QUERY, THREE, max_reasoning_tokens=3000)  # minutes, unless it is cancelled


@pytest.fixture
def reranker(model, processor) -> Iterator[Reranker]:
    """It never ends its reasoning itself."""
    with Reranker(model, processor, name="random") as made:
        yield never_ending(made)


def serve(reranker: Reranker, body: Callable[[RerankService], Awaitable[Any]], **load: Any) -> None:
    """Runs a test in a service; at its end all pages must be free."""

    async def run() -> None:
        service = RerankService(reranker, Load(**load))
        await service.start()
        try:
            await asyncio.wait_for(body(service), 60)
            await until(lambda: is_free(reranker))
            health = await service.health()
            assert (health.ready, health.running, health.waiting) == (True, 0, 0)
        finally:
            await service.drain(0)

    asyncio.run(run())


def is_free(reranker: Reranker) -> bool:
    stats = reranker.engine.stats()
    idle = stats.running == stats.waiting == 0
    return idle and stats.free_pages + stats.cached_pages == stats.pages


async def until(reached: Callable[[], bool]) -> None:
    """Waits until something holds."""
    end = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < end, "it never comes to hold"
        await asyncio.sleep(0.005)


def is_running(service: RerankService, calls: int = 1) -> Callable[[], bool]:
    """Whether the engine works on so many calls."""
    return lambda: service.reranker.engine.stats().running == calls


def alike(found: RankedResults, expected: RankedResults) -> None:
    same(found.ranking, expected.ranking)
    assert (found.reasoning, found.mode) == (expected.reasoning, expected.mode)


def test_calls_are_ranked_as_without_a_service(reranker):
    texts = [item.text for item in THREE]
    fast = reranker.rank("a red apple", texts, mode="fast", top_k=2, instruction="Which?")

    async def body(service: RerankService) -> None:
        alike(await service.rank(replace(FAST, top_n=2, instruction="Which?")), fast)
        results = await service.rank(replace(SHORT, max_inspections=1))
        assert results.tokens.generated <= 12 + 5 and len(results.inspected) <= 1
        voted = await service.rank(replace(SHORT, votes=2))
        assert voted.bill.prompts == 2
        cut = await service.rank(replace(LONG, budget_ms=200))
        assert cut.cut and cut.mode == "fast"
        auto = await service.rank(replace(SHORT, mode="auto"))
        assert auto.auto
        pointwise = await service.rank(replace(FAST, reading="pointwise"))
        assert pointwise.bill.prompts == 3

    serve(reranker, body)


def test_a_stream_tells_the_reasoning_and_ends_with_the_results(reranker):
    async def body(service: RerankService) -> None:
        events = [event async for event in service.stream(replace(SHORT, mode="auto"))]
        results = events.pop()
        assert isinstance(results, RankedResults) and isinstance(events[0], Draft)
        assert all(isinstance(event, Reasoning | Inspection) for event in events[1:])
        text = "".join(event.text for event in events if isinstance(event, Reasoning))
        assert text == results.reasoning != ""
        assert {"queue", "total"} <= set(results.bill.seconds)

    serve(reranker, body)


def test_one_call_too_many_is_told_when_to_come_back(reranker):
    async def body(service: RerankService) -> None:
        tasks = [asyncio.create_task(service.rank(LONG)) for _ in range(2)]
        waiting = [asyncio.create_task(service.rank(FAST)) for _ in range(3)]
        await until(is_running(service, 2))
        for refused in (service.rank(FAST), anext(service.stream(FAST))):
            with pytest.raises(QueueFull) as raised:
                await refused
            assert 1 <= raised.value.retry_after < 60
        health = await service.health()
        assert (health.running, health.waiting) == (2, 3)
        for task in tasks:
            task.cancel()
        for results in await asyncio.gather(*waiting):
            assert len(results) == 3 and results.bill.seconds["queue"] > 0

    serve(reranker, body, running=2, waiting=3)


@pytest.mark.parametrize("busy", [False, True], ids=["running", "queued"])
def test_deadlines_hold_in_the_engine_and_in_the_queue(reranker, busy):
    async def body(service: RerankService) -> None:
        others = [asyncio.create_task(service.rank(LONG)) for _ in range(busy)]
        await until(is_running(service, busy))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await service.rank(replace(LONG, deadline_ms=200))
        assert 0.2 <= time.monotonic() - began < 3
        if not busy:
            with pytest.raises(DeadlineExceeded):
                await service.rank(replace(FAST, deadline_ms=0))
        for other in others:
            other.cancel()

    serve(reranker, body, running=1, deadline=30)


def test_time_in_the_queue_is_taken_from_the_budget(reranker):
    async def body(service: RerankService) -> None:
        other = asyncio.create_task(service.rank(LONG))
        await until(is_running(service))
        cut = asyncio.create_task(service.rank(replace(LONG, budget_ms=300)))
        await asyncio.sleep(0.6)
        other.cancel()
        results = await cut
        assert results.cut and results.bill.prompts == 1, "there was no time left to reason"
        assert results.bill.seconds["queue"] > 0.5

    serve(reranker, body, running=1)


@pytest.mark.parametrize("way", ["rank", "stream", "close", "queue"])
def test_a_client_that_hangs_up_frees_its_pages_and_its_turn(reranker, way):
    async def body(service: RerankService) -> None:
        if way == "queue":
            running = asyncio.create_task(service.rank(LONG))
            await until(is_running(service))
            hung = asyncio.create_task(service.rank(FAST))
            await asyncio.sleep(0.05)
            hung.cancel()
            running.cancel()
            await asyncio.gather(hung, running, return_exceptions=True)
        elif way == "close":
            async with aclosing(service.stream(LONG)) as events:
                assert isinstance(await anext(events), Reasoning)
                await until(is_running(service))
        else:
            calls = {"rank": service.rank(LONG), "stream": drained(service.stream(LONG))}
            task = asyncio.create_task(calls.pop(way))
            calls.popitem()[1].close()
            await until(is_running(service))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        began = time.monotonic()
        await until(lambda: is_free(reranker))
        assert time.monotonic() - began < 2
        assert len(await service.rank(FAST)) == 3

    serve(reranker, body, running=1)


async def drained(events: Any) -> list[Any]:
    return [event async for event in events]


def test_half_of_forty_clients_hang_up_and_the_others_get_all(reranker):
    fast = reranker.rank("a red apple", [item.text for item in THREE], mode="fast")
    short = asyncio.run(_alone(reranker, SHORT))

    async def body(service: RerankService) -> None:
        async def client(number: int) -> None:
            call, expected = (FAST, fast) if number % 4 < 2 else (SHORT, short)
            if number % 2:
                task = asyncio.create_task(service.rank(LONG if number % 3 else call))
                await asyncio.sleep(0.01 * (number % 7))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                alike(await service.rank(call), expected)

        await asyncio.gather(*(client(number) for number in range(40)))

    serve(reranker, body, running=6)


async def _alone(reranker: Reranker, call: RankCall) -> RankedResults:
    service = RerankService(reranker)
    await service.start()
    return await service.rank(call)


def test_errors_of_callers_are_their_own(reranker, tmp_path):
    gone = replace(FAST, candidates=(*THREE, Item(image=tmp_path / "gone.png")))

    async def body(service: RerankService) -> None:
        good = [service.rank(FAST) for _ in range(3)]
        found = await asyncio.gather(*good, service.rank(gone), return_exceptions=True)
        assert [len(results) for results in found[:3]] == [3] * 3
        assert isinstance(found[3], ItemError) and "candidate 3" in str(found[3])
        with pytest.raises(ValueError, match="nothing to vote on"):
            await service.rank(replace(FAST, votes=2))

    serve(reranker, body)


def test_a_crash_of_the_engine_is_told_to_those_it_hit_and_mended(reranker, monkeypatch, caplog):
    """The call that waits for its turn meanwhile is not lost."""
    run = reranker.engine.runner.run

    async def body(service: RerankService) -> None:
        def broken(extends: Any) -> Any:
            monkeypatch.setattr(reranker.engine.runner, "run", run)
            raise ValueError("the model broke")  # not an error of a caller's

        hit = [asyncio.create_task(service.rank(LONG)) for _ in range(2)]
        waits = asyncio.create_task(service.rank(FAST))
        await until(is_running(service, 2))
        monkeypatch.setattr(reranker.engine.runner, "run", broken)
        for error in await asyncio.gather(*hit, return_exceptions=True):
            assert isinstance(error, EngineFailed)
        assert len(await waits) == 3
        assert "the model broke" in caplog.text
        assert reranker.engine.stats().restarts == 1

    serve(reranker, body, running=2)


def test_a_service_whose_engine_cannot_be_mended_says_so(reranker, monkeypatch):
    """Nobody is told to ask again: not those that it hit, and not those that come later."""

    def broken(*_: Any) -> Any:
        raise ValueError("the model broke")

    async def run() -> None:
        service = RerankService(reranker, Load(running=2))
        await service.start()
        hit = [asyncio.create_task(service.rank(LONG)) for _ in range(2)]
        await until(is_running(service, 2))
        monkeypatch.setattr(reranker.engine.runner, "run", broken)
        monkeypatch.setattr(reranker.engine.runner, "reset", broken)
        for error in await asyncio.gather(*hit, service.rank(FAST), return_exceptions=True):
            assert isinstance(error, NotReady) and "could not be mended" in str(error)
        health = await service.health()
        assert health.state == "failed" and "could not be mended" in health.reason
        monkeypatch.undo()
        await service.drain(0)

    asyncio.run(run())


def test_health_asks_an_engine_that_has_failed_or_been_silent(reranker, monkeypatch):
    asked = []
    submit = reranker.submit
    monkeypatch.setattr(
        reranker, "submit", lambda *args, **kw: (asked.append(args), submit(*args, **kw))[1]
    )

    async def body(service: RerankService) -> None:
        asked.clear()
        assert (await service.health()).ready and not asked, "start has just asked"
        monkeypatch.setattr(probe, "FRESH", 0.0)
        assert (await service.health()).ready and len(asked) == 1
        monkeypatch.setattr(probe, "LIMIT", 0.2)
        monkeypatch.setattr(probe, "PATIENCE", 4.0)
        with reranker._encoding:
            found = await asyncio.gather(*(service.health() for _ in range(5)))
        assert len(asked) == 2, "five questions at once, one to the engine"
        assert {one.state for one in found} == {"failed"}
        assert found[0].reason == "the engine does not answer"

    serve(reranker, body)


def test_an_engine_whose_step_never_ends_does_not_hold_up_the_question(reranker, monkeypatch):
    async def body(service: RerankService) -> None:
        monkeypatch.setattr(probe, "FRESH", 0.0)
        monkeypatch.setattr(probe, "LIMIT", 0.2)
        monkeypatch.setattr(probe, "PATIENCE", 4.0)
        held, let_go = threading.Event(), threading.Event()

        def step() -> None:
            with reranker.engine._turn:
                held.set()
                let_go.wait(30)

        hanging = threading.Thread(target=step)
        hanging.start()
        try:
            held.wait(10)
            assert (await asyncio.wait_for(service.health(), 5)).state == "failed"
        finally:
            let_go.set()
            hanging.join()
        monkeypatch.setattr(probe, "LIMIT", 10.0)
        assert (await service.health()).ready

    serve(reranker, body)


def test_a_busy_engine_is_not_taken_for_a_dead_one(reranker, monkeypatch):
    async def body(service: RerankService) -> None:
        for name, seconds in (("FRESH", 0.0), ("LIMIT", 0.3)):
            monkeypatch.setattr(probe, name, seconds)
        tasks = [asyncio.create_task(service.rank(LONG)) for _ in range(16)]
        await until(is_running(service, 16))  # all that the engine takes at once
        assert (await service.health()).ready
        for task in tasks:
            task.cancel()
        monkeypatch.setattr(probe, "LIMIT", 10.0)

    serve(reranker, body)


def test_the_reading_of_pictures_is_billed(reranker):
    async def body(service: RerankService) -> None:
        bill = (await service.rank(replace(FAST, picture_seconds=100.0))).bill
        assert bill.seconds["pictures"] == 100 < bill.seconds["total"]
        assert "pictures" not in (await service.rank(FAST)).bill.seconds

    serve(reranker, body)


def test_draining_lets_the_taken_calls_end(reranker):
    async def run() -> None:
        service = RerankService(reranker, Load(running=1))
        await service.start()
        taken = [asyncio.create_task(service.rank(SHORT)) for _ in range(3)]
        await asyncio.sleep(0.02)
        drain = asyncio.create_task(service.drain(30))
        await asyncio.sleep(0)
        assert (await service.health()).state == "draining"
        with pytest.raises(NotReady, match="shutting down"):
            await service.rank(FAST)
        assert [len(results) for results in await asyncio.gather(*taken)] == [3] * 3
        await drain
        assert (await service.health()).state == "closed"

    asyncio.run(run())


def test_what_is_not_done_when_draining_ends_is_cancelled(reranker):
    async def run() -> None:
        service = RerankService(reranker, Load(running=2))
        await service.start()
        taken = [asyncio.create_task(service.rank(LONG)) for _ in range(3)]
        watched = asyncio.create_task(drained(service.stream(LONG)))
        await until(is_running(service, 2))
        began = time.monotonic()
        await service.drain(0.2)
        assert time.monotonic() - began < 5
        for error in await asyncio.gather(*taken, watched, return_exceptions=True):
            assert isinstance(error, NotReady)

    asyncio.run(run())
