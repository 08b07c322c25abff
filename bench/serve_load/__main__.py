"""The rerank server under load: ``python -m bench.serve_load --clients 200 --minutes 5``.

A third of the clients hang up in the middle of a request. Exit status 1 where the server loses a
request, answers one twice, fails, grows, or holds anything of a request that has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench import machine, report
from bench.serve import Running, served
from bench.serve_load.asks import Asks, demo_pictures
from bench.serve_load.client import Client, Outcome
from bench.serve_load.promises import (
    Seen,
    broken,
    counts,
    deviation,
    held,
    read_log,
    read_metrics,
)
from retrv_r1.serve.admission import Load
from retrv_r1.types import RetrvError

TICK = 0.5
"""Seconds between two looks at the server's memory."""
IDLE_SECONDS = 60.0
"""Seconds in which an idle server must hold nothing any more."""
GRACE = 90.0
"""Seconds after the deadline in which an answer must have come; not to come is to be lost."""
WARMING = -1
"""Number of the client that warms the server, for the names of its requests."""
MOST_WARMING = 1000
LONGEST_REST = 5.0
"""Seconds that a refused client waits at most, whatever it was told."""
COLUMNS = ("sent", "answered", "refused", "late", "hung up", "lost", "failed", "wrong")


async def use(client: Client, asks: Asks, until: float, outcomes: list[Outcome]) -> None:
    """One client, until its time is over; the request that it has sent then is waited for."""
    while time.monotonic() < until:
        outcome = await client.ask(asks.next())
        outcomes.append(outcome)
        rest = min(outcome.retry_after, LONGEST_REST) if outcome.end == "refused" else 0.0
        await asyncio.sleep(asks.pause() + rest)
    client.close()


async def put_load(
    server: Running, clients: int, seconds: float, seed: int, patience: float, progress: Progress
) -> Seen:
    """All clients for some seconds; what was seen, but for the log.

    Args:
        patience: seconds after which a client counts its request as lost.
    """
    url = httpx.URL(server.url)
    seen, pictures = Seen(), demo_pictures()
    async with httpx.AsyncClient(base_url=server.url, timeout=IDLE_SECONDS) as own:
        await _warm(own, pictures, seed)
        seen.before = read_metrics((await own.get("metrics")).text)
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    use(
                        Client(url.host, url.port or 80, patience),
                        Asks(number, seed, pictures),
                        until,
                        seen.outcomes,
                    )
                )
                for number in range(clients)
            ]
            await _watch(server, seen, seconds, tasks, progress)
        seen.after = await _idle(own)
    return seen


async def _warm(own: httpx.AsyncClient, pictures: list[bytes], seed: int) -> None:
    """Asks until the engine has filled its cache, for memory is taken as it is needed."""
    asks = Asks(WARMING, seed, pictures)
    for _ in range(MOST_WARMING):
        body = asks.of("fast", 50)
        (await own.post("v1/rerank", content=body)).raise_for_status()
        if read_metrics((await own.get("metrics")).text)["retrv_evicted_pages_total"]:
            return
    raise RetrvError("the cache is never full: choose a smaller --kv-cache")


async def _watch(
    server: Running, seen: Seen, seconds: float, tasks: list[asyncio.Task[None]], progress: Progress
) -> None:
    bar = progress.add_task("load", total=seconds, ends="")
    began = time.monotonic()
    while not all(task.done() for task in tasks):
        seen.memory.append(resident(server.pid))
        total = {name: sum(o.end == name for o in seen.outcomes) for name in COLUMNS[1:]}
        ends = ", ".join(f"{count} {name}" for name, count in total.items() if count)
        progress.update(bar, completed=min(seconds, time.monotonic() - began), ends=ends)
        await asyncio.sleep(TICK)


async def _idle(own: httpx.AsyncClient) -> dict[str, float]:
    """Metrics when nothing is held any more, or at the end of the time for that."""
    until = time.monotonic() + IDLE_SECONDS
    while True:
        found = read_metrics((await own.get("metrics")).text)
        if not any(held(found).values()) or time.monotonic() > until:
            return found
        await asyncio.sleep(TICK)


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(
    model: str,
    log: Path,
    clients: int,
    seconds: float,
    seed: int,
    deadline: float,
    options: list[str],
    load: Load,
    progress: Progress,
) -> Seen:
    """Starts a server, puts load on it, and ends it.

    Args:
        log: file for the server's log.
        deadline: seconds that a request has.
        options: further options of ``retrv-r1 serve``.
        load: how much the server takes on.
    """
    own = ["--max-running", str(load.running), "--max-queue", str(load.waiting), *options]
    own += ["--deadline", str(deadline)]
    with served(model, log, *own) as server:
        seen = asyncio.run(put_load(server, clients, seconds, seed, deadline + GRACE, progress))
    seen.logged, seen.lines = read_log(log)
    seen.sheds = clients > load.running + load.waiting
    return seen


def render(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Prints a row for each mode."""
    table = Table(title="requests by mode, and seconds of those that were answered")
    table.add_column("mode")
    for name in (*COLUMNS, "p50", "p90", "p99", "to the first byte p50"):
        table.add_column(name, justify="right")
    for mode, row in rows.items():
        cuts = [row["seconds"].get(name) for name in ("p50", "p90", "p99")]
        cells = [*cuts, row["first"].get("p50")]
        shown = ["–" if value is None else f"{value:.2f}" for value in cells]
        table.add_row(mode, *(str(row.get(name, 0)) for name in COLUMNS), *shown)
    console.print(table)


def main(
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "tiny",
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at the same time.")] = 200,
    minutes: Annotated[float, typer.Option(min=0.05, help="How long they ask.")] = 5.0,
    running: Annotated[int, typer.Option(min=1, help="The server's --max-running.")] = 32,
    waiting: Annotated[int, typer.Option(min=0, help="The server's --max-queue.")] = 128,
    deadline: Annotated[float, typer.Option(min=1, help="The server's --deadline.")] = 60.0,
    kv_cache: Annotated[
        int, typer.Option(min=1, help="The server's --kv-cache: small, so that it is soon full.")
    ] = 48,
    seed: Annotated[int, typer.Option(help="What all requests follow from.")] = 0,
    output: Annotated[Path | None, typer.Option("--json", help="File for the report.")] = None,
    log: Annotated[Path, typer.Option(help="File for the server's log.")] = Path(
        "build/serve-load.log"
    ),
) -> None:
    """Put load on a server; print the machine, a table, broken promises, and one line of JSON."""
    console = Console(width=150)
    card = machine.card("cpu")
    report.render_card(card, console)
    log.parent.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("{task.fields[ends]}"), console=console) as progress:
        options = ["--kv-cache", str(kv_cache)]
        load = Load(running, waiting)
        seen = run(model, log, clients, 60 * minutes, seed, deadline, options, load, progress)
    rows, promises = counts(seen.outcomes), broken(seen)
    render(rows, console)
    most, median = deviation(seen.memory)
    console.print(f"memory {median / 2**20:.0f} MiB, at most {most:.1%} from it once warm")
    console.print(f"held at the end: {held(seen.after)}")
    for promise in promises:
        console.print(f"BROKEN: {promise}", markup=False)
    line = {
        "suite": "serve_load",
        "card": card,
        "load_at_the_end": [round(value, 2) for value in os.getloadavg()],
        "clients": clients,
        "minutes": minutes,
        "seed": seed,
        "server": {
            "running": running,
            "waiting": waiting,
            "deadline": deadline,
            "kv_cache_mib": kv_cache,
        },
        "rows": rows,
        "memory": {"median": median, "deviation": most, "mib": [m >> 20 for m in seen.memory]},
        "before": dict(seen.before),
        "after": dict(seen.after),
        "broken": promises,
    }
    text = json.dumps(line)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    typer.echo(text)
    sys.exit(bool(promises))


if __name__ == "__main__":
    typer.run(main)
