"""What a server holds when it has nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from retrv_r1.serve.service import RerankService


@dataclass(frozen=True)
class Held:
    """What is held.

    Attributes:
        files: open files and sockets.
        megabytes: resident memory.
        tasks: tasks of the event loop, without the one that asks.
        calls: calls in work or in the queue.
        pages: pages of the engine that belong to a request.
        children: child processes.
    """

    files: int
    megabytes: float
    tasks: int
    calls: int
    pages: int
    children: int

    @classmethod
    async def now(cls, service: RerankService) -> Held:
        """What is held once requests that were given up have ended, which takes a moment."""
        assert service.reranker is not None
        for _ in range(200):
            health = await service.health()
            engine, _ = await asyncio.to_thread(service.reranker.stats)
            calls = health.running + health.waiting + engine.running + engine.waiting
            if not calls:
                break
            await asyncio.sleep(0.05)
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            len(os.listdir("/proc/self/fd")),
            resident * os.sysconf("SC_PAGE_SIZE") / 2**20,
            len(asyncio.all_tasks()) - 1,
            calls,
            engine.pages - engine.free_pages - engine.cached_pages,
            _children(),
        )

    def leaks(self, warm: Held) -> list[str]:
        """What is held now and was not when the server was warm.

        Memory may grow by 5 % and 40 MB: caches fill, and the allocator keeps pieces.
        """
        found = [f"{self.calls} calls"] if self.calls else []
        found += [f"{self.pages} pages"] if self.pages else []
        if self.files > warm.files:
            found.append(f"{self.files - warm.files} open files")
        if self.tasks > warm.tasks:
            found.append(f"{self.tasks - warm.tasks} tasks")
        if self.children > warm.children:
            found.append(f"{self.children - warm.children} processes")
        if self.megabytes > 1.05 * warm.megabytes + 40:
            found.append(f"{self.megabytes - warm.megabytes:.0f} MB")
        return found


def _children() -> int:
    """Child processes of all threads; one may end while they are counted."""
    count = 0
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            count += len((thread / "children").read_text().split())
    return count
