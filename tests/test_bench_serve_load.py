"""The load on the server: a short run of it, and that each broken promise is seen."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from bench.serve_load.__main__ import run
from bench.serve_load.asks import MODES, Ask, Asks
from bench.serve_load.client import Client, Outcome, Wrong, check
from bench.serve_load.promises import Seen, broken, counts, deviation
from retrv_r1.serve.admission import Load

IDLE = {
    **{f"retrv_{name}": 0.0 for name in ("running", "waiting", "engine_running")},
    "retrv_engine_waiting": 0.0,
    "retrv_pages": 10.0,
    "retrv_free_pages": 4.0,
    "retrv_cached_pages": 6.0,
    "process_open_fds": 9.0,
}


def kept() -> Seen:
    """What is seen where all promises are kept."""
    seen = Seen(before=IDLE, after=dict(IDLE), memory=[90, *[100, 104, 96] * 10], sheds=True)
    for number, mode in enumerate((*MODES, "fast", "fast")):
        ask = Ask(f"load-0-{number}", mode, b"", 2)
        end: Any = ("answered", "refused", "hung up")[max(0, number - 3)]
        status = {"answered": 200, "refused": 429}.get(end, 499)
        seen.outcomes.append(Outcome(ask, end, status, 1.0 + number))
        seen.logged[ask.id] = [status]
    return seen


def test_a_server_that_keeps_all_has_nothing_broken():
    assert broken(kept()) == []


def breaks() -> dict[str, Any]:
    def ended(end: str) -> Any:
        return lambda seen: seen.outcomes.append(Outcome(Ask("x", "fast", b"", 2), end))

    return {
        "1 requests are lost": ended("lost"),
        "1 requests are wrong": ended("wrong"),
        "1 requests are failed": ended("failed"),
        "no request of mode auto": lambda seen: seen.outcomes.pop(2),
        "1 requests answered, with 2 ends": lambda seen: seen.logged["load-0-0"].append(200),
        "1 requests answered, with 0 ends": lambda seen: seen.logged.pop("load-0-0"),
        "1 requests answered, with status 499": lambda seen: seen.logged.update(
            {"load-0-0": [499]}
        ),
        "1 requests hung up, with 2 ends": lambda seen: seen.logged["load-0-5"].append(200),
        "two requests had the same id": lambda seen: seen.outcomes.append(seen.outcomes[0]),
        "1 running are held": lambda seen: seen.after.update(retrv_running=1.0),
        "2 pages are held": lambda seen: seen.after.update(retrv_free_pages=2.0),
        "memory left its median": lambda seen: seen.memory.append(106),
        "20 more files": lambda seen: seen.after.update(process_open_fds=29.0),
        "nobody was refused": lambda seen: seen.outcomes.pop(4),
        "the server's log: {}": lambda seen: seen.lines.append("{}"),
    }


@pytest.mark.parametrize("told", breaks())
def test_a_broken_promise_is_told(told):
    seen = kept()
    breaks()[told](seen)
    assert any(line.startswith(told) for line in broken(seen)), broken(seen)


def test_growth_after_the_warm_up_counts_and_before_it_does_not():
    assert deviation([10] * 2 + [100] * 8) == (0.0, 100)
    assert deviation([100] * 9 + [110])[0] == pytest.approx(0.1)


def test_counts_and_percentiles_are_of_the_answered_ones():
    ask = Ask("a", "fast", b"", 2)
    outcomes = [Outcome(ask, "answered", 200, float(n)) for n in range(101)]
    row = counts([*outcomes, Outcome(ask, "late", 504, 900.0)])["fast"]
    assert (row["sent"], row["answered"], row["late"]) == (102, 101, 1)
    assert row["seconds"] == pytest.approx({"p50": 50, "p90": 90, "p99": 99})
    assert counts([])["fast"]["seconds"] == {}


def test_requests_are_of_all_kinds_and_follow_from_the_seed():
    made, again = ([Asks(1, 0, [b"x"])], [Asks(1, 0, [b"x"])])
    asks = [made[0].next() for _ in range(400)]
    assert asks == [again[0].next() for _ in range(400)]
    assert len({ask.id for ask in asks}) == 400
    assert {ask.mode for ask in asks} == set(MODES)
    assert {ask.documents for ask in asks} == {2, 8, 20, 50, 120}
    assert {ask.leaves for ask in asks} == {None, "body", "wait", "answer"}
    assert 100 < sum(ask.leaves is not None for ask in asks) < 167
    assert any(b"data:image/png" in ask.body for ask in asks)


def rows(*indices: int, owner: str = "a") -> list[dict[str, Any]]:
    return [
        {"index": index, "id": f"{owner}/{index}", "relevance_score": 1 - place / 10}
        for place, index in enumerate(indices)
    ]


def test_only_the_own_ranking_is_an_answer():
    ask = Ask("a", "fast", b"", 2)
    good = {"results": rows(1, 0)}
    assert check(ask, json.dumps(good).encode()) == ("answered", "")
    for bad in (rows(0), rows(0, 0), rows(0, 1, owner="b"), rows(0, 1)[::-1]):
        with pytest.raises(Wrong):
            check(ask, json.dumps({"results": bad}).encode())
    stream = replace(ask, mode="stream")
    event = f"event: ranking\ndata: {json.dumps(good)}\n\n"
    assert check(stream, f": keep-alive\n\n{event}".encode())[0] == "answered"
    for bad_events in (event + event, "", f"{event}event: reasoning\ndata: {{}}\n\n"):
        with pytest.raises(Wrong):
            check(stream, bad_events.encode())
    late = 'event: error\ndata: {"error": {"code": "deadline_exceeded"}}\n\n'
    assert check(stream, late.encode())[0] == "late"
    assert check(stream, late.replace("deadline_exceeded", "x").encode())[0] == "failed"


def test_a_second_answer_and_another_ones_answer_are_seen():
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-ID: a\r\n"
        b"Content-Length: %d\r\n\r\n%s"
    )
    body = json.dumps({"results": rows(0, 1)}).encode()
    whole = answer % (len(body), body)

    async def check_all(said: bytes) -> list[str]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(said)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            client = Client(host, port, patience=10.0)
            return [(await client.ask(Ask("a", "fast", b"{}", 2))).end]

    found = [whole, whole * 2, whole.replace(b"ID: a", b"ID: b"), whole[:-1], b""]
    ends = [asyncio.run(check_all(said)) for said in found]
    assert ends == [["answered"], ["wrong"], ["wrong"], ["lost"], ["lost"]]


def test_a_short_load_breaks_no_promise(tmp_path: Path):
    """Twelve clients for eight seconds, against the command itself."""
    load, options = Load(running=4, waiting=4), ["--kv-cache", "16"]
    progress = Progress(disable=True)
    seen = run("tiny", tmp_path / "log", 12, 8.0, 0, 60.0, options, load, progress)
    # Few answers in eight seconds of a busy machine: a mode may have had none. Nor are they enough
    # for memory to settle.
    judged = ("memory", "no request of mode")
    assert [one for one in broken(seen) if not one.startswith(judged)] == []
    ends = {outcome.end for outcome in seen.outcomes}
    assert {"answered", "hung up"} <= ends
