"""A ranking under way: watch it, wait for it, or cancel it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any

from retrv_r1.rerank.events import Draft, Event
from retrv_r1.rerank.narration import Narrator
from retrv_r1.types import RankedResults

CANCELLED = "the ranking was cancelled"


class Ranking:
    """A submitted ranking; :meth:`retrv_r1.Reranker.submit` makes it.

    It is iterated for its events, in threads by :meth:`events` or with ``async for``, by one reader
    at a time: each event comes once. It can be awaited.

    Attributes:
        future: its results.
    """

    def __init__(self) -> None:
        self.future: Future[RankedResults] = Future()
        self._news = threading.Condition()  # notified of new events and of the end
        self._unread: deque[Draft | tuple[Narrator, Sequence[int]]] = deque()
        self._reading = threading.Lock()  # held while events are made of what is unread
        self._wakers: list[Callable[[], object]] = []
        self.future.add_done_callback(lambda _: self._notify())

    def done(self) -> bool:
        """Whether it has ended: with results, with an error or cancelled."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> RankedResults:
        """Waits for the results.

        Raises:
            TimeoutError: it needs more than ``timeout`` seconds; it goes on.
            DeadlineExceeded: it was not done before its deadline.
            CancelledError: it was cancelled (of ``concurrent.futures``).
            ItemError, RequestTooLarge, …: see :meth:`retrv_r1.Reranker.rank`.
        """
        try:
            return self.future.result(timeout)
        except CancelledError:
            raise CancelledError(CANCELLED) from None

    def cancel(self) -> bool:
        """Cancels it; False if it has already ended.

        The engine frees its pages before the next step computes anything.
        """
        return self.future.cancel()

    def events(self) -> Iterator[Event]:
        """Yields what happens until the end; raises what ``result`` would."""
        while True:
            with self._news:
                self._news.wait_for(lambda: self._unread or self.future.done())
            ended = self.future.done()
            yield from self._read()
            if ended:
                self.result()
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(news.set)

        self._wakers.append(wake)
        try:
            while True:
                news.clear()
                ended = self.future.done()
                for event in self._read():
                    yield event
                if ended:
                    self.result()
                    return
                await news.wait()
        finally:  # who stops watching needs no more
            self._wakers.remove(wake)
            self.cancel()

    def __await__(self) -> Generator[Any, None, RankedResults]:
        return self._results().__await__()

    async def _results(self) -> RankedResults:
        try:
            return await asyncio.wrap_future(self.future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # who waits was cancelled
            raise asyncio.CancelledError(CANCELLED) from None

    # What the conductor calls.

    def tell(self, news: Draft | tuple[Narrator, Sequence[int]]) -> None:
        """Adds an event, or tokens with the narrator that makes events of them."""
        self._unread.append(news)
        self._notify()

    def finish(self, outcome: RankedResults | BaseException) -> None:
        """Ends it with results or an error, unless it was cancelled."""
        with suppress(InvalidStateError):  # cancelled this moment
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def _notify(self) -> None:
        with self._news:
            self._news.notify_all()
        for wake in list(self._wakers):
            wake()

    def _read(self) -> list[Event]:
        """The events that are there and were not read."""
        events: list[Event] = []
        with self._reading:
            while self._unread:
                news = self._unread.popleft()
                if isinstance(news, Draft):
                    events.append(news)
                else:
                    narrator, tokens = news
                    events += narrator.read(tokens)
        return events
