"""The rerank service: one reranker for all calls of an asyncio server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from retrv_r1.rerank.events import Event
from retrv_r1.rerank.options import default_sampling
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.serve.admission import Load
from retrv_r1.serve.calls import NotReady, RankCall
from retrv_r1.types import RankedResults, RankRequest

State: TypeAlias = Literal["loading", "ready", "draining", "failed", "closed"]


@dataclass(frozen=True)
class Health:
    """Whether a service answers.

    Args:
        state: what the service does.
        reason: why it is not ready; empty when it is.
        running, waiting: calls in work, and calls that wait for their turn.
    """

    state: State
    reason: str = ""
    running: int = 0
    waiting: int = 0

    @property
    def ready(self) -> bool:
        """Whether calls are taken and the engine answers."""
        return self.state == "ready"


class RerankService:
    """Ranks the calls of a server, many at a time, in one engine.

    All methods belong to one event loop.

    Args:
        reranker: the reranker, or a function that makes it; ``start`` calls that in a thread.
        load: how much is taken on at once.
    Attributes:
        reranker: the reranker; None until it is loaded.
    """

    def __init__(self, reranker: Reranker | Callable[[], Reranker], load: Load | None = None):
        self.reranker: Reranker | None = None
        self._given, self.load = reranker, load or Load()
        self._state: State = "loading"
        self._running = 0

    async def start(self) -> None:
        """Loads and warms the model; until it returns, calls raise :class:`NotReady`."""
        given = self._given
        reranker = given if isinstance(given, Reranker) else await asyncio.to_thread(given)
        await asyncio.to_thread(reranker.warm)
        self.reranker, self._state = reranker, "ready"

    async def rank(self, call: RankCall) -> RankedResults:
        """Ranks a call. Cancelling the task cancels the ranking.

        Raises:
            ItemError: an item cannot be used; the message names it.
            RequestTooLarge: a prompt that the engine's cache cannot hold.
            ValueError: options that exclude each other.
            QueueFull: too many calls wait.
            NotReady: the model is being loaded, or the service shuts down.
            DeadlineExceeded: the call was not done before its deadline.
            EngineFailed: the engine failed; the next call will find it mended.
        """
        if self.reranker is None or self._state != "ready":
            raise NotReady(f"the service is {self._state}")
        self._running += 1
        try:
            return await asyncio.to_thread(self._rank, self.reranker, call)
        finally:
            self._running -= 1

    async def stream(self, call: RankCall) -> AsyncIterator[Event | RankedResults]:
        """Yields what happens, and the results last; errors are those of :meth:`rank`.

        Closing the iterator cancels the ranking.
        """
        yield await self.rank(call)

    async def health(self) -> Health:
        """Whether the model is loaded and warmed and the engine answers."""
        return Health(self._state, running=self._running)

    async def drain(self, timeout: float) -> None:
        """Takes no new calls, waits for those in work, cancels the rest, and closes the reranker.

        Args:
            timeout: seconds that calls in work have.
        """
        self._state = "draining"
        until = asyncio.get_running_loop().time() + timeout
        while self._running and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        if self.reranker is not None:
            self.reranker.close()
        self._state = "closed"

    @staticmethod
    def _rank(reranker: Reranker, call: RankCall) -> RankedResults:
        sampling = default_sampling(call.votes, reranker.model.config.max_inspections)
        given = {
            "max_inspections": call.max_inspections,
            "max_reasoning_tokens": call.max_reasoning_tokens,
        }
        sampling = replace(sampling, **{k: v for k, v in given.items() if v is not None})
        request = RankRequest(call.query, call.candidates, call.instruction)
        return reranker.rank_batch(
            [request],
            top_k=call.top_n,
            mode="reason" if call.mode == "auto" else call.mode,
            reading=call.reading,
            sampling=sampling,
            votes=call.votes,
        )[0]
