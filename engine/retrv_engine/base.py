"""The contract of an engine. Every backend keeps it and passes the same tests.

**Determinism.** A greedy request yields the same tokens alone, in a batch, with a cold or warm
cache, and after preemption. Only where float32 cannot tell the logits of two tokens apart may
either be taken. A sampled request depends on its own seed and not on the requests beside it.

**Errors.** ``submit`` raises ValueError for an invalid request and :class:`RequestTooLarge` for a
prompt that cannot fit into the cache. All later errors are raised by the handle: those of a feature
source, :class:`RequestTooLarge`, :class:`DeadlineExceeded`, and
``concurrent.futures.CancelledError`` after ``cancel``. An error of one request does not affect the
others. An error of the model fails all running requests and leaves an empty, usable engine; an
error of the engine's own thread fails all that wait as well, and the thread goes on; an engine that
cannot be mended fails them, too, and is closed. If the model runs in another process, that error is
:class:`EngineDied`, and the next request restarts the process.

**Cache.** A request locks the pages that it reads and writes; they cannot be evicted while it runs.
When it ends, its pages stay cached, unlocked, until their space is needed: then the least recently
used are evicted first. If that is not enough, the running request that is last in priority order is
preempted: it gives up its pages, waits, and later computes the rows that it no longer finds in the
cache.
Pages of a cancelled request are unlocked before the next step computes anything. ``flush`` evicts
all unlocked pages, ``load_weights`` all pages.

**Threads.** Every method may be called from any thread. One thread at a time computes: the engine's
own, or, in a ``LocalEngine`` that was not started, one that waits for a result.

``PlainEngine`` defines the expected output. It is not a backend: it runs a list of requests to its
end and has ``generate``, ``load_weights``, ``warm``, ``stats`` and ``close`` only.
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

from retrv_engine.request import Output, Piece, Request, Sampling, Spent

T = TypeVar("T")


class RequestTooLarge(ValueError):
    """The request does not fit, even with the whole cache to itself."""


class DeadlineExceeded(TimeoutError):
    """The request was not done before its deadline.

    Attributes:
        spent: what it had used until then; None where that is not known.
    """

    def __init__(self, message: str = "", spent: Spent | None = None) -> None:
        super().__init__(message)
        self.spent = spent


class EngineMissing(ImportError):
    """A package that the engine needs is not installed; the message says how to install it."""


class EngineDied(RuntimeError):
    """The process that computes has ended or does not answer; the next request restarts it."""


@dataclass(frozen=True)
class Stats:
    """Counts since the engine was made, and its present state.

    Attributes:
        finished, cancelled, failed: requests that ended in this way.
        running, waiting: requests that have not ended.
        steps: steps that computed something.
        computed_rows: rows that went through the model.
        cached_rows: rows of ended requests that were found in the cache instead.
        written_tokens: tokens of ended requests, forced ones included.
        inspections: candidates that were spliced into a request.
        loaded: candidates that were loaded from a feature source.
        preempted: number of times that a request lost its pages to another.
        evicted_pages: cached pages that were evicted because space was needed.
        pages, free_pages, cached_pages: pages of the key-value cache; those that are neither free
            nor cached belong to one request each.
        restarts: times that the engine was mended: after an error of the model or of its own
            thread, or with a server that was started or connected to anew.
        seconds: seconds by part of a step: ``schedule``, ``run``, ``take``, ``inspect``.
        batches: steps by the number of requests in them; empty where that is not known.
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
    restarts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)

    @property
    def hit_rate(self) -> float:
        """Share of the rows that were found in the cache."""
        return self.cached_rows / max(1, self.cached_rows + self.computed_rows)


class Handle(Generic[T]):
    """A submitted request: wait for its result, stream its tokens, await it, or cancel it.

    Args:
        drive: function that waits until a condition holds, and computes meanwhile if the engine
            needs that. It returns False if the condition does not hold after a number of seconds.
        start: function that is called before the handle is awaited.
    """

    def __init__(
        self,
        drive: Callable[[Callable[[], bool], float | None], bool],
        start: Callable[[], object] = lambda: None,
    ) -> None:
        self.future: Future[T] = Future()
        self._drive, self._start = drive, start
        self._unread: SimpleQueue[Sequence[int]] = SimpleQueue()
        self._listener: Callable[[Sequence[int]], object] | None = None
        self._adding = threading.Lock()  # held while tokens are added, or their reader changes

    def done(self) -> bool:
        """Whether the request has ended: with a result, with an error or cancelled."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result.

        Raises:
            TimeoutError: the request needs more than ``timeout`` seconds; it goes on.
        """
        if not self._drive(self.future.done, timeout):
            raise TimeoutError(f"not done in {timeout:.3g} s; it goes on")
        return self.future.result(timeout=0)

    def cancel(self) -> bool:
        """Cancels the request; False if it has already ended."""
        return self.future.cancel()

    def tokens(self) -> Iterator[int]:
        """Yields the tokens as they are written, each once; raises what ``result`` would."""
        while True:
            self._drive(lambda: not self._unread.empty() or self.future.done(), None)
            while not self._unread.empty():
                yield from self._unread.get()
            if self.future.done() and self._unread.empty():
                self.future.result(timeout=0)
                return

    def listen(self, listener: Callable[[Sequence[int]], object]) -> None:
        """Has a function called with new tokens as they are written, and once with those so far.

        It is called in the engine's thread before the request ends; it must return at once and
        raise nothing. ``tokens`` yields nothing then.
        """
        with self._adding:
            self._listener = listener
            while not self._unread.empty():
                listener(self._unread.get())

    async def __aiter__(self) -> AsyncIterator[int]:
        self._start()
        tokens = self.tokens()
        try:
            while (token := await asyncio.to_thread(next, tokens, None)) is not None:
                yield token
        finally:  # a client that stops listening needs no more tokens
            self.cancel()

    def __await__(self) -> Generator[Any, None, T]:
        self._start()
        return asyncio.wrap_future(self.future).__await__()

    def add(self, tokens: Sequence[int]) -> None:
        """Adds new tokens; for engines."""
        with self._adding:
            if self._listener is None:
                self._unread.put(tokens)
            else:
                self._listener(tokens)

    def finish(self, outcome: T | Exception) -> None:
        """Ends the request with a result or an error, unless it was cancelled; for engines."""
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:  # cancelled this moment
            pass


class Engine(ABC):
    """Base class of the engines. The module's docstring says what holds for all methods.

    A subclass calls ``_notify`` when a request has new tokens.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()  # notified when a request has new tokens or has ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether it takes requests: False once it is closed, or could not be mended."""
        return True

    def start(self) -> None:  # noqa: B027
        """Has a thread of the engine compute from now on, where callers' threads do otherwise."""

    @abstractmethod
    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """Queues a request.

        Args:
            priority: number; requests with a higher one run first and are preempted last. Among
                equals, the one that came first does.
            deadline: seconds from now after which the request fails, or None.
        """

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Returns the outputs of ``requests``, in order; if one fails, the others are cancelled."""
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
        """Log-probability of each of ``tokens``, given the prompt and the tokens before it."""

    @abstractmethod
    def warm(self, samplings: Sequence[Sampling] = (Sampling(),)) -> None:
        """Compiles and captures in advance what requests with ``samplings`` will launch."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copies new values into the model's parameters, by name, and evicts all cached rows.

        Running requests keep the tokens and feature rows that they have, and go on under the new
        weights.

        Raises:
            ValueError: the model has no parameter of a name or shape; nothing is changed then.
        """

    @abstractmethod
    def flush(self) -> None:
        """Evicts all cached rows that no request holds."""

    @abstractmethod
    def stats(self) -> Stats:
        """Counts since the engine was made, and its present state."""

    @abstractmethod
    def close(self) -> None:
        """Cancels all requests and ends the engine's threads and processes."""

    def _handle(self, start: Callable[[], object] = lambda: None) -> Handle:
        handle: Handle = Handle(self._drive, start)
        handle.future.add_done_callback(lambda _: self._notify())
        return handle

    def _notify(self) -> None:
        """Wakes all threads that wait for a request."""
        with self._news:
            self._news.notify_all()

    def _drive(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Waits until a condition holds; False if it does not after ``timeout`` seconds."""
        with self._news:
            return self._news.wait_for(reached, timeout)
