"""Fuzzes the server: ``python -m bench.fuzz --requests 10000 --sockets 500``.

Requests go to the application in this process, byte for byte; those of ``--sockets`` over a
connection, with broken HTTP. Exit status 1 where anything is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from bench.fuzz.asgi import exchange, faults
from bench.fuzz.bodies import Maker
from bench.fuzz.framing import listening, still_answers, throw
from bench.fuzz.leaks import Held
from retrv_r1 import EngineConfig, Reranker
from retrv_r1.serve.app import create_app
from retrv_r1.serve.connections import limited
from retrv_r1.serve.hosts import Hosts
from retrv_r1.serve.limits import Limits
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import Settings

AT_ONCE = 8
PARTS = 5
"""Parts of a run; after the first the server counts as warm, and what it holds is noted."""
SHOWN = 20


@dataclass
class Outcome:
    """What a run has found.

    Attributes:
        statuses: requests by status; 0 where the client hung up first.
        faults: what was wrong, with the number of the request.
        slowest: most seconds of a request.
        held: what the server held when it was warm, in between, and in the end.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    held: list[Held] = field(default_factory=list)


def small_caches() -> Reranker:
    """The shipped checkpoint with caches that are soon full, so that growth of memory is a leak."""
    config = EngineConfig(cache_bytes=2**25)
    reranker = Reranker.from_pretrained("tiny", device="cpu", config=config)
    reranker.encoder.capacity_bytes = 2**24
    return reranker


@asynccontextmanager
async def started() -> AsyncIterator[tuple[Any, RerankService]]:
    """An application as ``retrv-r1 serve`` makes it, with its model loaded, and its service."""
    service = RerankService(small_caches)
    ready = asyncio.Event()
    settings = Settings(hosts=Hosts.of((), "127.0.0.1", ["127.0.0.1"], keys=False))
    app = create_app(service, settings, on_start=lambda error: ready.set())
    async with app.router.lifespan_context(app):
        await ready.wait()
        yield app, service


async def fuzz_requests(app: Any, service: RerankService, count: int, seed: int) -> Outcome:
    """Sends ``count`` requests, several at a time, and looks for faults and leaks."""
    outcome, maker = Outcome(), Maker(seed)

    async def worker(numbers: Iterator[int]) -> None:
        for number in numbers:
            sent = maker.make()
            start = time.perf_counter()
            try:
                got = await exchange(app, sent)
            except Exception as error:  # also a request that does not end
                outcome.faults.append(f"{number}: {type(error).__name__} {sent}"[:500])
                continue
            outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
            outcome.statuses[got.status] += 1
            outcome.faults += [f"{number}: {one} {sent}"[:500] for one in faults(sent, got)]

    for part in range(PARTS):
        numbers = iter(range(part * count // PARTS, (part + 1) * count // PARTS))
        await asyncio.gather(*(worker(numbers) for _ in range(AT_ONCE)))
        outcome.held.append(await Held.now(service))
        print(f"part {part + 1}: {len(outcome.faults)} faults, {outcome.held[-1]}", flush=True)
    outcome.faults += [f"leak: {one}" for one in outcome.held[-1].leaks(outcome.held[0])]
    return outcome


async def fuzz_sockets(app: Any, service: RerankService, count: int, seed: int) -> Outcome:
    """Sends ``count`` requests of broken HTTP over connections."""
    outcome, chance = Outcome(), random.Random(seed)
    http = limited(Limits())
    async with listening(app, http=http, lifespan="off", timeout_keep_alive=2) as port:
        assert await still_answers(port)
        outcome.held.append(await Held.now(service))
        for start in range(0, count, AT_ONCE):
            throws = [throw(port, chance) for _ in range(min(AT_ONCE, count - start))]
            outcome.faults += [fault for fault in await asyncio.gather(*throws) if fault]
        if not await still_answers(port):
            outcome.faults.append("a sound request is not answered any more")
        await asyncio.sleep(0.2)
        outcome.held.append(await Held.now(service))
    outcome.faults += [f"leak: {one}" for one in outcome.held[-1].leaks(outcome.held[0])]
    return outcome


def main(
    requests: Annotated[int, typer.Option(help="Requests in this process.")] = 10_000,
    sockets: Annotated[int, typer.Option(help="Requests of broken HTTP over a socket.")] = 500,
    seed: Annotated[int, typer.Option(help="What all requests follow from.")] = 0,
) -> None:
    """Send the server wrong requests, and look for errors of its own, hangs and leaks."""
    logging.disable(logging.WARNING)

    async def run() -> list[tuple[str, int, Outcome]]:
        async with started() as (app, service):
            return [
                ("requests", requests, await fuzz_requests(app, service, requests, seed)),
                ("sockets", sockets, await fuzz_sockets(app, service, sockets, seed)),
            ]

    start = time.perf_counter()
    outcomes = asyncio.run(run())
    for name, count, outcome in outcomes:
        print(f"{count} {name}: {len(outcome.faults)} faults, slowest {outcome.slowest:.2f} s")
        print("  statuses:", dict(sorted(outcome.statuses.items())))
        for held in outcome.held:
            print("  held:", json.dumps(asdict(held)))
        for fault in outcome.faults[:SHOWN]:
            print("  FAULT", fault)
    print(f"{time.perf_counter() - start:.0f} s, seed {seed}")
    sys.exit(any(outcome.faults for _, _, outcome in outcomes))


if __name__ == "__main__":
    typer.run(main)
