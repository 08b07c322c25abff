"""The server as uvicorn runs it: sockets that are bound first, and answers at the end."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import httpx
import pytest
import uvicorn
from serve_app import ServiceDouble, events_of
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.serve.app import create_app
from retrv_r1.serve.calls import NotReady
from retrv_r1.serve.listening import listening
from retrv_r1.serve.running import Server
from retrv_r1.types import RetrvError

ASK = {"query": "apple", "documents": ["pear", "red apple"]}


class Stubborn(ServiceDouble):
    """Its calls last until it gives up, or for ever."""

    def __init__(self, ends: bool) -> None:
        super().__init__(pause=self._wait)
        self.begun, self._over, self._ends = asyncio.Event(), asyncio.Event(), ends

    async def _wait(self) -> None:
        self.begun.set()
        await self._over.wait()
        raise NotReady("the service is shutting down")

    def give_up(self) -> None:
        if self._ends:
            self._over.set()


def answer_at_the_end(body: dict[str, Any], *, ends: bool) -> httpx.Response:
    """The answer to a request that is in work when the server is told to end."""

    async def run() -> httpx.Response:
        service = Stubborn(ends)
        with listening("127.0.0.1", 0) as sockets:
            config = uvicorn.Config(
                create_app(service),
                log_config=None,
                timeout_graceful_shutdown=1,
            )
            server = Server(config, 0.1, service.give_up)
            serving = asyncio.create_task(server.serve(sockets))
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1/rerank"
            async with httpx.AsyncClient(timeout=20) as client:
                asking = asyncio.create_task(client.post(url, json=body))
                await service.begun.wait()
                server.should_exit = True
                answer = await asking
            await serving
            return answer

    return asyncio.run(run())


def test_a_stream_that_is_not_done_at_the_end_is_told_so(caplog):
    with caplog.at_level(logging.INFO):
        answer = answer_at_the_end({**ASK, "stream": True}, ends=True)
    name, error = events_of(answer.text)[-1]
    assert (name, error["error"]["code"]) == ("error", "not_ready")
    (line,) = [one for one in caplog.records if one.message == "request"]
    assert line.__dict__["request"]["status"] == 503
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_a_request_that_uvicorn_cancels_is_answered(caplog):
    answer = answer_at_the_end(ASK, ends=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["Retry-After"] and not [one for one in caplog.records if one.exc_info]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("retrv_r1.command.serve._config", lambda *_: pytest.fail("it loads"))
        result = CliRunner().invoke(app, ["serve", "--port", str(port)])
    said = f"error: port {port} of 127.0.0.1 is in use; choose another with --port\n"
    assert (result.exit_code, result.output) == (2, said)


@pytest.mark.parametrize(
    ("host", "part"),
    [("no-such-host.invalid", "there is no address of the host"), ("192.0.2.1", "--host")],
)
def test_a_host_that_is_not_this_machine_is_told(host, part):
    with pytest.raises(RetrvError, match=part), listening(host, 0):
        pass


def test_a_connection_waits_while_the_model_is_loaded():
    with listening("localhost", 0) as sockets:
        ports = {one.getsockname()[1] for one in sockets}
        assert len(ports) == 1, "one port at all addresses"
        socket.create_connection(sockets[0].getsockname()[:2], timeout=5).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", *ports), timeout=5)
