"""The benchmark of the server: turns, counts and shares, on engines of known speed."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from bench.serve import Case, Queries, Round, compare, end, measure, measure_all, render, summary


def test_queries_are_never_repeated():
    queries = Queries()
    taken = queries.take(3) + queries.take(100_000)
    assert len(set(taken)) == 100_003


def test_clients_ask_side_by_side_and_each_query_is_asked_once():
    running, most, asked = 0, 0, []

    async def ask(query: str, mode: str) -> float:
        nonlocal running, most
        asked.append((query, mode))
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return 0.0005

    queries = Queries().take(10)
    taken = asyncio.run(measure(ask, Case("fast", 3), queries))
    assert most == 3
    assert asked == [(query, "fast") for query in queries]
    assert len(taken.latencies) == len(taken.inside) == 10
    assert 0.004 <= taken.seconds < sum(taken.latencies)


def test_a_summary_has_percentiles_and_the_share_outside_the_reranker():
    rounds = [Round(2.0, (1.0, 1.0, 3.0, 1.0), (0.75, 0.75, 2.25, 0.75))] * 3
    found = summary(rounds)
    assert found["requests_per_second"] == 2.0
    assert (found["p50"], found["p99"]) == (1.0, 3.0)
    assert found["share"] == 0.25


def test_the_overhead_is_what_the_engine_alone_does_not_need():
    direct = [Round(0.9, (0.9,) * 2, (0.9,) * 2), Round(1.8, (0.9,) * 2, (0.9,) * 2)]
    served = [Round(1.0, (1.0,) * 2, (0.9,) * 2), Round(2.0, (1.0,) * 2, (0.9,) * 2)]
    row = compare(Case("fast", 1), direct, served)
    assert row["overhead"] == pytest.approx(0.1)
    assert row["served"]["share"] == pytest.approx(0.1)
    assert (row["mode"], row["clients"], row["rounds"]) == ("fast", 1, 2)


def test_engine_and_server_take_turns_and_the_warm_up_does_not_count():
    turns: list[str] = []

    def asked(name: str):
        async def ask(query: str, mode: str) -> float:
            turns.append(name)
            return 0.0

        return ask

    cases = [Case("fast", 1), Case("reason", 2)]
    asks = {name: asked(name) for name in ("direct", "served")}
    rows = asyncio.run(measure_all(cases, asks, rounds=2, each=2))
    assert [row["rounds"] for row in rows] == [2, 2]
    assert turns.count("direct") == turns.count("served") == 1 + 2 + 2 * 2 * 2
    # The second round has the other order.
    assert turns[6:10] == ["served"] * 2 + ["direct"] * 2
    assert turns[14:18] == ["direct"] * 2 + ["served"] * 2
    out = io.StringIO()
    render(rows, Console(file=out, width=150))
    assert "reason" in out.getvalue()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_server_that_does_not_end_is_killed(stubborn, capsys):
    words = "import signal, time\n"
    if stubborn:
        words += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    words += "print('ready', flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    end(process, 1.0 if stubborn else 60.0)
    assert process.returncode == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
    assert ("was killed" in capsys.readouterr().err) == stubborn
    assert process.stdout.closed
