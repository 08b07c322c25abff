"""The life of the SGLang engine's server, with servers that only seem to be SGLang's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_doubles import LABELS, Source
from sglang_doubles import (
    CHECKPOINT,
    FakeProcess,
    FakeServer,
    SmallModel,
    changed,
    make_engine,
    until,
)

from retrv_engine import DeadlineExceeded, EngineDied, Request, RequestTooLarge, Sampling
from retrv_engine.sglang import client, connection, process

QUICK = Request([30, 31], LABELS, reason=False)
NAME = "language_model.1.weight"


def reasoning(tokens: int) -> Request:
    """A request of 3 rows, with <think>, that may write a number of tokens."""
    source = Source({k: [9] for k in range(4)})
    return Request(
        [30, 31], LABELS, range(4), source, sampling=Sampling(max_reasoning_tokens=tokens)
    )


@pytest.fixture
def model() -> SmallModel:
    torch.manual_seed(0)
    return SmallModel()


@pytest.fixture
def server(model) -> Iterator[FakeServer]:
    made = FakeServer(model)
    yield made
    made.die()


@pytest.fixture
def processes(model, monkeypatch) -> Iterator[list[FakeProcess]]:
    """The processes that engines start, on the checkpoint of the model as it is now."""
    started: list[FakeProcess] = []
    servers = [FakeServer(model) for _ in range(4)]

    def start(*_: Any) -> FakeProcess:
        started.append(FakeProcess(servers[len(started)]))
        return started[-1]

    monkeypatch.setattr(connection, "ServerProcess", start)
    yield started
    for one in servers:
        one.die()


# Who waits for what.


def test_a_deadline_does_not_wait_for_a_server_that_hangs(model, server):
    with make_engine(model, url=server.url) as engine:
        server.computes.clear()
        handle = engine.submit(QUICK, deadline=0.3)
        until(lambda: server.count("/generate") == 1)
        server.hangs = True
        with pytest.raises(DeadlineExceeded):
            handle.result(timeout=3)
        until(lambda: server.count("/abort_request") == 1)
        asked = {path: body for path, body in server.asked}
        assert asked["/generate"]["rid"] == asked["/abort_request"]["rid"]
        server.hangs = False
        server.computes.set()
        assert engine.generate([QUICK])[0].answer == 0


def test_an_engine_that_closes_aborts_its_calls(model, server):
    engine = make_engine(model, url=server.url)
    server.computes.clear()
    handle = engine.submit(QUICK)
    until(lambda: server.count("/generate") == 1)
    engine.close()
    assert server.count("/abort_request") == 1 and handle.future.cancelled()


def test_a_server_starts_although_those_who_wanted_it_gave_up(model, processes):
    with make_engine(model) as engine:
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


def test_a_start_that_fails_is_tried_again(model, processes):
    with make_engine(model) as engine:
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
        opened()
        assert handle.result(timeout=5).answer == 0


def test_a_server_starts_when_the_one_before_has_ended(model, processes):
    with make_engine(model) as engine:
        processes[0].server.die()  # its process has not ended yet
        first, second = engine.submit(QUICK), engine.submit(QUICK)
        with pytest.raises(TimeoutError):
            first.result(timeout=0.3)
        third = engine.submit(QUICK)
        with pytest.raises(TimeoutError):
            third.result(timeout=0.3)
        assert len(processes) == 1
        processes[0].killed.set()
        for one in (first, second):
            with pytest.raises(EngineDied, match="has died, exit status 1"):
                one.result(timeout=5)
        assert third.result(timeout=5).answer == 0 and len(processes) == 2


def test_nothing_is_submitted_to_an_engine_that_closes(model, server, monkeypatch):
    """Wherever ``close`` of another thread is when the request comes."""
    engine = make_engine(model, url=server.url)
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


def test_closing_ends_what_waits(model, processes):
    engine = make_engine(model)
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


def test_closing_ends_a_start(model, processes):
    engine = make_engine(model)
    processes[0].end()
    with pytest.raises(EngineDied):
        engine.generate([QUICK])
    hold_starts(processes)
    handle = engine.submit(QUICK)
    until(lambda: len(processes) == 2)
    engine.close()
    assert handle.future.cancelled() and processes[1].ended and len(processes) == 2


# Silence.


def test_a_busy_server_is_not_dead(model, server):
    with make_engine(model, url=server.url, silent_seconds=0.05) as engine:
        server.computes.clear()
        handle = engine.submit(QUICK)
        until(lambda: server.count("/generate") == 1)
        before = server.count("/model_info")
        until(lambda: server.count("/model_info") >= before + 3)  # it was asked, and lives
        server.computes.set()
        assert handle.result(timeout=5).answer == 0


def test_a_server_that_hangs_is_dead(model, server):
    with make_engine(model, url=server.url, silent_seconds=0.2) as engine:
        server.hangs = True
        with pytest.raises(EngineDied, match=r"no answer from .*ReadTimeout"):
            engine.submit(QUICK).result(timeout=5)
        server.hangs = False
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
def test_a_url_that_is_no_sglang_server(model, status, content):
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
            make_engine(model, url=url)
    finally:
        http.shutdown()
        http.server_close()
    assert "\n" not in str(info.value)


# Weights.


def test_weights_reach_the_server_part_by_part_and_not_in_its_event_loop(
    model, server, monkeypatch
):
    monkeypatch.setattr(client, "BUCKET_BYTES", 1)
    seen: list[str] = []
    dumps = client.pickle.dumps

    def note(values: Any) -> bytes:
        seen.append(threading.current_thread().name)
        sent = [path for path, _ in server.asked if path == "/update_weights_from_tensor"]
        assert len(sent) == len(seen) - 1, "the part before is sent before this one is made"
        return dumps(values)

    monkeypatch.setattr(client.pickle, "dumps", note)
    monkeypatch.setattr(
        connection, "load_weights", noting(connection.load_weights, seen_copy := [])
    )
    with make_engine(model, url=server.url) as engine:
        names = [*server.weights]
        engine.load_weights({name: value + 1 for name, value in server.weights.items()})
        assert len(seen) == len(names) and "retrv-sglang" not in [*seen, *seen_copy] and seen_copy
        versions = [body["weight_version"] for path, body in server.asked if "update" in path]
        assert all("incomplete" in one for one in versions[:-1])
        assert versions[-1] == server.version and "incomplete" not in server.version
        same_weights(model, server)
        assert engine.generate([QUICK])[0].answer == 0


def noting(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The function, which notes the name of the thread that it runs in."""

    def noted(*values: Any) -> Any:
        names.append(threading.current_thread().name)
        return function(*values)

    return noted


def same_weights(model: SmallModel, server: FakeServer) -> None:
    own = dict(model.named_parameters())
    for name, value in server.weights.items():
        torch.testing.assert_close(value, own[name].detach())


@pytest.mark.parametrize("error", [None, MemoryError("no memory"), TypeError("strange")])
def test_weights_that_the_server_took_in_part_are_sent_again(model, server, monkeypatch, error):
    """Whatever stopped it: the server refuses, or an error of our own."""
    monkeypatch.setattr(client, "BUCKET_BYTES", 1)
    with make_engine(model, url=server.url) as engine:
        dumps, made = client.pickle.dumps, []

        def fail(values: Any) -> bytes:
            made.append(values)
            if error is not None and len(made) == 2:
                raise error
            return dumps(values)

        monkeypatch.setattr(client.pickle, "dumps", fail)
        server.taken = 1 if error is None else 10**9
        with pytest.raises(EngineDied, match=r"did not take the new weights: .*(memory|strange)"):
            engine.load_weights({name: value + 1 for name, value in server.weights.items()})
        assert "incomplete" in server.version, "others that use the server notice"
        server.taken = 10**9
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(model, server)


def test_weights_loaded_while_no_server_starts_reach_the_next(model, processes, monkeypatch):
    with make_engine(model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied):
            engine.generate([QUICK])

        def fail(*_: Any) -> FakeProcess:
            raise EngineDied("no memory")

        with monkeypatch.context() as broken:
            broken.setattr(connection, "ServerProcess", fail)
            with suppress(EngineDied):
                engine.load_weights(changed(model, NAME))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(model, processes[1].server)
        assert processes[1].server.version != CHECKPOINT


def test_weights_loaded_as_the_server_dies_reach_the_next(model, processes):
    with make_engine(model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied, match="has died"):
            engine.load_weights(changed(model, NAME))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(model, processes[1].server)


@pytest.mark.parametrize("name", [None, "compressor.weight"])
def test_no_weights_for_the_server_leave_its_version(model, server, name):
    with make_engine(model, url=server.url) as engine:
        engine.load_weights({} if name is None else changed(model, name))
        assert server.count("/flush_cache") == 1, "cached rows are forgotten all the same"
        assert server.count("/update_weights_from_tensor") == 0 and server.version == CHECKPOINT
        assert engine.generate([QUICK])[0].answer == 0
        with pytest.raises(ValueError, match="no parameter 'nothing'"):
            engine.load_weights({"nothing": torch.zeros(1)})


def test_all_calls_are_told_why_the_server_was_left(model, server):
    with make_engine(model, url=server.url) as engine:
        server.computes.clear()
        first = engine.submit(reasoning(9))
        until(lambda: server.count("/generate") == 1)
        server.version = "somebody's"
        second = engine.submit(QUICK)
        until(lambda: server.count("/generate") == 2)
        server.computes.set()
        for one in (first, second):
            with pytest.raises(EngineDied, match="somebody else loaded others"):
                one.result(timeout=5)


def test_weights_loaded_on_top_of_somebody_elses_are_sent_whole(model, server):
    with make_engine(model, url=server.url) as engine:
        server.weights["head.weight"] = server.weights["head.weight"] + 1
        server.version = "somebody's"
        engine.load_weights(changed(model, NAME))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(model, server)


def test_a_server_at_a_url_with_other_weights_is_refused(model, server):
    with make_engine(model, url=server.url) as engine:
        server.weights[NAME] = server.weights[NAME] + 0.01  # somebody loads others
        server.version = "somebody's"
        with pytest.raises(EngineDied, match="somebody else loaded others"):
            engine.generate([QUICK])
        with pytest.raises(EngineDied, match=f"other weights than the model here .{NAME} differs"):
            engine.generate([QUICK])
        with pytest.raises(EngineDied, match="other weights"):
            make_engine(model, url=server.url)
        engine.load_weights(changed(model, "head.weight"))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(model, server)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_weights_are_not_others(model, server, dtype):
    server.weights = {name: value.to(dtype) for name, value in server.weights.items()}
    with make_engine(model, url=server.url) as engine:
        assert engine.generate([QUICK])[0].answer == 0
    model.to(torch.bfloat16)
    with make_engine(model, url=server.url) as engine:
        assert engine.generate([QUICK])[0].answer == 0


def test_a_server_for_a_model_of_another_shape_is_refused(model, server):
    server.weights[NAME] = torch.zeros(2)
    with pytest.raises(EngineDied, match="other weights"):
        make_engine(model, url=server.url)
    del server.weights[NAME]
    server.answer = lambda path, body, usual=server.answer: (
        (400, {"error": {"message": "failed"}}) if "by_name" in path else usual(path, body)
    )
    with pytest.raises(EngineDied, match=r"cannot say which weights it has \(failed\)"):
        make_engine(model, url=server.url)


def test_a_server_that_we_start_gets_the_weights_of_the_model(model, processes):
    """The checkpoint was changed since, or the model was."""
    dict(model.named_parameters())[NAME].data += 1
    with make_engine(model) as engine:
        same_weights(model, processes[0].server)
        assert engine.generate([QUICK])[0].answer == 0


# Length.


def test_reasoning_is_limited_to_what_the_server_takes(model):
    server = FakeServer(model, context=50)
    with make_engine(model, url=server.url) as engine:
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


# The process.


@pytest.fixture
def script(tmp_path, monkeypatch) -> Callable[[str], Path]:
    monkeypatch.setattr(process, "SECONDS_TO_END", 0.2)

    def write(text: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def test_the_log_that_an_error_names_is_kept(model, script):
    python = script("echo loading >&2; cat > /dev/null")
    with pytest.raises(EngineDied, match=r"no answer within start_seconds=0") as info:
        make_engine(model, python=python, start_seconds=0.3)
    log = next(Path(word.rstrip(":")) for word in str(info.value).split() if "retrv-sglang" in word)
    assert log.read_text() == "loading\n"
    log.unlink()


def test_workers_end_with_their_server_and_its_log_goes(script):
    python = script("sleep 60 & echo $! >&2; wait")
    started = process.ServerProcess("checkpoint", "float32", {}, python)
    until(lambda: started.log.read_text().endswith("\n"))
    worker = int(started.log.read_text())
    started.end()
    until(lambda: not runs(worker))
    assert not started.log.exists()


def runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
