"""A service while its model is loaded: nothing is answered, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from retrv_r1 import Item, Reranker
from retrv_r1.serve.calls import NotReady, RankCall
from retrv_r1.serve.service import RerankService

FAST = RankCall(Item(text="a red apple"), (Item(text="red"), Item(text="blue")), mode="fast")


@pytest.fixture
def reranker(model, processor) -> Iterator[Reranker]:
    with Reranker(model, processor, name="random") as made:
        yield made


def test_loading_is_not_ready(reranker):
    async def run() -> None:
        def load() -> Reranker:
            time.sleep(0.2)
            return reranker

        service = RerankService(load)
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0.05)
        assert (await service.health()).state == "loading"
        with pytest.raises(NotReady, match="being loaded"):
            await service.rank(FAST)
        await starting
        assert (await service.health()).ready and len(await service.rank(FAST)) == 2

        def fail() -> Reranker:
            raise OSError("no such checkpoint")

        broken = RerankService(fail)
        with pytest.raises(OSError, match="no such checkpoint"):
            await broken.start()
        health = await broken.health()
        assert (health.state, health.reason) == ("failed", "the model did not start: OSError")
        with pytest.raises(NotReady):
            await broken.rank(FAST)

    asyncio.run(run())


def test_a_model_that_comes_too_late_is_closed():
    go, closed = threading.Event(), threading.Event()

    def load() -> Any:
        go.wait(30)
        return SimpleNamespace(close=closed.set)

    async def run() -> None:
        service = RerankService(load)
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0.05)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await service.drain(1)
        assert not closed.is_set()
        go.set()
        assert await asyncio.to_thread(closed.wait, 30)

    asyncio.run(run())
