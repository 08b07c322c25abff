"""What is said to a SGLang server, over HTTP."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from torch import Tensor

from retrv_engine.base import EngineDied

BUCKET_BYTES = 256 * 2**20
CONNECT_SECONDS = 10.0


class Client:
    """A server at a url.

    Every method raises :class:`EngineDied` when the server does not answer, for ``silent`` seconds
    or at all, and ValueError with the server's words when it refuses.
    """

    def __init__(self, url: str, silent: float) -> None:
        self.url = url
        timeout = httpx.Timeout(silent, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits)

    async def generate(self, asked: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """What comes of a request, as it comes: each part holds what is new."""
        with self._heard():
            async with self._http.stream(
                "POST", "/generate", json={**asked, "stream": True}
            ) as answer:
                if answer.is_error:
                    raise ValueError(_refusal(await answer.aread()))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    part = json.loads(line.removeprefix("data: "))
                    if "error" in part:
                        raise ValueError(part["error"]["message"])
                    yield part

    async def abort(self, name: str) -> None:
        """Ends a request that was given this name."""
        await self._post("/abort_request", json={"rid": name})

    async def info(self) -> dict[str, Any]:
        """The server's arguments and state."""
        with self._heard():
            answer = await self._http.get("/server_info")
        return answer.json()

    async def weight_version(self) -> str:
        """Of the weights that it serves."""
        with self._heard():
            answer = await self._http.get("/model_info")
        return str(answer.json()["weight_version"])

    async def healthy(self) -> bool:
        """Whether it answers already."""
        try:
            return (await self._http.get("/health", timeout=CONNECT_SECONDS)).is_success
        except httpx.TransportError:
            return False

    async def flush(self) -> None:
        """Forgets all cached rows; nothing may be running."""
        await self._post("/flush_cache", params={"timeout": CONNECT_SECONDS})

    async def load_weights(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Puts new values into its parameters, forgets cached rows; nothing may be running."""
        buckets = list(_buckets(weights))
        for number, bucket in enumerate(buckets, 1):
            # By value, not by a handle to shared memory: the server may be anywhere.
            data = base64.b64encode(pickle.dumps(bucket)).decode()
            last = number == len(buckets)
            await self._post(
                "/update_weights_from_tensor",
                json={
                    "serialized_named_tensors": [data],
                    "flush_cache": last,
                    "weight_version": version if last else None,
                },
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def _post(self, path: str, **what: Any) -> None:
        with self._heard():
            answer = await self._http.post(path, **what)
        if answer.is_error:
            raise ValueError(_refusal(answer.content))

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise EngineDied(f"no answer from {self.url} ({type(error).__name__})") from error


def _refusal(content: bytes) -> str:
    """A server's words for what it does not want."""
    try:
        values = json.loads(content)
        error = values.get("error", values)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except ValueError:
        return content.decode("utf-8", "replace").strip()


def _buckets(weights: Mapping[str, Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
    """Tensors in parts of bounded size."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, value in weights.items():
        bucket.append((name, value.detach().cpu().contiguous().clone()))
        size += value.nbytes
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
