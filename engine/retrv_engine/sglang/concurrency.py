"""How the engine's coroutines wait for each other, and the thread that runs them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakSet

from retrv_engine.prefix import shared_prefix_length
from retrv_engine.request import Candidate, Piece, load_distinct

T = TypeVar("T")
MIN_SHARED_ROWS = 32
"""Length from which a shared prefix is worth waiting for."""
SECONDS_TO_CANCEL = 5.0
CLOSED = "the engine is closed: make another one"


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._accepting = threading.Lock()  # held while work is accepted, or refused from then on
        self._refuses = False
        self._submitted: WeakSet[Coroutine[Any, Any, Any]] = WeakSet()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine in the loop.

        Raises:
            RuntimeError: the engine is closed.
        """
        with self._accepting:
            if self._refuses:
                coroutine.close()
                raise RuntimeError(CLOSED)
            self._submitted.add(coroutine)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and waits for its result.

        Raises:
            RuntimeError: the engine is closed, or this is the loop's thread, which cannot wait.
        """
        if self._is_current():
            coroutine.close()
            raise RuntimeError("a handle's callback cannot wait: call this in another thread")
        try:
            return self.submit(coroutine).result()
        except CancelledError:
            raise RuntimeError(CLOSED) from None

    @property
    def refuses(self) -> bool:
        """Whether it accepts no more work."""
        return self._refuses

    def refuse(self) -> bool:
        """Accepts no work from now on; False if that is so already."""
        with self._accepting:
            refused, self._refuses = self._refuses, True
        return not refused

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancels what was submitted, runs a last coroutine, and ends all that is left.

        In the loop's thread, which is where callbacks of handles run, it returns before that.
        """
        assert self._refuses
        if self._is_current():
            threading.Thread(target=self.close, args=(last,)).start()
            return
        try:
            self._finish(self._cancel(submitted=True))
            self._finish(last)
        finally:
            self._finish(self._cancel(submitted=False))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _finish(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _is_current(self) -> bool:
        return threading.current_thread() is self._thread

    async def _cancel(self, submitted: bool) -> None:
        """Cancels the tasks that were submitted, or that were not, and waits for them."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        chosen = [one for one in tasks if (one.get_coro() in self._submitted) == submitted]
        for task in chosen:
            task.cancel()
        if chosen:
            await asyncio.wait(chosen, timeout=SECONDS_TO_CANCEL)


class PrioritySemaphore:
    """Limits how many hold it; the highest priority comes first, of equal ones the oldest."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @asynccontextmanager
    async def hold(self, priority: int) -> AsyncIterator[None]:
        """Waits for a place and holds it."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (-priority, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the place was given to us already
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class PrefillQueue:
    """Has one of several prompts with a shared prefix prefilled first; the others hit its cache.

    SGLang itself prefills prompts together that arrive together.
    """

    def __init__(self) -> None:
        self._prefilling: list[tuple[Sequence[int], asyncio.Event]] = []

    @asynccontextmanager
    async def wait(self, keys: Sequence[int]) -> AsyncIterator[asyncio.Event]:
        """Waits while prompts that share a prefix with this one are prefilled.

        Args:
            keys: one number per row of the prompt.
        Returns:
            An event to set when this prompt is prefilled. Leaving the context sets it as well.
        """
        before = [
            done
            for other, done in self._prefilling
            if not done.is_set() and shared_prefix_length(other, keys) >= MIN_SHARED_ROWS
        ]
        mine = keys, asyncio.Event()
        if before:
            await asyncio.gather(*(done.wait() for done in before))
        else:
            self._prefilling.append(mine)
        try:
            yield mine[1]
        finally:
            mine[1].set()
            if not before:
                self._prefilling.remove(mine)


class SharedLock:
    """A lock that many hold together (shared), or one alone (exclusive)."""

    def __init__(self) -> None:
        self._holders = 0
        self._exclusive = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Waits while an exclusive holder has the lock or waits for it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._exclusive)
            self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            await self._notify()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Lets nobody else in, and waits until all holders have left."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._exclusive)
            self._exclusive = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._holders)
            yield
        finally:
            self._exclusive = False
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class CandidateLoader:
    """Loads candidates for inspection: all that are requested at a time together, each once.

    Attributes:
        loaded: number of candidates that sources were asked for.
    """

    def __init__(self) -> None:
        self.loaded = 0
        self._waiting: list[tuple[Candidate, asyncio.Future[Sequence[Piece]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def load(self, candidate: Candidate) -> Sequence[Piece]:
        """Pieces of a candidate; raises what its source raised."""
        pieces: asyncio.Future[Sequence[Piece]] = asyncio.get_running_loop().create_future()
        self._waiting.append((candidate, pieces))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await pieces

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            candidates = [candidate for candidate, _ in batch]
            error: Exception | None = None
            try:
                loaded = await asyncio.to_thread(load_distinct, candidates)
                self.loaded += len(loaded)
            except Exception as raised:  # such as a source that cannot be hashed
                error = raised
            for candidate, pieces in batch:
                if pieces.done():  # its request was cancelled
                    continue
                result = error or loaded[candidate]
                if isinstance(result, Exception):
                    pieces.set_exception(result)
                else:
                    pieces.set_result(result)
