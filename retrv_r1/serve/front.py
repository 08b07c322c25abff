"""The outermost layer: an id, names, API keys, and an answer whatever happens inside."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retrv_r1.serve.admission import SHUTTING_DOWN
from retrv_r1.serve.auth import Keys
from retrv_r1.serve.errors import ApiError, superset_body
from retrv_r1.serve.hosts import Hosts
from retrv_r1.serve.logs import LOGGER, request_id
from retrv_r1.serve.trace import KEY, Trace

OPEN = ("/health", "/")
"""Paths that need no key: whether the server is ready, and the page, which asks for the key."""

OPEN_BELOW = "/page/"

# Clients that are given an address with a slash at its end ask for //v2/rerank.
_SLASHES = re.compile("//+")

log = logging.getLogger(LOGGER)


class Front:
    """Around an application: gives each request an id, checks host and key, and reports its end.

    Args:
        keys: keys that are admitted.
        hosts: names that the server answers to.
        report: called at the end of each request.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys, hosts: Hosts, report: Callable[[Trace], None]
    ) -> None:
        self._app, self._keys, self._hosts, self._report = app, keys, hosts, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "path": _SLASHES.sub("/", scope["path"])}
        headers = Headers(scope=scope)
        trace = scope[KEY] = Trace(request_id(headers.get("x-request-id")))
        started = False

        async def tracing(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                trace.status = message["status"]
                given = MutableHeaders(raw=message.setdefault("headers", []))
                given["X-Request-Id"] = trace.request_id
                given["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            _check_once(headers)
            self._hosts.check(headers.get("host"))
            if not _is_open(scope["path"]):
                self._keys.check(headers)
            await self._app(scope, receive, tracing)
        except ApiError as error:
            trace.code = error.code
            await _answer(tracing, error, trace)
        except asyncio.CancelledError:  # of a server that waits no longer, and logs what it catches
            ending = ApiError(503, "not_ready", SHUTTING_DOWN, retry_after=1)
            trace.status, trace.code = ending.status, ending.code
            if not started:
                await _answer(tracing, ending, trace)
        except Exception as error:
            trace.code = "internal_error"
            log_failure(trace.request_id, error)
            if started:
                trace.status = 500
            else:
                await _answer(tracing, internal_error(), trace)
        finally:
            trace.route = trace.route or getattr(scope.get("route"), "path", "")
            self._report(trace)


def internal_error() -> ApiError:
    """The answer to a fault of ours, which tells nothing of it."""
    return ApiError(
        500, "internal_error", "the server failed at this request; its log has the request's id"
    )


def log_failure(request_id: str, error: BaseException) -> None:
    """Logs a fault of ours; the log's format leaves out messages, which may quote a request."""
    log.error("request %s failed", request_id, exc_info=error)


def _check_once(headers: Headers) -> None:
    """Refuses keys that are there twice, of which proxies and servers may read different ones."""
    for name in ("Authorization", "X-API-Key"):
        if len(headers.getlist(name)) > 1:
            raise ApiError(400, "header_twice", f"the header {name} is there twice; send it once")


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


async def _answer(send: Send, error: ApiError, trace: Trace) -> None:
    body: Any = json.dumps(superset_body(error, trace.request_id)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    raw = [(k.encode(), v.encode()) for k, v in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
