"""The contract of an engine; every backend keeps it and passes the same tests.

``PlainEngine`` defines the expected output. It is not a backend: it runs a list of requests to its
end and has ``generate``, ``load_weights``, ``warm``, ``stats`` and ``close`` only.

*Deterministic.* A greedy request gives the same tokens alone, batched with strangers, with a cold
and with a warm cache, and after preemption, up to rounding: where the logits of two tokens are
closer than float32 can tell, either may be taken. A sampled request follows its own seed, whatever
runs beside it.

*Raised.* ``submit`` raises ValueError for a request that is wrong in itself and
:class:`RequestTooLarge` for a prompt that cannot fit. Everything later is raised by the handle:
what a feature source raised, :class:`RequestTooLarge`, :class:`DeadlineExceeded`, and
``concurrent.futures.CancelledError`` after ``cancel``. One request's error touches no other. An
error of the model itself fails all that run, and leaves an empty, usable engine; where the model
is in another process that is :class:`EngineDied`, and the next request starts it anew.

*Freed.* A request's pages stay cached when it ends, held by nobody, until their space is needed;
those of a cancelled one are let go before the next step computes anything. ``flush`` forgets what
nobody holds, ``load_weights`` everything.

*Threads.* All methods may be called from any thread. Steps are taken by one thread at a time: by
the engine's own after ``start`` (or the first ``await``), else by whoever waits for a result.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from torch import Tensor

from retrv_engine.request import Output, Piece, Request, Sampling

T = TypeVar("T")


class RequestTooLarge(ValueError):
    """A request that would not fit if it had the whole cache for itself."""


class DeadlineExceeded(TimeoutError):
    """A request that was not done in time."""


class EngineMissing(ImportError):
    """What an engine runs on is not installed; the message says how to install it."""


class EngineDied(RuntimeError):
    """The process that computes has ended, or does not answer; the next request starts it anew."""


@dataclass(frozen=True)
class Stats:
    """What an engine has done since it was made, and what it holds.

    Attributes:
        finished, cancelled, failed: requests that ended so; ``running`` and ``waiting`` do not yet.
        computed_rows: rows that went through the model; ``cached_rows`` were found instead, of
            requests that have ended.
        written_tokens: tokens of all requests, forced ones too.
        inspections: candidates spliced in; ``loaded`` of them were asked of a feature source.
        preempted: times that a request gave its pages up.
        evicted_pages: pages that were forgotten for want of space.
        pages, free_pages, cached_pages: of the key-value cache; the rest belongs to requests alone.
        seconds: by phase of a step: ``schedule``, ``run``, ``sample``, ``inspect``.
    """

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    steps: int = 0
    computed_rows: int = 0
    cached_rows: int = 0
    written_tokens: int = 0
    inspections: int = 0
    loaded: int = 0
    preempted: int = 0
    evicted_pages: int = 0
    pages: int = 0
    free_pages: int = 0
    cached_pages: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float:
        """Share of rows that were found in the cache."""
        return self.cached_rows / max(1, self.cached_rows + self.computed_rows)


class Handle(Generic[T]):
    """A request that was submitted: wait for it, follow it, await it, cancel it.

    Args:
        drive: function that returns True once a condition holds, and False after a number of
            seconds; it may compute meanwhile.
        start: function to call before the handle is awaited, or None.
    """

    def __init__(
        self,
        drive: Callable[[Callable[[], bool], float | None], bool],
        start: Callable[[], object] | None = None,
    ) -> None:
        self.future: Future[T] = Future()
        self._drive, self._start = drive, start
        self._news: SimpleQueue[Sequence[int]] = SimpleQueue()

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> T:
        """What came of it.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds; it goes on.
        """
        if not self._drive(self.future.done, timeout):
            raise TimeoutError(f"not done in {timeout:.3g} s; it goes on")
        return self.future.result(timeout=0)

    def cancel(self) -> bool:
        """Ends it; False if it had ended already."""
        return self.future.cancel()

    def tokens(self) -> Iterator[int]:
        """Its tokens as they are written, once; raises what ``result`` would."""
        while True:
            self._drive(lambda: not self._news.empty() or self.future.done(), None)
            while not self._news.empty():
                yield from self._news.get()
            if self.future.done() and self._news.empty():
                self.future.result(timeout=0)
                return

    async def __aiter__(self) -> AsyncIterator[int]:
        if self._start is not None:
            self._start()
        tokens = self.tokens()
        try:
            while (token := await asyncio.to_thread(next, tokens, None)) is not None:
                yield token
        finally:  # who stops listening wants no more of it
            self.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        if self._start is not None:
            self._start()
        return asyncio.wrap_future(self.future).__await__()

    def add(self, tokens: Sequence[int]) -> None:
        """Hands on new tokens; for engines."""
        self._news.put(tokens)

    def finish(self, outcome: T | Exception) -> None:
        """Ends it with a result or an error, unless it was cancelled; for engines."""
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:  # cancelled this moment
            pass


class Engine(ABC):
    """Base class of the engines; the module's docstring says what its methods have in common.

    A subclass calls ``_notify`` when a request has new tokens.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()  # notified when a request has new tokens or has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """Queues a request.

        Args:
            priority: higher ones are served first, and give their pages up last.
            deadline: seconds from now after which it is given up.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs of ``requests``, in their order; where one fails the rest is cancelled."""
        handles: list[Handle[Output]] = []
        try:
            for request in requests:
                handles.append(self.submit(request))
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    @abstractmethod
    def score(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> list[float]:
        """Log-probability of each of ``tokens`` behind the prompt and those before it."""

    @abstractmethod
    def warm(self, samplings: Sequence[Sampling] = (Sampling(),)) -> None:
        """Compiles and captures in advance what requests with ``samplings`` will launch."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts new values into the model's parameters, by name, and forgets all cached rows.

        Requests that run keep what they have written and go on under the new weights; feature rows
        that were made under the old ones stay as they are in them.

        Raises:
            ValueError: a name or a shape that the model has not; nothing is changed then.
        """

    @abstractmethod
    def flush(self) -> None:
        """Forgets all cached rows that no request holds."""

    @abstractmethod
    def stats(self) -> Stats:
        """Counts since the engine was made."""

    @abstractmethod
    def close(self) -> None:
        """Cancels all requests and ends the engine's threads and processes."""

    def _handle(self, start: Callable[[], object] | None = None) -> Handle:
        """A handle for a new request."""
        handle: Handle = Handle(self._drive, start)
        handle.future.add_done_callback(lambda _: self._notify())
        return handle

    def _notify(self) -> None:
        """Wakes all who wait for a request."""
        with self._news:
            self._news.notify_all()

    def _drive(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Waits until a condition holds; False if it does not after ``timeout`` seconds."""
        with self._news:
            return self._news.wait_for(reached, timeout)
