"""The life of the SGLang engine's server, with servers that only seem to be SGLang's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from engine_doubles import LABELS
from sglang_doubles import (
    QUICK,
    FakeProcess,
    FakeServer,
    changed,
    make_engine,
    reasoning,
    until,
)

from retrv_engine import DeadlineExceeded, EngineDied, Request, RequestTooLarge
from retrv_engine.sglang import connection

pytest_plugins = ["sglang_fixtures"]


# Who waits for what.


def test_a_deadline_does_not_wait_for_a_server_that_hangs(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        fake_server.computes.clear()
        handle = engine.submit(QUICK, deadline=1.0)
        until(lambda: fake_server.count("/generate") == 1)
        fake_server.hangs = True
        with pytest.raises(DeadlineExceeded):
            handle.result(timeout=8)
        until(lambda: fake_server.count("/abort_request") == 1)
        asked = {path: body for path, body in fake_server.asked}
        assert asked["/generate"]["rid"] == asked["/abort_request"]["rid"]
        fake_server.hangs = False
        fake_server.computes.set()
        assert engine.generate([QUICK])[0].answer == 0


def test_an_engine_that_closes_aborts_its_calls(small_model, fake_server):
    engine = make_engine(small_model, url=fake_server.url)
    fake_server.computes.clear()
    handle = engine.submit(QUICK)
    until(lambda: fake_server.count("/generate") == 1)
    engine.close()
    assert fake_server.count("/abort_request") == 1 and handle.future.cancelled()


def test_a_server_starts_although_those_who_wanted_it_gave_up(small_model, processes):
    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied, match="the server has died, exit status 1"):
            engine.generate([QUICK])
        opened = hold_starts(processes)
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                engine.submit(QUICK, deadline=0.05).result(timeout=3)
        waiting = engine.submit(QUICK)
        opened()
        assert waiting.result(timeout=5).answer == 0
        assert len(processes) == 2 and not processes[1].ended


def hold_starts(processes: list[FakeProcess]) -> Callable[[], None]:
    """Has the next process hang until the function that is returned is called."""
    start = vars(connection)["ServerProcess"]

    def hanging(*values: Any) -> FakeProcess:
        made = start(*values)
        made.server.hangs = True
        return made

    vars(connection)["ServerProcess"] = hanging

    def opened() -> None:
        until(lambda: len(processes) > 1)
        processes[-1].server.hangs = False

    return opened


def test_a_start_that_fails_is_tried_again(small_model, processes):
    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied):
            engine.generate([QUICK])
        opened = hold_starts(processes)
        handle = engine.submit(QUICK)
        until(lambda: len(processes) == 2)
        processes[1].end()
        with pytest.raises(EngineDied, match="did not start"):
            handle.result(timeout=5)
        handle = engine.submit(QUICK)
        until(lambda: len(processes) == 3)
        assert engine.stats().restarts == 0
        opened()
        assert handle.result(timeout=5).answer == 0
        assert engine.stats().restarts == 1, "the start that failed is none"


def test_a_server_starts_when_the_one_before_has_ended(small_model, processes):
    with make_engine(small_model) as engine:
        processes[0].server.die()  # its process has not ended yet
        first = engine.submit(QUICK)
        with pytest.raises(TimeoutError):
            first.result(timeout=0.3)
        second = engine.submit(QUICK)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.3)
        assert len(processes) == 1
        processes[0].killed.set()
        with pytest.raises(EngineDied, match="has died, exit status 1"):
            first.result(timeout=5)
        assert second.result(timeout=5).answer == 0 and len(processes) == 2


@pytest.mark.parametrize("refuses", [False, True], ids=["other weights", "refused weights"])
def test_a_healthy_server_is_not_waited_for(small_model, processes, refuses):
    with make_engine(small_model) as engine:
        waits: list[float] = []
        processes[0].wait = lambda seconds: waits.append(seconds)
        if refuses:
            processes[0].server.taken = 0
            with pytest.raises(EngineDied, match="did not take the new weights: no memory"):
                engine.load_weights(changed(small_model, "head.weight"))
        else:
            processes[0].server.version = "somebody's"
            with pytest.raises(EngineDied, match="somebody else loaded others"):
                engine.generate([QUICK])
        assert waits == [0.0] and processes[0].ended
        assert engine.generate([QUICK])[0].answer == 0 and len(processes) == 2


@pytest.mark.parametrize("scores", [False, True])
def test_an_answer_without_a_part_is_the_servers_death(small_model, processes, scores):
    with make_engine(small_model) as engine:
        server = processes[0].server
        server._generate = lambda _: (200, [])
        processes[0].wait = lambda _: False
        with pytest.raises(EngineDied, match="ended its answer to a call without a part"):
            engine.score([30], [31]) if scores else engine.generate([QUICK])
        assert engine.generate([QUICK])[0].answer == 0 and len(processes) == 2


def test_nothing_is_submitted_to_an_engine_that_closes(small_model, fake_server, monkeypatch):
    """Wherever ``close`` of another thread is when the request comes."""
    engine = make_engine(small_model, url=fake_server.url)
    closing, goes_on = threading.Event(), threading.Event()
    end, handle = engine._connection.close, engine._handle

    async def slowly() -> None:
        closing.set()
        goes_on.wait(5)
        await end()

    def late() -> Any:
        thread.start()
        assert closing.wait(5)
        threading.Timer(0.1, goes_on.set).start()
        return handle()

    thread = threading.Thread(target=engine.close)
    monkeypatch.setattr(engine._connection, "close", slowly)
    monkeypatch.setattr(engine, "_handle", late)
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(QUICK).result(timeout=2)
    thread.join()
    for act in (engine.flush, lambda: engine.load_weights({}), lambda: engine.score([30], [31])):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            act()
    assert not engine.stats().waiting
    engine.close()  # once more does nothing


def test_closing_ends_what_waits(small_model, processes):
    engine = make_engine(small_model)
    processes[0].server.computes.clear()
    handle = engine.submit(QUICK)
    errors: list[BaseException] = []

    def flush() -> None:
        try:
            engine.flush()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    until(lambda: processes[0].server.count("/generate") == 1)
    engine.close()
    thread.join(5)
    with pytest.raises(CancelledError):
        handle.result(timeout=1)
    assert [type(error) for error in errors] == [RuntimeError] and processes[0].ended


def test_closing_ends_a_start(small_model, processes):
    engine = make_engine(small_model)
    processes[0].end()
    with pytest.raises(EngineDied):
        engine.generate([QUICK])
    hold_starts(processes)
    handle = engine.submit(QUICK)
    until(lambda: len(processes) == 2)
    engine.close()
    assert handle.future.cancelled() and processes[1].ended and len(processes) == 2


def test_another_server_that_took_the_port_is_not_ours(small_model, processes):
    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied):
            engine.generate([QUICK])
        opened = hold_starts(processes)
        handle = engine.submit(QUICK)
        until(lambda: len(processes) == 2)
        processes[1].server.version = "somebody's"
        opened()
        with pytest.raises(EngineDied, match="another server has taken the port"):
            handle.result(timeout=5)
        assert processes[1].ended
        handle = engine.submit(QUICK)
        until(lambda: len(processes) == 3)
        opened()
        assert handle.result(timeout=5).answer == 0


# Silence.


def test_a_busy_server_is_not_dead(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url, silent_seconds=0.5) as engine:
        fake_server.computes.clear()
        handle = engine.submit(QUICK)
        until(lambda: fake_server.count("/generate") == 1)
        before = fake_server.count("/model_info")
        until(lambda: fake_server.count("/model_info") >= before + 2)  # it was asked, and lives
        fake_server.computes.set()
        assert handle.result(timeout=5).answer == 0


def test_a_server_that_hangs_is_dead(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url, silent_seconds=0.5) as engine:
        fake_server.hangs = True
        with pytest.raises(EngineDied, match=r"no answer from .*ReadTimeout"):
            engine.submit(QUICK).result(timeout=5)
        fake_server.hangs = False
        assert engine.generate([QUICK])[0].answer == 0, "it connects again"


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, "<html>\nhello</html>"),
        (404, "not here"),
        (301, ""),
        (200, "[]"),
        (200, '{"weight_version": "1"}'),
    ],
)
def test_a_url_that_is_no_sglang_server(small_model, status, content):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}"
    try:
        with pytest.raises(EngineDied, match=f"{url} is no SGLang server.*correct the url") as info:
            make_engine(small_model, url=url)
    finally:
        http.shutdown()
        http.server_close()
    assert "\n" not in str(info.value)


# Length.


def test_reasoning_is_limited_to_what_the_server_takes(small_model):
    server = FakeServer(small_model, context=50)
    with make_engine(small_model, url=server.url) as engine:
        output = engine.generate([reasoning(4000)])[0]
        assert output.answer == 0 and len(output.tokens) == 5, "it ended by itself"
        asked = [body for path, body in server.asked if path == "/generate"]
        assert asked[0]["sampling_params"]["max_new_tokens"] == 41
        assert engine.generate([reasoning(5)])[0].answer == 0
        asked = [body for path, body in server.asked if path == "/generate"]
        assert asked[2]["sampling_params"]["max_new_tokens"] == 4
        with pytest.raises(RequestTooLarge, match="44 rows, but the server takes 43"):
            engine.submit(Request([30] * 43, LABELS, reason=False))
    server.die()
