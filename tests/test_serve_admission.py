"""The queue takes only those whose turn will come in time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from retrv_engine import DeadlineExceeded
from retrv_r1.serve.admission import Admission, Load
from retrv_r1.serve.calls import QueueFull


async def call(admission: Admission, deadline: float, seconds: float) -> None:
    """A call that has its turn for some seconds."""
    async with admission.turn(time.perf_counter() + deadline):
        await asyncio.sleep(seconds)


def test_who_would_wait_beyond_the_deadline_is_refused_at_once():
    async def check() -> list[Any]:
        admission = Admission(Load(running=1, waiting=100))
        for _ in range(20):  # so that a call is known to take 0.1 s
            await call(admission, 10, 0.1)
        calls = [asyncio.create_task(call(admission, 0.55, 0.1)) for _ in range(30)]
        began = time.perf_counter()
        await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        assert time.perf_counter() - began < 0.09, "before the first has ended"
        assert admission.waiting <= 6
        return await asyncio.gather(*calls, return_exceptions=True)

    ends = asyncio.run(check())
    assert sum(isinstance(one, QueueFull) for one in ends) >= 24
    refused = next(one for one in ends if isinstance(one, QueueFull))
    assert refused.retry_after >= 1
    assert ends[:4] == [None] * 4


def test_nobody_is_refused_on_a_guess():
    async def check() -> None:
        admission = Admission(Load(running=1, waiting=1))
        first = asyncio.create_task(call(admission, 10, 0.2))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await call(admission, 0.05, 0)
        await first

    asyncio.run(check())


def test_slow_calls_of_the_past_keep_nobody_out_of_a_free_place():
    async def check() -> None:
        admission = Admission(Load(running=1, waiting=9))
        await call(admission, 10, 0.6)
        for _ in range(3):
            await call(admission, 0.05, 0)

    asyncio.run(check())


def test_turns_are_given_in_order_and_none_is_lost():
    """Also where those that wait leave, at every moment of getting their turn."""

    async def run() -> None:
        admission, order = Admission(Load(running=1, waiting=50)), []

        async def call(number: int) -> None:
            async with admission.turn(float("inf")):
                order.append(number)
                assert admission.running == 1
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(call(number)) for number in range(30)]
        for number in range(0, 30, 3):
            await asyncio.sleep(0)
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == sorted(order) and set(range(30)) - set(order) <= set(range(0, 30, 3))
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.empty(), 1)

    asyncio.run(run())


@pytest.mark.parametrize("bad", [{"running": 0}, {"waiting": -1}, {"deadline": 0}])
def test_loads_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Load(**bad)
