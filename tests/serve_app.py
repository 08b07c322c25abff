"""A server for tests: the shipped checkpoint behind the HTTP application, in this process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import httpx
from PIL import Image

from retrv_r1 import Reranker
from retrv_r1.serve.app import create_app
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import Settings


@cache
def tiny() -> Reranker:
    """The shipped checkpoint, loaded once."""
    return Reranker.from_pretrained("tiny", device="cpu")


@contextlib.asynccontextmanager
async def serving(
    settings: Settings | None = None, service: Any = None, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose service has started.

    Args:
        service: ranks; the shipped checkpoint by default, which stays open for other tests.
        options: other arguments of ``create_app``.
    """
    ready = asyncio.Event()
    service = service or RerankService(Kept.of(tiny()))
    app = create_app(service, settings, on_start=lambda error: ready.set(), **options)
    async with app.router.lifespan_context(app):
        await ready.wait()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client
