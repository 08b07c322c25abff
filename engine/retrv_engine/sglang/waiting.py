"""How requests wait for each other, all in one event loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from retrv_engine.request import FeatureSource, Piece, load_distinct

SHARED = 32
"""Rows in common that are worth waiting for."""
Wanted: TypeAlias = tuple[FeatureSource, Hashable]


class Slots:
    """So many at once; of those that wait the highest priority comes first, then the oldest."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, priority: int, number: int) -> AsyncIterator[None]:
        """Waits for a slot and holds it."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (-priority, number, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was ours already
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Readers:
    """Of prompts that begin alike one is read first; the others find what it has left.

    SGLang alone reads those together that reach it together.
    """

    def __init__(self) -> None:
        self._reading: list[tuple[Sequence[int], asyncio.Event]] = []

    @asynccontextmanager
    async def read(self, keys: Sequence[int]) -> AsyncIterator[asyncio.Event]:
        """Waits while such a prompt is read.

        Args:
            keys: of the prompt's rows.
        Returns:
            An event to set when this one has been read; the end of the context sets it as well.
        """
        reading = [(other, done) for other, done in self._reading if not done.is_set()]
        before = [done for other, done in reading if shared(other, keys) >= SHARED]
        mine = keys, asyncio.Event()
        if before:
            await asyncio.gather(*(done.wait() for done in before))
        else:
            self._reading.append(mine)
        try:
            yield mine[1]
        finally:
            mine[1].set()
            if not before:
                self._reading.remove(mine)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many numbers two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class Gate:
    """Many pass it together, or one alone."""

    def __init__(self) -> None:
        self._passing = 0
        self._closed = False
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Waits while somebody is alone."""
        async with self._news:
            await self._news.wait_for(lambda: not self._closed)
            self._passing += 1
        try:
            yield
        finally:
            self._passing -= 1
            await self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Lets nobody in any more and waits until all are out."""
        async with self._news:
            await self._news.wait_for(lambda: not self._closed)
            self._closed = True
            try:
                await self._news.wait_for(lambda: not self._passing)
            except BaseException:
                self._closed = False
                self._news.notify_all()
                raise
        try:
            yield
        finally:
            self._closed = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


class Loader:
    """Loads candidates that requests want to see: all of a moment together, each once.

    Attributes:
        loaded: candidates that sources were asked for.
    """

    def __init__(self) -> None:
        self.loaded = 0
        self._waiting: list[tuple[Wanted, asyncio.Future[Sequence[Piece]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def load(self, wanted: Wanted) -> Sequence[Piece]:
        """The pieces that a candidate is spliced in as; raises what its source raised."""
        found: asyncio.Future[Sequence[Piece]] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, found))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await found

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pieces = await asyncio.to_thread(load_distinct, [wanted for wanted, _ in batch])
            self.loaded += len(pieces)
            for wanted, found in batch:
                if found.done():  # nobody waits for it any more
                    continue
                one = pieces[wanted]
                if isinstance(one, Exception):
                    found.set_exception(one)
                else:
                    found.set_result(one)
