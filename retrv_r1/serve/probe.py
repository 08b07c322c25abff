"""Finds out whether an engine answers."""

from __future__ import annotations

import asyncio
import time

from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import RankRequest

FRESH = 10.0
"""Seconds for which an answer shows that the engine answers."""
LIMIT = 10.0
"""Seconds that it has for an answer."""
PATIENCE = 1.0
"""Seconds that those in a hurry wait for it: the step of a long prompt may last longer."""


class Probe:
    """Ranks two words when nothing else has been ranked for a while; for one event loop."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker
        self._answered = -FRESH
        self._last = False
        self._task: asyncio.Task[None] | None = None

    def seen(self) -> None:
        """Notes that the engine has just answered."""
        self._answered, self._last = time.monotonic(), True

    def doubt(self) -> None:
        """Notes that it has failed, so that the next question asks it."""
        self._answered, self._last = -FRESH, False

    async def answers(self, *, hurry: bool = False) -> bool:
        """Whether the engine answers; those who ask at the same time share the answer.

        Args:
            hurry: whether the answer before is given where there is none within ``PATIENCE``.
        """
        if time.monotonic() - self._answered < FRESH:
            return True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        await asyncio.wait({self._task}, timeout=PATIENCE if hurry else None)
        return self._last

    async def _look(self) -> None:
        self._last = await self._ask()

    async def _ask(self) -> bool:
        try:
            before = await self._steps()
            try:
                request = RankRequest("one", ["one", "two"])
                await self._reranker.submit(request, mode="fast", deadline=LIMIT)
            except TimeoutError:  # it may have been busy with others all the time
                return await self._steps() > before
        except Exception:
            return False
        self.seen()
        return True

    async def _steps(self) -> int:
        """Steps of the engine so far; TimeoutError if one does not end."""
        async with asyncio.timeout(LIMIT):
            return (await asyncio.to_thread(self._reranker.stats))[0].steps
