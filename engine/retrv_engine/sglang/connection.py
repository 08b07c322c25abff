"""The engine's connection to its one server.

    idle      There is no server. The next call starts one, or connects to the one at the url.
    starting  A task starts a server and gives it the model's weights. Calls wait for it.
    ready     The server answers and has the model's weights.
    dying     A call has failed. A task ends the server that was started here.
    closed    Nothing starts any more.

    idle → starting → ready → dying → idle, and from everywhere to closed

If a server does not start, the calls that wait get the error, the connection is idle again, and the
next call tries anew. A start waits until the server before it has ended. The tasks belong to no
call: a deadline or a cancelled request ends its own waiting, and nothing else.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from retrv_engine.base import EngineDied, RequestTooLarge
from retrv_engine.config import SGLangConfig
from retrv_engine.model import LanguageModel, load_weights
from retrv_engine.sglang.calls import Chunk
from retrv_engine.sglang.client import Client, NoAnswer
from retrv_engine.sglang.concurrency import CLOSED, SharedLock
from retrv_engine.sglang.process import ServerProcess
from retrv_engine.sglang.weights import differing_name, parameters_of

SECONDS_TO_DIE = 10.0
"""How long a server may take to end after a worker has failed; SGLang itself waits 5 s of it."""
SECONDS_TO_ABORT = 5.0


@dataclass(eq=False)
class Server:
    """A server that is ready.

    Attributes:
        version: version of its weights.
        ending: task that ends it, once a call has failed; gives the error's message.
    """

    client: Client
    version: str
    ending: asyncio.Task[str] | None = None


class Connection:
    """A connection to one server that answers and has the model's weights.

    Args:
        model: model of which the server runs a copy.
        checkpoint: folder of a checkpoint or its id on a hub, to start a server on.
    Attributes:
        max_rows: rows of a prompt that the last server takes.
        starts: number of servers that got ready.
    """

    def __init__(
        self, config: SGLangConfig, checkpoint: str | Path | None, model: LanguageModel
    ) -> None:
        if config.url is None and checkpoint is None:
            raise ValueError(
                "name the checkpoint to start a server on, or the url of a running server"
            )
        self.config, self.checkpoint, self.model = config, checkpoint, model
        self.max_rows = self.starts = 0
        self._server: asyncio.Task[Server] | None = None  # starting, then ready; else None
        self._ending: asyncio.Task[str] | None = None  # of the last server that died
        self._client: Client | None = None  # of the server that starts, is ready or dies
        self._process: ServerProcess | None = None  # likewise, if it was started here
        self._aborts: set[asyncio.Task[None]] = set()
        self._loaded_version: str | None = None  # of weights loaded here; None: the checkpoint's
        self._lock = SharedLock()  # calls hold it together, a change of the weights alone
        self._closed = False

    async def connect(self) -> Server:
        """The server, once it is ready."""
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._server is None:
            self._server = asyncio.create_task(self._start())
        return await asyncio.shield(self._server)

    def check_size(self, rows: int) -> None:
        """Raises :class:`RequestTooLarge` if ``rows`` and one token do not fit."""
        if rows > self.max_rows:
            raise RequestTooLarge(
                f"{rows} rows, but the server takes {self.max_rows}: give it a larger "
                "context_length, and max_total_tokens if need be"
            )

    async def generate(self, call: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Streams the answer to a call; closing the generator early aborts the call."""
        async with self._lock.shared():
            server = await self.connect()
            rid, runs = uuid.uuid4().hex, True
            try:
                async with (
                    self._reporting(server),
                    aclosing(server.client.generate({**call, "rid": rid})) as answers,
                ):
                    async for values in answers:
                        chunk = Chunk.from_answer(values)
                        self._check_version(server, chunk.version)
                        yield chunk
                runs = False
            finally:
                if runs and server.ending is None:
                    self._abort(server, rid)

    async def flush(self) -> None:
        """Forgets all cached rows, after running calls have ended."""
        async with self._alone():
            server = await self.connect()
            async with self._reporting(server):
                await server.client.flush()

    async def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the parameters of the model and of the server, after running calls have ended.

        Raises:
            ValueError: the model has no parameter of a name or shape, or a value is no tensor;
                nothing is changed then.
            EngineDied: the server did not take them. The next one gets them when it starts.
        After any other error the model may be changed in part, and the next server gets all of it.
        """
        async with self._alone():
            server = await self._settled()  # a start reads the model
            try:
                await asyncio.to_thread(load_weights, self.model, weights)
            except ValueError:
                raise
            except Exception:  # in the midst of it
                self._loaded_version = uuid.uuid4().hex
                self._server = None
                await self._end()
                raise
            served = {name: weights[name] for name in parameters_of(self.model) if name in weights}
            if served:  # whatever happens from here on, no server has these yet
                self._loaded_version = uuid.uuid4().hex
            if server is None:
                return
            async with self._reporting(server):
                if served:
                    known = (await server.client.info()).version == server.version
                    await self._send(server, served if known else parameters_of(self.model))
                else:
                    await server.client.flush()

    async def close(self) -> None:
        """Disconnects, and ends a server that was started here."""
        self._closed = True
        if self._server is not None:
            self._server.cancel()
        if self._process is not None:
            # In this thread: an interpreter that shuts down starts no others.
            self._process.end()
        elif self._aborts:
            await asyncio.wait(self._aborts)
        if self._client is not None:
            await self._client.close()

    # The life of a server.

    async def _start(self) -> Server:
        """Connects to the server at the url, or to one that is started here."""
        try:
            if self._ending is not None:
                await asyncio.wait({self._ending})
            if (url := self.config.url) is None:
                assert self.checkpoint is not None
                dtype = next(iter(self.model.named_parameters()))[1].dtype
                self._process = ServerProcess(
                    self.checkpoint,
                    str(dtype).removeprefix("torch."),
                    self.config.arguments,
                    self.config.python,
                )
                url = self._process.url
            self._client = Client(url, self.config.silent_seconds)
            await self._wait_until_it_answers(self._client)
            info = await self._client.info()
            if self._process is not None and info.version != self._process.version:
                raise EngineDied(
                    f"another server has taken the port of {url}: the next request starts another"
                )
            self.max_rows = info.max_rows
            server = Server(self._client, info.version)
            await self._give_weights(server)
            self.starts += 1
            return server
        except Exception:
            await self._end()
            self._server = None
            raise

    async def _wait_until_it_answers(self, client: Client) -> None:
        end = time.monotonic() + self.config.start_seconds
        while not await client.answers():
            if self._process is None:
                raise EngineDied(
                    f"no server answers at {client.url}: start one there, or correct the url"
                )
            if self._process.ended:
                raise EngineDied(f"the server did not start, {self._process.exit_report()}")
            if time.monotonic() > end:
                raise EngineDied(
                    f"no answer within start_seconds={self.config.start_seconds:.0f}: raise it if "
                    f"the log shows progress; {self._process.exit_report()}"
                )
            await asyncio.sleep(0.2)

    async def _give_weights(self, server: Server) -> None:
        """Sends the model's weights to a server that has others.

        Raises:
            EngineDied: the server at the url has others, and none were loaded here, so that it may
                be in use with them.
        """
        if self._loaded_version is None:
            name = await differing_name(server.client, self.model)
            if name is None:
                return
            if self.config.url is not None:
                raise EngineDied(
                    f"the server at {self.config.url} has other weights than the model here "
                    f"({name} differs): start it on this model's checkpoint, or load its checkpoint"
                )
            self._loaded_version = uuid.uuid4().hex
        if server.version != self._loaded_version:
            await self._send(server, parameters_of(self.model))

    async def _send(self, server: Server, weights: Mapping[str, Tensor]) -> None:
        """Sends weights as those of ``_loaded_version``."""
        assert self._loaded_version is not None
        try:
            await server.client.load_weights(weights, self._loaded_version)
        except Exception as error:  # of any kind: the server may have some of the values
            raise EngineDied(
                f"the server did not take the new weights: {error}; the next request connects "
                "again and loads them"
            ) from error
        server.version = self._loaded_version

    @asynccontextmanager
    async def _reporting(self, server: Server) -> AsyncIterator[None]:
        """Ends the server after an :class:`EngineDied`; all its calls raise the first one's."""
        try:
            yield
        except EngineDied as error:
            if server.ending is None:
                server.ending = self._ending = asyncio.create_task(self._bury(error))
                self._server = None
            raise EngineDied(await asyncio.shield(server.ending)) from error

    async def _bury(self, error: EngineDied) -> str:
        """Ends the server; returns what to tell all its calls."""
        message, process = str(error), self._process
        # A server that answered is not about to end by itself.
        silent = isinstance(error, NoAnswer) or isinstance(error.__cause__, NoAnswer)
        seconds = SECONDS_TO_DIE if silent else 0.0
        if process is not None and await asyncio.to_thread(process.wait, seconds):
            report = process.exit_report()
            message = f"the server has died, {report}\nThe next request starts another"
        await self._end()
        return message

    async def _end(self) -> None:
        """Disconnects, and ends the process that was started here."""
        if self._client is not None:
            await self._client.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.end)
        self._client = self._process = None

    # Calls.

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Waits until all calls have ended, at the server too, and keeps others waiting."""
        async with self._lock.exclusive():
            if self._aborts:
                await asyncio.wait(self._aborts)
            yield

    async def _settled(self) -> Server | None:
        """The server if it is ready or gets ready; None if there is none."""
        if self._server is None:
            return None
        with suppress(Exception):  # the calls that wait for it are told
            return await asyncio.shield(self._server)
        return None

    def _abort(self, server: Server, rid: str) -> None:
        """Aborts a call. Nobody waits: whether the server still answers, the next call finds."""

        async def abort() -> None:
            with suppress(EngineDied, ValueError, TimeoutError):
                async with asyncio.timeout(SECONDS_TO_ABORT):
                    await server.client.abort(rid)

        task = asyncio.create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    def _check_version(self, server: Server, version: str) -> None:
        if version != server.version:
            raise EngineDied(
                f"{self.config.url or 'the server'} answers with weights {version!r}, not "
                f"{server.version!r}: it was restarted, or somebody else loaded others; "
                "send the request again"
            )
