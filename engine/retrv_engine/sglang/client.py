"""HTTP client for an SGLang server."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from torch import Tensor

from retrv_engine.base import EngineDied
from retrv_engine.sglang.calls import HOW_TO_SERVE
from retrv_engine.sglang.wire_format import SAMPLES

T = TypeVar("T")
BUCKET_BYTES = 256 * 2**20
JSON_HEADERS = {"Content-Type": "application/json"}
SIGN_SECONDS = 10.0
"""How long a server may take to accept a connection, or to say that it lives."""
IDLE_SECONDS = 2.0
"""How long an unused connection is kept. The server closes it after 5 seconds; a request that goes
out at that moment would get no answer."""


class NoAnswer(EngineDied):
    """The server cannot be reached, gives no sign of life, or broke off its answer."""


@dataclass(frozen=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        max_rows: number of rows that a prompt may have.
        version: version of its weights.
    """

    max_rows: int
    version: str


class Client:
    """HTTP client for the server at a URL.

    A server may take its time: it queues requests, and computes. After each ``silent_seconds``
    without an answer it is asked for a sign of life, which its front end gives even then.

    Every method raises :class:`NoAnswer` if the server cannot be reached or gives no sign of
    life, and ValueError with the server's message if it refuses.
    """

    def __init__(self, url: str, silent_seconds: float) -> None:
        self.url = url
        self._silent_seconds = silent_seconds
        timeout = httpx.Timeout(None, connect=SIGN_SECONDS)
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=IDLE_SECONDS
        )
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits)

    async def generate(self, call: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Streams the answer to a call; each part holds only what is new."""
        async with AsyncExitStack() as stack:  # closes the answer, whoever is cancelled when
            content = await asyncio.to_thread(_call_message, {**call, "stream": True})
            asked = self._http.stream("POST", "/generate", content=content, headers=JSON_HEADERS)
            answer = await self._patiently(stack.enter_async_context(asked))
            if not answer.is_success:
                raise ValueError(_error_message(await self._patiently(answer.aread())))
            lines, empty = answer.aiter_lines(), True
            while (line := await self._patiently(_next(lines))) is not None:
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                part = json.loads(line.removeprefix("data: "))
                if "error" in part:
                    raise ValueError(part["error"]["message"])
                empty = False
                yield part
            if empty:
                raise NoAnswer(f"{self.url} ended its answer to a call without a part of it")

    async def abort(self, rid: str) -> None:
        """Aborts the call with this ``rid``."""
        await self._request("POST", "/abort_request", json={"rid": rid})

    async def answers(self) -> bool:
        """Whether anything answers at the URL."""
        try:
            await self._http.get("/model_info", timeout=SIGN_SECONDS)
        except httpx.TransportError:
            return False
        return True

    async def info(self) -> ServerInfo:
        """What the server says of itself.

        Raises:
            EngineDied: it is no SGLang server, or not one for our checkpoints.
        """
        try:
            model = (await self._request("GET", "/model_info")).json()
            server = (await self._request("GET", "/server_info")).json()
            limits = int(server["max_req_input_len"]), int(server["max_total_num_tokens"])
            return ServerInfo(min(limits) - 1, str(model["weight_version"]))
        except (ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            raise EngineDied(
                f"{self.url} is no SGLang server for our checkpoints ({what}): correct the url, or "
                + HOW_TO_SERVE
            ) from error

    async def samples(self, names: Sequence[str]) -> list[list[list[float]]]:
        """A few values of each named parameter, as each replica of the server has them."""
        asked = {"name": "\n".join(names), "truncate_size": SAMPLES}
        found = (await self._request("POST", "/get_weights_by_name", json=asked)).json()
        return found if isinstance(found[0][0], list) else [found]

    async def flush(self) -> None:
        """Forgets all cached rows; no request may be running."""
        await self._request("POST", "/flush_cache", params={"timeout": SIGN_SECONDS})

    async def load_weights(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Sets the server's parameters and forgets cached rows; no request may be running.

        At least one parameter; until the last has arrived, the server's version is neither the old
        one nor the new one.
        """
        parts = _weight_messages(weights, version)
        while (content := await asyncio.to_thread(next, parts, None)) is not None:
            await self._request(
                "POST", "/update_weights_from_tensor", content=content, headers=JSON_HEADERS
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        answer = await self._patiently(self._http.request(method, path, **content))
        if not answer.is_success:
            raise ValueError(_error_message(answer.content) or f"status {answer.status_code}")
        return answer

    async def _patiently(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for a part of an answer, as long as the server gives signs of life."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait({task}, timeout=self._silent_seconds))[0]:
                seconds = min(SIGN_SECONDS, self._silent_seconds)
                await self._http.get("/model_info", timeout=seconds)
            return task.result()
        except (httpx.TransportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self._http.is_closed:
                raise  # httpx raises a RuntimeError if another call has closed it
            raise NoAnswer(
                f"no answer from {self.url} ({type(error).__name__}): check that the server runs, "
                "or raise silent_seconds"
            ) from error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _next(lines: Any) -> str | None:
    return await anext(lines, None)


def _error_message(content: bytes) -> str:
    """The server's message in a response that reports an error."""
    try:
        values = json.loads(content)
        error = values.get("error", values)
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        return content.decode("utf-8", "replace").strip()


def _call_message(call: Mapping[str, Any]) -> bytes:
    """A call with items that are JSON already; joined by hand, since they are large."""
    items = call.get("image_data") or ()
    if not items:
        return json.dumps({**call, "image_data": None}).encode()
    rest = {name: value for name, value in call.items() if name != "image_data"}
    parts = [part for item in items for part in (b", ", item)][1:]
    fields = json.dumps(rest).removeprefix("{").encode()
    return b"".join([b'{"image_data": [', *parts, b"], ", fields])


def _weight_messages(weights: Mapping[str, Tensor], version: str) -> Iterator[bytes]:
    """Tensors as messages of about ``BUCKET_BYTES`` each; one is made at a time."""
    buckets: list[list[str]] = [[]]
    size = 0
    for name, value in weights.items():
        if size >= BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
        size += value.nbytes
    for number, names in enumerate(buckets, 1):
        last = number == len(buckets)
        rest = {
            "flush_cache": last,
            "weight_version": version if last else f"{version}, incomplete",
        }
        yield _message({name: weights[name] for name in names}, rest)


def _message(weights: Mapping[str, Tensor], rest: Mapping[str, Any]) -> bytes:
    """A message with tensors; joined by hand, since json would copy them several times more."""
    # By value, not by a handle to shared memory: the server may be on another machine.
    values = [(name, one.detach().cpu().contiguous().clone()) for name, one in weights.items()]
    serialized = base64.b64encode(pickle.dumps(values))
    fields = json.dumps(rest).removeprefix("{").encode()
    return b'{"serialized_named_tensors": ["%b"], %b' % (serialized, fields)
