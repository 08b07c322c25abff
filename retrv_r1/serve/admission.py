"""Who may run, who waits, and who is sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from retrv_engine import DeadlineExceeded
from retrv_engine.config import check_whole
from retrv_r1.serve.calls import NotReady, QueueFull

SHUTTING_DOWN = "the service is shutting down"
MEMORY = 0.2
"""Weight of the latest call in the mean time of a call."""


@dataclass(frozen=True)
class Load:
    """How much a service takes on.

    Args:
        running: calls that are ranked at the same time.
        waiting: calls that wait for their turn; more are refused with :class:`QueueFull`.
        deadline: seconds after which a call without a deadline of its own fails; None for never.
    Raises:
        ValueError: a number out of range.
    """

    running: int = 32
    waiting: int = 128
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_whole("running", self.running, 1)
        check_whole("waiting", self.waiting, 0)
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline must be seconds above 0, got {self.deadline!r}")


class Admission:
    """Gives calls their turn, first come, first served; it belongs to one event loop.

    Attributes:
        running: calls that have their turn.
    """

    def __init__(self, load: Load) -> None:
        self.load, self.running = load, 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that a call takes, about
        self._measured = False
        self._empty = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, until: float) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the context.

        Args:
            until: time, of ``perf_counter``, at which waiting ends.
        Raises:
            QueueFull: too many wait already, or so many that it would not be its turn in time.
            DeadlineExceeded: it was not a call's turn in time.
            NotReady: the service gave up on those that wait.
        """
        if self.running < self.load.running and not self._waiting:
            self.running += 1
        elif len(self._waiting) < self.load.waiting and self._in_time(until):
            await self._wait(until)
        else:
            raise QueueFull(self._retry_after())
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += MEMORY * (time.perf_counter() - began - self._seconds)
            self._measured = True
            self._pass_on()

    def refuse(self) -> None:
        """Sends away all that wait."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(NotReady(SHUTTING_DOWN))
        self._tell()

    async def empty(self) -> None:
        """Returns when no call runs or waits."""
        while self.running or self._waiting:
            self._empty.clear()
            await self._empty.wait()

    async def _wait(self, until: float) -> None:
        """Waits; the turn that it is given was another's."""
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        left = None if math.isinf(until) else max(0.0, until - time.perf_counter())
        try:
            async with asyncio.timeout(left):
                await place
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.done() and not place.cancelled() and place.exception() is None:
                self._pass_on()  # it was this call's turn the moment it went away
            self._tell()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed in the queue") from None
            raise

    def _pass_on(self) -> None:
        """Gives a turn that has ended to the next that waits."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
        self._tell()

    def _tell(self) -> None:
        if not self.running and not self._waiting:
            self._empty.set()

    def _in_time(self, until: float) -> bool:
        """Whether a call that comes now will probably have its turn before its deadline.

        If not, it is told at once, instead of at the deadline in a place that others could use.
        """
        wait = self._wait_of(len(self._waiting) + 1) if self._measured else 0.0
        return time.perf_counter() + wait < until

    def _wait_of(self, place: float) -> float:
        """Seconds until a place in the queue has its turn, by the mean time of a call."""
        return self._seconds * place / self.load.running

    def _retry_after(self) -> float:
        """Seconds in which about a quarter of those that wait will have had their turn."""
        ahead = max(1.0, len(self._waiting) / 4)
        return max(1.0, self._wait_of(ahead))
