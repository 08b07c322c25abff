"""The server that an engine uses: started when it is needed, and again when it has died."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from retrv_engine.base import EngineDied, RequestTooLarge
from retrv_engine.config import SGLangConfig
from retrv_engine.sglang.client import Client
from retrv_engine.sglang.process import ServerProcess
from retrv_engine.sglang.turns import Part

SECONDS_TO_DIE = 10.0
"""A server whose worker has failed ends itself within: SGLang waits five of them."""


class Parameters(Protocol):
    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


class Link:
    """One server, alive as far as anybody can tell, with the weights that it should have."""

    def __init__(
        self, config: SGLangConfig, checkpoint: str | Path | None, model: Parameters
    ) -> None:
        if config.url is None and checkpoint is None:
            raise ValueError("name the checkpoint that a server is started on, or a server's url")
        self.config, self.checkpoint, self.model = config, checkpoint, model
        self._longest = 0  # prompt that it takes
        self._process: ServerProcess | None = None
        self._client: Client | None = None
        self._version: str | None = (
            None  # of weights that were loaded here; None for a checkpoint's
        )
        self._served = ""
        self._starting = asyncio.Lock()

    async def ready(self) -> Client:
        """A client of a server that answers and has the right weights."""
        async with self._starting:
            if self._client is None:
                try:
                    self._client = await self._connect()
                except BaseException:
                    await self._drop()
                    raise
            return self._client

    def check_size(self, rows: int) -> None:
        """Raises :class:`RequestTooLarge` where so many rows and a token do not fit."""
        if rows > self._longest:
            raise RequestTooLarge(
                f"{rows} rows, but the server takes {self._longest}: give it a larger "
                "context_length, and max_total_tokens if need be"
            )

    async def generate(self, asked: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        """Parts of an answer; whoever stops listening has the request aborted."""
        client = await self.ready()
        done = False
        try:
            async with aclosing(client.generate(asked)) as answers:
                async for values in answers:
                    part = Part.of(values)
                    if part.version != self._served:
                        raise EngineDied(
                            f"{client.url} answers with weights {part.version!r}, not "
                            f"{self._served!r}: it was started anew, or somebody else loaded others"
                        )
                    yield part
            done = True
        except EngineDied as error:
            done = True
            raise await self._buried(client, error) from error
        finally:
            if not done and client is self._client:
                await asyncio.shield(client.abort(asked["rid"]))

    async def flush(self) -> None:
        """Forgets all cached rows; nothing may be running."""
        client = await self.ready()
        try:
            await client.flush()
        except EngineDied as error:
            raise await self._buried(client, error) from error

    async def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts values into the server's parameters; the model here has them already."""
        client = await self.ready()
        self._version = uuid.uuid4().hex  # from now on a server that is started gets the model's
        try:
            await client.load_weights(weights, self._version)
        except (EngineDied, ValueError) as error:
            died = EngineDied(f"new weights were not taken: {error}")
            raise await self._buried(client, died) from error
        self._served = self._version

    async def close(self) -> None:
        """Ends a server that was started here; in this thread, since others may be gone."""
        process, self._process = self._process, None
        await self._drop()
        if process is not None:
            process.end()

    async def _connect(self) -> Client:
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
            await self._answering(client)
            info = await client.info()
            limits = int(info["max_req_input_len"]), int(info["max_total_num_tokens"])
            self._longest = min(limits) - 1
            if self._version is not None:
                parameters = {name: one.data for name, one in self.model.named_parameters()}
                await client.load_weights(parameters, self._version)
            self._served = self._version or await client.weight_version()
        except BaseException:
            await client.close()
            raise
        return client

    async def _answering(self, client: Client) -> None:
        """Waits for a server that starts."""
        end = time.monotonic() + self.config.start_seconds
        while not await client.healthy():
            if self._process is None:
                raise EngineDied(f"no server answers at {client.url}")
            if self._process.ended:
                raise EngineDied(f"the server did not start, {self._process.obituary()}")
            if time.monotonic() > end:
                seconds = self.config.start_seconds
                raise EngineDied(f"no answer in {seconds:.0f} s, {self._process.obituary()}")
            await asyncio.sleep(0.2)

    async def _buried(self, client: Client, error: EngineDied) -> EngineDied:
        """The error with what is known of the server's end; the next request starts another."""
        if client is not self._client:  # somebody else has seen to it
            return error
        process, self._process, self._client = self._process, None, None
        await client.close()
        if process is not None:
            end = time.monotonic() + SECONDS_TO_DIE
            while not process.ended and time.monotonic() < end:
                await asyncio.sleep(0.05)
            if process.ended:
                error = EngineDied(f"the server has died, {process.obituary()}")
            await asyncio.to_thread(process.end)
        return error

    async def _drop(self) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        if client is not None:
            await client.close()
        if process is not None:
            await asyncio.to_thread(process.end)
