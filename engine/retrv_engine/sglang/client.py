"""HTTP client for an SGLang server."""

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
    """HTTP client for the server at a URL.

    Every method raises :class:`EngineDied` if the server does not answer or is silent for
    ``silent_seconds``, and ValueError with the server's message if it refuses.
    """

    def __init__(self, url: str, silent_seconds: float) -> None:
        self.url = url
        timeout = httpx.Timeout(silent_seconds, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits)

    async def generate(self, call: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Streams the answer to a call; each part holds only what is new."""
        with self._transport_errors():
            async with self._http.stream(
                "POST", "/generate", json={**call, "stream": True}
            ) as answer:
                if answer.is_error:
                    raise ValueError(_error_message(await answer.aread()))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    part = json.loads(line.removeprefix("data: "))
                    if "error" in part:
                        raise ValueError(part["error"]["message"])
                    yield part

    async def abort(self, rid: str) -> None:
        """Aborts the call with this ``rid``."""
        await self._request("POST", "/abort_request", json={"rid": rid})

    async def info(self) -> dict[str, Any]:
        """The server's arguments and state."""
        return (await self._request("GET", "/server_info")).json()

    async def weight_version(self) -> str:
        """Version of the weights that it serves."""
        return str((await self._request("GET", "/model_info")).json()["weight_version"])

    async def healthy(self) -> bool:
        """Whether it answers."""
        try:
            return (await self._http.get("/health", timeout=CONNECT_SECONDS)).is_success
        except httpx.TransportError:
            return False

    async def flush(self) -> None:
        """Forgets all cached rows; no request may be running."""
        await self._request("POST", "/flush_cache", params={"timeout": CONNECT_SECONDS})

    async def load_weights(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Sets the server's parameters and forgets cached rows; no request may be running."""
        buckets = list(_buckets(weights))
        for number, bucket in enumerate(buckets, 1):
            # By value, not by a handle to shared memory: the server may be on another machine.
            data = base64.b64encode(pickle.dumps(bucket)).decode()
            last = number == len(buckets)
            await self._request(
                "POST",
                "/update_weights_from_tensor",
                json={
                    "serialized_named_tensors": [data],
                    "flush_cache": last,
                    "weight_version": version if last else None,
                },
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._transport_errors():
            answer = await self._http.request(method, path, **content)
        if answer.is_error:
            raise ValueError(_error_message(answer.content))
        return answer

    @contextmanager
    def _transport_errors(self) -> Iterator[None]:
        """Turns errors of the connection into :class:`EngineDied`."""
        try:
            yield
        except httpx.TransportError as error:
            raise EngineDied(
                f"no answer from {self.url} ({type(error).__name__}): check that the server runs, "
                "or raise silent_seconds"
            ) from error


def _error_message(content: bytes) -> str:
    """The server's message in a response that reports an error."""
    try:
        values = json.loads(content)
        error = values.get("error", values)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except ValueError:
        return content.decode("utf-8", "replace").strip()


def _buckets(weights: Mapping[str, Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
    """Splits tensors into lists of about ``BUCKET_BYTES``."""
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
