"""The rerank server against its engine called directly: requests a second, latency, its own share.

python -m bench.serve --quick

The server runs in a process of its own, the engine in this one; both take turns within each round,
so that whatever slows the machine slows both. Queries are never repeated, candidates always are: as
in use, features are known and prompts are new.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from bench import machine, report
from retrv_r1 import Item, Reranker
from retrv_r1.types import Mode, RetrvError

PICTURES = Path(__file__).parent.parent / "examples" / "demo"
MOST_CLIENTS = 256
PATIENCE = 600.0
"""Seconds within which the server must be ready, and a request answered."""
TO_END = 90.0
"""Seconds within which the server must end: it gives requests 30, and loses none here."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Case:
    """What is measured: a mode, and how many clients ask at the same time."""

    mode: Mode
    clients: int


@dataclass(frozen=True)
class Round:
    """One round of a case.

    Args:
        seconds: of the whole round.
        latencies: seconds of each request.
        inside: of each request, the seconds that the reranker itself took.
    """

    seconds: float
    latencies: tuple[float, ...]
    inside: tuple[float, ...]


class Queries:
    """Queries that no request has had before, of equal length in tokens or nearly so."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[str]:
        """The next ``count`` queries."""
        first, self._next = self._next, self._next + count
        return [f"a picture of number {first + place:05d}" for place in range(count)]


class Direct:
    """The engine, called by as many threads as there are clients.

    Args:
        threads: threads for them: asyncio's own are only a few, which would queue the clients.
    """

    def __init__(
        self, reranker: Reranker, pictures: Sequence[bytes], threads: ThreadPoolExecutor
    ) -> None:
        self._reranker, self._threads = reranker, threads
        self._items = [Item(image=picture) for picture in pictures]

    async def ask(self, query: str, mode: Mode) -> float:
        """Ranks; returns the seconds that the reranker took."""
        rank = partial(self._reranker.rank, query, self._items, mode=mode)
        results = await asyncio.get_running_loop().run_in_executor(self._threads, rank)
        assert len(results) == len(self._items)
        return results.bill.seconds["total"]


class Served:
    """The server, asked over HTTP by a client that keeps its connections."""

    def __init__(self, client: httpx.AsyncClient, pictures: Sequence[bytes]) -> None:
        self._client = client
        uris = [f"data:image/png;base64,{base64.b64encode(one).decode()}" for one in pictures]
        # Made once: a client's own work is not the server's.
        self._documents = json.dumps([{"image": uri} for uri in uris])

    async def ask(self, query: str, mode: Mode) -> float:
        """Ranks; returns the seconds that the reranker inside the server took."""
        head = json.dumps({"query": query, "return_documents": False, "retrv": {"mode": mode}})
        body = f'{head[:-1]}, "documents": {self._documents}}}'
        response = await self._client.post(
            "v1/rerank", content=body.encode(), headers={"Content-Type": "application/json"}
        )
        response.raise_for_status()
        return response.json()["retrv"]["bill"]["seconds"]["total"]


Ask = Callable[[str, Mode], Awaitable[float]]


async def measure(ask: Ask, case: Case, queries: Sequence[str]) -> Round:
    """Asks all queries by ``case.clients`` clients, each of which asks its next when answered."""
    waiting = iter(queries)
    latencies, inside = [], []

    async def client() -> None:
        for query in waiting:
            began = time.perf_counter()
            inside.append(await ask(query, case.mode))
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(case.clients):
            group.create_task(client())
    return Round(time.perf_counter() - began, tuple(latencies), tuple(inside))


def summary(rounds: Sequence[Round]) -> dict[str, float]:
    """Requests a second (median over rounds), percentiles of latency, and the own share.

    ``share`` is the part of a request's latency that the reranker did not take: for the server
    HTTP, JSON, pictures and waiting; median over requests.
    """
    latencies = sorted(one for each in rounds for one in each.latencies)
    shares = [
        max(0.0, 1 - inside / latency)
        for each in rounds
        for latency, inside in zip(each.latencies, each.inside, strict=True)
    ]
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "requests_per_second": statistics.median(len(r.latencies) / r.seconds for r in rounds),
        "p50": cuts[49],
        "p95": cuts[94],
        "p99": cuts[98],
        "share": statistics.median(shares),
    }


def compare(case: Case, direct: Sequence[Round], served: Sequence[Round]) -> dict[str, Any]:
    """A row of the report; ``overhead`` is the share of the server's time that the engine called
    directly does not need for the same work, median over rounds."""
    pairs = zip(direct, served, strict=True)
    overhead = statistics.median(1 - own.seconds / other.seconds for own, other in pairs)
    both = {"direct": summary(direct), "served": summary(served)}
    return {**asdict(case), "rounds": len(served), **both, "overhead": overhead}


async def measure_all(
    cases: Sequence[Case], asks: dict[str, Ask], rounds: int, each: int
) -> list[dict[str, Any]]:
    """All cases in rounds; engine and server take turns, and change places from round to round."""
    queries = Queries()
    found: dict[tuple[Case, str], list[Round]] = {
        (case, name): [] for case in cases for name in asks
    }
    for number in range(-1, rounds):  # the first warms up
        for case in cases:
            for name in sorted(asks, reverse=number % 2 == 0):
                count = max(case.clients, 1 if number < 0 else each)
                taken = await measure(asks[name], case, queries.take(count))
                if number >= 0:
                    found[case, name].append(taken)
    return [compare(case, found[case, "direct"], found[case, "served"]) for case in cases]


@dataclass(frozen=True)
class Running:
    """A server that answers: its address, which ends with a slash, and the id of its process."""

    url: str
    pid: int


@contextmanager
def served(model: str, errors: Path, *options: str) -> Iterator[Running]:
    """A server in a process of its own.

    Args:
        errors: file for its log.
        options: further options of ``retrv-r1 serve``.
    Raises:
        RetrvError: the server ended before it was ready.
    """
    command = [sys.executable, "-m", "retrv_r1", "serve", "--model", model, "--port", "0"]
    command += options
    with errors.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if " at http" in line), "")
            if not line:
                raise RetrvError(f"the server did not start; {errors} says why")
            yield Running(line.split(" at ")[1].strip() + "/", process.pid)
        finally:
            end(process)


def end(process: subprocess.Popen[str], patience: float = TO_END) -> None:
    """Ends a server, and says so where it had to be killed.

    Args:
        patience: seconds that it has.
    """
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        typer.echo(f"the server did not end within {patience:.0f} s and was killed", err=True)
    if process.stdout is not None:
        process.stdout.close()


def render(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints a row for each case."""
    table = Table(title="requests a second, and milliseconds of latency")
    for name in ("mode", "clients", "direct /s", "served /s", "overhead", "direct p50", "p95"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for name in ("served p50", "p95", "p99", "outside the reranker"):
        table.add_column(name, justify="right")
    for row in rows:
        one, other = row["direct"], row["served"]
        table.add_row(
            row["mode"],
            str(row["clients"]),
            f"{one['requests_per_second']:.2f}",
            f"{other['requests_per_second']:.2f}",
            f"{row['overhead']:.1%}",
            *(f"{1000 * one[name]:.0f}" for name in ("p50", "p95")),
            *(f"{1000 * other[name]:.0f}" for name in ("p50", "p95", "p99")),
            f"{other['share']:.1%}",
        )
    console.print(table)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Name or folder of a checkpoint.")] = "tiny",
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,8,32",
    modes: Annotated[str, typer.Option(help="Modes.")] = "fast,reason",
    candidates: Annotated[int, typer.Option(min=2, max=50, help="Pictures of a request.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that are measured.")] = 10,
    each: Annotated[int, typer.Option(min=1, help="Requests of a round, at least.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Two rounds of four requests.")] = False,
    output: Annotated[Path | None, typer.Option("--json", help="File for the report.")] = None,
    log: Annotated[Path, typer.Option(help="File for the server's log.")] = Path(
        "build/bench-serve.log"
    ),
) -> None:
    """Measure the server against the engine: print the machine, a table, and one line of JSON."""
    console = Console(width=150)
    card = machine.card("cpu")
    report.render_card(card, console)
    cases = [
        Case("reason" if mode == "reason" else "fast", int(count))
        for mode in modes.split(",")
        for count in clients.split(",")
    ]
    if max(case.clients for case in cases) > MOST_CLIENTS:
        raise typer.BadParameter(f"at most {MOST_CLIENTS} clients")
    pictures = [path.read_bytes() for path in sorted(PICTURES.glob("*.png"))[:candidates]]
    rounds, each = (2, 4) if quick else (rounds, each)
    log.parent.mkdir(parents=True, exist_ok=True)

    async def run(url: str) -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=None)
        with ThreadPoolExecutor(max_workers=MOST_CLIENTS) as threads:
            direct = Direct(reranker, pictures, threads)
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
                asks: dict[str, Ask] = {
                    "direct": direct.ask,
                    "served": Served(client, pictures).ask,
                }
                return await measure_all(cases, asks, rounds, each)

    with Reranker.from_pretrained(model, device="cpu") as reranker, served(model, log) as server:
        rows = asyncio.run(run(server.url))
    render(rows, console)
    line = json.dumps({"suite": "serve", "card": card, "candidates": len(pictures), "rows": rows})
    if output is not None:
        output.write_text(line + "\n", encoding="utf-8")
    typer.echo(line)


if __name__ == "__main__":
    app()
