"""A rerank server whose SGLang server dies in the middle of requests: one that seems to, and a real
one, which is killed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import httpx
import psutil
import pytest
from serve_app import Server, tiny
from sglang_doubles import FakeProcess, FakeServer
from test_serve_process import Process

from retrv_engine.sglang import connection
from retrv_r1 import Reranker
from retrv_r1.serve.admission import Load
from retrv_r1.serve.service import RerankService

pytest_plugins = ["sglang_fixtures"]

SECONDS = 600.0
"""Seconds for SGLang to start; it imports for a long time."""
LIST = {"query": "a red apple", "documents": [f"picture {number}" for number in range(20)]}
LONG = {**LIST, "stream": True, "retrv": {"mode": "reason", "votes": 4}}


def test_those_in_work_are_told_and_those_in_the_queue_are_answered(monkeypatch):
    """Ten fast requests, four of them in work; a double cannot reason."""
    doubles = [FakeServer(tiny().model, context=4096) for _ in range(2)]
    started: list[FakeProcess] = []

    def start(*_: Any) -> FakeProcess:
        started.append(FakeProcess(doubles[len(started)]))
        return started[-1]

    monkeypatch.setattr(connection, "ServerProcess", start)
    reranker = Reranker.from_pretrained("tiny", device="cpu", engine="sglang")
    body = {**LIST, "retrv": {"mode": "fast"}}
    with Server(None, RerankService(reranker, Load(running=4, waiting=16))) as server:
        doubles[0].computes.clear()
        before = doubles[0].count("/generate")
        calls = [
            asyncio.run_coroutine_threadsafe(
                server.client.post("/v1/rerank", json=body), server.loop
            )
            for _ in range(10)
        ]
        end = time.monotonic() + 60
        seen: tuple[int, ...] = ()
        while seen != (4, 4, 6):
            assert time.monotonic() < end, seen
            time.sleep(0.01)
            health = server.run(server.service.health())
            asked = doubles[0].count("/generate") - before
            seen = (min(asked, 4), health.running, health.waiting)
        started[0].end()
        answers = [call.result(120) for call in calls]
        assert server.get("/health").json() == {"status": "ready"}
    assert [one.status_code for one in answers].count(503) == 4, answers
    for one in answers:
        if one.status_code == 503:
            error = one.json()["error"]
            assert error["code"] == "engine_failed" and error["type"] == "unavailable_error"
            assert "restarts; try again" in error["message"] and one.headers["Retry-After"]
            assert "a.log" not in one.text, "the server's own affairs stay inside"
        else:
            assert one.status_code == 200 and len(one.json()["results"]) == 20
    assert doubles[1].count("/generate") >= 6


@pytest.fixture(scope="module")
def serving(sglang_python) -> Iterator[Process]:
    """With time enough that requests may wait for a new server."""
    process = Process("--engine", "sglang", "--deadline", str(int(SECONDS)))
    yield process
    if process.process.poll() is None:
        process.end()


def generating(process: Process) -> psutil.Process:
    """The SGLang server that a server has started."""
    own = psutil.Process(process.process.pid).children(recursive=True)
    found = [one for one in own if "retrv_engine.sglang.worker.server" in one.cmdline()]
    assert len(found) >= 1, [one.cmdline() for one in own]
    return found[0]


def last_event(url: str, begun: Callable[[], object]) -> tuple[str, dict]:
    """Name and data of the last event of a long request; ``begun`` is called at its first."""
    name, data = "", {}
    with httpx.stream("POST", f"{url}/v1/rerank", json=LONG, timeout=SECONDS) as answer:
        if answer.status_code != 200:
            return str(answer.status_code), json.loads(answer.read())
        for line in answer.iter_lines():
            if line.startswith("event: "):
                begun()
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
    return name, data


def test_requests_in_work_are_told_and_all_others_are_answered(serving):
    """Ten in the middle of their reasoning when the server dies, ten that come right after."""
    killed = generating(serving)
    workers = killed.children(recursive=True)
    begun, going = Barrier(11), Event()

    def first() -> Callable[[], object]:
        told = False

        def once() -> None:
            nonlocal told
            if not told:
                told = True
                begun.wait(SECONDS)
                going.wait(SECONDS)

        return once

    with ThreadPoolExecutor(20) as threads:
        running = [threads.submit(last_event, serving.url, first()) for _ in range(10)]
        begun.wait(SECONDS)
        killed.kill()
        going.set()
        later = [threads.submit(last_event, serving.url, lambda: None) for _ in range(10)]
        ends = [one.result(SECONDS) for one in running]
        answers = [one.result(SECONDS) for one in later]

    told = [data for name, data in ends if name == "error"]
    assert told, "some were in work"
    assert all(name in ("error", "ranking") for name, _ in ends), ends
    assert {data["error"]["code"] for data in told} == {"engine_failed"}
    assert all("restarts; try again" in data["error"]["message"] for data in told)

    # Those that came later waited for the new server, or were with the old one when it ended.
    for name, data in answers:
        assert name == "ranking" or data["error"]["code"] == "engine_failed", (name, data)

    end = time.monotonic() + SECONDS
    while (health := httpx.get(f"{serving.url}/health", timeout=SECONDS)).status_code != 200:
        assert health.status_code == 503 and health.json()["status"] == "failed"
        assert time.monotonic() < end
        time.sleep(1)
    again = httpx.post(f"{serving.url}/v1/rerank", json=LIST, timeout=SECONDS)
    assert again.status_code == 200 and len(again.json()["results"]) == 20
    assert generating(serving).pid != killed.pid
    _, alive = psutil.wait_procs([killed, *workers], timeout=20)
    assert not alive, "the old server's workers have ended with it"

    status, log = serving.end()
    assert status == 0
    assert any(line["message"] == "the engine failed" for line in log)
