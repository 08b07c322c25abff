"""The rerank service: one reranker for all calls of an asyncio server."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from retrv_engine import DeadlineExceeded, RequestTooLarge
from retrv_r1.rerank.events import Event
from retrv_r1.rerank.options import default_sampling
from retrv_r1.rerank.ranking import Ranking
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.serve.admission import SHUTTING_DOWN, Admission, Load
from retrv_r1.serve.calls import EngineFailed, NotReady, RankCall
from retrv_r1.serve.probe import Probe
from retrv_r1.types import ItemError, RankedResults, RankRequest

State: TypeAlias = Literal["loading", "ready", "draining", "failed", "closed"]

LOST = "the engine failed and could not be mended; the server must be started again"

_log = logging.getLogger(__name__)


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

    def __init__(
        self, reranker: Reranker | Callable[[], Reranker], load: Load | None = None
    ) -> None:
        self.reranker: Reranker | None = None
        self._given, self.load = reranker, load or Load()
        self._state: State = "loading"
        self._reason = "the model is being loaded"
        self._admission = Admission(self.load)
        self._rankings: set[Ranking] = set()
        self._probe: Probe | None = None

    async def start(self) -> None:
        """Loads and warms the model; until it returns, calls raise :class:`NotReady`.

        A model that comes after the task was cancelled is closed at once.
        Errors are those of loading, or EngineFailed; the service is ``failed`` then.
        """
        given = self._given
        try:
            self.reranker = given if isinstance(given, Reranker) else await _load(given)
            await asyncio.to_thread(self.reranker.warm)
            self._probe = Probe(self.reranker)
            if not await self._probe.answers():
                raise EngineFailed("the engine does not answer")
        except Exception as error:
            self._state, self._reason = "failed", f"the model did not start: {type(error).__name__}"
            raise
        if self._state == "loading":
            self._state, self._reason = "ready", ""

    async def rank(self, call: RankCall) -> RankedResults:
        """Ranks a call. Cancelling the task cancels the ranking.

        Raises:
            ItemError: an item cannot be used; the message names it.
            RequestTooLarge: a prompt that the engine's cache cannot hold.
            ValueError: options that exclude each other.
            QueueFull: too many calls wait.
            NotReady: the model is being loaded, the service shuts down, or its engine failed and
                could not be mended.
            DeadlineExceeded: the call was not done before its deadline.
            EngineFailed: the engine failed; the next call will find it mended.
        """
        async with self._running(call) as (ranking, waited):
            return _billed(await ranking, waited, call)

    async def stream(self, call: RankCall) -> AsyncGenerator[Event | RankedResults, None]:
        """Yields what happens, and the results last; errors are those of :meth:`rank`.

        Closing the iterator cancels the ranking.
        """
        async with self._running(call) as (ranking, waited):
            async with aclosing(aiter(ranking)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
            yield _billed(ranking.result(), waited, call)

    async def health(self) -> Health:
        """Whether the model is loaded and warmed and the engine answers.

        If nothing was ranked for a while, it ranks two words to see that. Where that takes more
        than a second, what was seen last is told.
        """
        self._look_at_engine()
        state, reason, probe = self._state, self._reason, self._probe
        if state == "ready" and probe is not None and not await probe.answers(hurry=True):
            state, reason = "failed", "the engine does not answer"
        return Health(state, reason, self._admission.running, self._admission.waiting)

    async def drain(self, timeout: float) -> None:
        """Takes no new calls, waits for those in work, cancels the rest, and closes the reranker.

        Calls that are cancelled raise :class:`NotReady`.

        Args:
            timeout: seconds that calls which were taken have.
        """
        self._state, self._reason = "draining", SHUTTING_DOWN
        try:
            async with asyncio.timeout(timeout):
                await self._admission.empty()
        except TimeoutError:
            self.give_up()
            await self._admission.empty()
        finally:
            if self.reranker is not None:
                await asyncio.to_thread(self.reranker.close)
            self._state = "closed"

    def give_up(self) -> None:
        """Takes no new calls, and cancels all; they raise :class:`NotReady`."""
        self._state, self._reason = "draining", SHUTTING_DOWN
        self._admission.refuse()
        for ranking in list(self._rankings):
            ranking.cancel()

    @asynccontextmanager
    async def _running(self, call: RankCall) -> AsyncIterator[tuple[Ranking, float]]:
        """A call's ranking when it is its turn, and the seconds that it waited for that."""
        if self._state != "ready" or self.reranker is None:
            raise NotReady(self._reason)
        arrived = time.perf_counter()
        deadline = self.load.deadline if call.deadline_ms is None else call.deadline_ms / 1000
        until = math.inf if deadline is None else arrived + deadline
        async with self._admission.turn(until):
            waited = time.perf_counter() - arrived
            ranking = self._submit(self.reranker, call, waited, until)
            self._rankings.add(ranking)
            try:
                yield ranking, waited
                assert self._probe is not None, "start makes it"
                self._probe.seen()
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if ranking.future.cancelled() and task is not None and not task.cancelling():
                    raise NotReady(SHUTTING_DOWN) from None  # drained
                raise
            except (ItemError, RequestTooLarge, DeadlineExceeded):
                raise
            except Exception as error:
                raise self._failure(error) from error
            finally:
                ranking.cancel()
                self._rankings.discard(ranking)

    def _failure(self, error: Exception) -> EngineFailed | NotReady:
        """What a caller is told of an error that is not the caller's."""
        if self._state == "ready":
            _log.error("the engine failed", exc_info=error)
            self._look_at_engine()
        if self._state != "ready":
            return NotReady(self._reason)
        if self._probe is not None:
            self._probe.doubt()
        return EngineFailed("the engine failed; it was mended, so ask again")

    def _look_at_engine(self) -> None:
        """Fails the service for good if its engine takes no more requests."""
        if self._state == "ready" and self.reranker is not None and not self.reranker.engine.alive:
            self._state, self._reason = "failed", LOST

    @staticmethod
    def _submit(reranker: Reranker, call: RankCall, waited: float, until: float) -> Ranking:
        """Starts a call's ranking.

        Raises:
            ValueError: options that exclude each other.
        """
        sampling = default_sampling(call.votes, reranker.model.config.max_inspections)
        limits = {
            "max_inspections": call.max_inspections,
            "max_reasoning_tokens": call.max_reasoning_tokens,
        }
        given = {name: value for name, value in limits.items() if value is not None}
        budget = None if call.budget_ms is None else max(0.0, call.budget_ms / 1000 - waited)
        left = None if math.isinf(until) else max(0.0, until - time.perf_counter())
        return reranker.submit(
            RankRequest(call.query, call.candidates, call.instruction),
            top_k=call.top_n,
            mode=call.mode,
            reading=call.reading,
            sampling=replace(sampling, **given),
            votes=call.votes,
            budget=budget,
            deadline=left,
        )


async def _load(make: Callable[[], Reranker]) -> Reranker:
    """The reranker that is made in a thread, which cannot be stopped."""
    threads = ThreadPoolExecutor(1, "retrv-loading")
    loading = threads.submit(make)
    threads.shutdown(wait=False)
    try:
        return await asyncio.wrap_future(loading)
    except asyncio.CancelledError:
        loading.add_done_callback(_close)
        raise


def _close(loading: Future[Reranker]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()


def _billed(results: RankedResults, waited: float, call: RankCall) -> RankedResults:
    """The results with the wait for their turn, and the reading of pictures, in the bill."""
    seconds = dict(results.bill.seconds)
    seconds["queue"] = seconds.get("queue", 0.0) + waited
    if call.picture_seconds:
        seconds["pictures"] = call.picture_seconds
    seconds["total"] = seconds.get("total", 0.0) + waited + call.picture_seconds
    return replace(results, bill=replace(results.bill, seconds=seconds))
