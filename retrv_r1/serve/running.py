"""Runs the application as a server until a signal ends it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import math
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from retrv_r1.rerank.reranker import Reranker
from retrv_r1.serve.admission import Load
from retrv_r1.serve.app import create_app
from retrv_r1.serve.connections import limited
from retrv_r1.serve.logs import log_config
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import Settings

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than reverse proxies keep theirs, so that
none is closed under a request that a proxy has just sent."""

LAST_ANSWERS = 5.0
"""Seconds in which requests that were cancelled at the end of draining are answered."""


class Server(uvicorn.Server):
    """Ends with status 0 after a signal, and lets requests that it cancels answer.

    Uvicorn's own sends itself the signal again, and cancels the tasks that would answer.

    Args:
        drain: seconds that requests have after the signal.
        give_up: cancels those that are not done then.
    """

    def __init__(self, config: uvicorn.Config, drain: float, give_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain, self._give_up = drain, give_up

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals in the event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends connections, and the application."""
        timer = asyncio.get_running_loop().call_later(self._drain, self._give_up)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def run(
    make: Callable[[], Reranker],
    settings: Settings,
    policy: PicturePolicy,
    load: Load,
    sockets: list[socket.socket],
    *,
    level: str,
    ready: Callable[[], None],
) -> None:
    """Serves until a signal; raises what kept the model from being loaded.

    Args:
        make: loads the model.
        sockets: where is listened.
        level: level of the log, in capitals.
        ready: called when requests are answered.
    """
    failed: list[BaseException] = []

    def started(error: BaseException | None) -> None:
        if error is None:
            ready()
            return
        failed.append(error)
        server.should_exit = True

    service = RerankService(make, load)
    config = uvicorn.Config(
        create_app(service, settings, policy=policy, on_start=started),
        http=limited(settings.limits),
        loop="asyncio",
        ws="none",
        log_config=log_config(level),
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.drain + LAST_ANSWERS),
    )
    server = Server(config, settings.drain, service.give_up)
    # The last collection of the interpreter would look at all objects of torch, for seconds.
    atexit.register(gc.freeze)
    asyncio.run(server.serve(sockets))
    if failed:
        raise failed[0]
