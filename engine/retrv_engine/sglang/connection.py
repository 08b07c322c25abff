"""The engine's connection to its server, which is started when needed and after it has died."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from torch import Tensor

from retrv_engine.base import EngineDied, RequestTooLarge
from retrv_engine.config import SGLangConfig
from retrv_engine.model import Parameters
from retrv_engine.sglang.calls import Chunk
from retrv_engine.sglang.client import Client
from retrv_engine.sglang.concurrency import SharedLock
from retrv_engine.sglang.process import ServerProcess

SECONDS_TO_DIE = 10.0
"""How long a server may take to end after a worker has failed; SGLang itself waits 5 s of it."""


class Connection:
    """A connection to one server that answers and has the expected weights."""

    def __init__(
        self, config: SGLangConfig, checkpoint: str | Path | None, model: Parameters
    ) -> None:
        if config.url is None and checkpoint is None:
            raise ValueError(
                "name the checkpoint to start a server on, or the url of a running server"
            )
        self.config, self.checkpoint, self.model = config, checkpoint, model
        self._max_prompt_rows = 0
        self._process: ServerProcess | None = None
        self._client: Client | None = None
        self._loaded_version: str | None = None  # of weights loaded here; None: the server's own
        self._expected_version = ""
        self._connecting = asyncio.Lock()
        self._lock = SharedLock()  # calls hold it together, a change of the weights alone

    async def connect(self) -> Client:
        """A client of a server that answers and has the expected weights."""
        async with self._connecting:
            if self._client is None:
                try:
                    self._client = await self._open()
                except BaseException:
                    await self._disconnect()
                    raise
            return self._client

    def check_size(self, rows: int) -> None:
        """Raises :class:`RequestTooLarge` if ``rows`` and one token do not fit."""
        if rows > self._max_prompt_rows:
            raise RequestTooLarge(
                f"{rows} rows, but the server takes {self._max_prompt_rows}: give it a larger "
                "context_length, and max_total_tokens if need be"
            )

    async def generate(self, call: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        """Streams the answer to a call; closing the generator early aborts the call."""
        async with self._lock.shared():
            client = await self.connect()
            rid, done = uuid.uuid4().hex, False
            try:
                async with aclosing(client.generate({**call, "rid": rid})) as answers:
                    async for values in answers:
                        chunk = Chunk.from_answer(values)
                        self._check_version(chunk.version)
                        yield chunk
                done = True
            except EngineDied as error:
                done = True
                raise await self._fail(client, error) from error
            finally:
                if not done and client is self._client:
                    await asyncio.shield(client.abort(rid))

    async def flush(self) -> None:
        """Forgets all cached rows, after running calls have ended."""
        async with self._lock.exclusive():
            client = await self.connect()
            try:
                await client.flush()
            except EngineDied as error:
                raise await self._fail(client, error) from error

    async def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the server's parameters, after running calls have ended.

        The model in our process has the new values already: a new server gets them from it.
        """
        async with self._lock.exclusive():
            client = await self.connect()
            self._loaded_version = uuid.uuid4().hex
            try:
                await client.load_weights(weights, self._loaded_version)
            except (EngineDied, ValueError) as error:
                failure = EngineDied(
                    f"the server did not take the new weights: {error}; the next request connects "
                    "again and loads them"
                )
                raise await self._fail(client, failure) from error
            self._expected_version = self._loaded_version

    async def close(self) -> None:
        """Disconnects, and ends a server that was started here."""
        # In this thread: an interpreter that shuts down starts no others.
        process, self._process = self._process, None
        await self._disconnect()
        if process is not None:
            process.end()

    async def _open(self) -> Client:
        """Connects to the server at the url, or to one that is started here."""
        url = self.config.url
        if url is None:
            assert self.checkpoint is not None
            dtype = str(next(iter(self.model.named_parameters()))[1].dtype).removeprefix("torch.")
            self._process = ServerProcess(
                self.checkpoint, dtype, self.config.arguments, self.config.python
            )
            url = self._process.url
        client = Client(url, self.config.silent_seconds)
        try:
            await self._wait_until_healthy(client)
            info = await client.info()
            limits = int(info["max_req_input_len"]), int(info["max_total_num_tokens"])
            self._max_prompt_rows = min(limits) - 1
            if self._loaded_version is not None:
                parameters = {name: one.data for name, one in self.model.named_parameters()}
                await client.load_weights(parameters, self._loaded_version)
            self._expected_version = self._loaded_version or await client.weight_version()
        except BaseException:
            await client.close()
            raise
        return client

    async def _wait_until_healthy(self, client: Client) -> None:
        end = time.monotonic() + self.config.start_seconds
        while not await client.healthy():
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

    def _check_version(self, version: str) -> None:
        if version != self._expected_version:
            raise EngineDied(
                f"{self.config.url or 'the server'} answers with weights {version!r}, not "
                f"{self._expected_version!r}: it was restarted, or somebody else loaded others; "
                "send the request again"
            )

    async def _fail(self, client: Client, error: EngineDied) -> EngineDied:
        """Disconnects after an error, so that the next request connects again.

        Returns:
            The error to raise; if the server's process has ended, with its exit report.
        """
        if client is not self._client:  # another request has disconnected it
            return error
        process, self._process, self._client = self._process, None, None
        await client.close()
        if process is not None:
            end = time.monotonic() + SECONDS_TO_DIE
            while not process.ended and time.monotonic() < end:
                await asyncio.sleep(0.05)
            if process.ended:
                report = process.exit_report()
                error = EngineDied(
                    f"the server has died, {report}\nThe next request starts another"
                )
            await asyncio.to_thread(process.end)
        return error

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        if client is not None:
            await client.close()
        if process is not None:
            await asyncio.to_thread(process.end)
