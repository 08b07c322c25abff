"""The HTTP application: routes, and what starts and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from retrv_r1 import __version__
from retrv_r1.serve.about import About
from retrv_r1.serve.dialects import DIALECTS, RERANK_PATHS, SCORE_PATHS
from retrv_r1.serve.errors import ApiError, superset_body
from retrv_r1.serve.front import Front
from retrv_r1.serve.handing import ModelPictures, Pictures
from retrv_r1.serve.logs import log_request
from retrv_r1.serve.metrics import Metrics
from retrv_r1.serve.page import mount_page
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.serve.ranking import Ranking
from retrv_r1.serve.schema.openapi import DESCRIPTION, about_extra, document, ranking_extra
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import HEADER, Settings
from retrv_r1.serve.trace import Trace, trace_of

PREFIXED = tuple(f"/{one.name}/{{path:path}}" for one in DIALECTS if one.name != "score")
"""Routes of one dialect each, for clients that can change nothing but the base address."""

ABOUT_PATHS = ("/health", "/info", "/v1/models", "/metrics")


def create_app(
    service: RerankService,
    settings: Settings | None = None,
    *,
    policy: PicturePolicy | None = None,
    pictures: Pictures | None = None,
    metrics: Metrics | None = None,
    on_start: Callable[[BaseException | None], None] = lambda error: None,
) -> FastAPI:
    """The application; its lifespan starts the service and drains it.

    Args:
        service: ranks.
        policy: which pictures are taken; by default those that are in the request.
        pictures: reads pictures; a reader of that policy by default.
        metrics: counts; its own by default.
        on_start: called when the service answers, or with the error that keeps it from that.
    """
    settings = settings or Settings()
    metrics = metrics or make_metrics()
    policy = policy or PicturePolicy()
    reader = ModelPictures(service, policy, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(_start(service, on_start))
        yield
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await service.drain(settings.drain)
        await reader.aclose()

    app = FastAPI(
        title="Retrv-R1 rerank server",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    _add_routes(
        app,
        Ranking(service, settings, pictures or reader, metrics),
        About(service, settings, metrics, policy, int(time.time())),
    )
    app.openapi = lambda: document(app, keys=bool(settings.keys))  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(
        Front,
        keys=settings.keys,
        hosts=settings.hosts,
        report=lambda trace: _report(metrics, trace),
    )
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id", HEADER],
            expose_headers=["X-Request-Id", "X-Retrv-Warnings", "Retry-After"],
        )
    return app


def make_metrics() -> Metrics:
    """Metrics that know the server's routes and dialects."""
    routes = (*RERANK_PATHS, *SCORE_PATHS, *ABOUT_PATHS, *PREFIXED, "/openapi.json", "/")
    return Metrics(routes=routes, dialects=[one.name for one in DIALECTS])


async def _start(service: RerankService, on_start: Callable[[BaseException | None], None]) -> None:
    try:
        await service.start()
    except Exception as error:
        on_start(error)
    else:
        on_start(None)


def _add_routes(app: FastAPI, ranking: Ranking, about: About) -> None:
    for path in (*RERANK_PATHS, *SCORE_PATHS):
        app.add_api_route(
            path,
            _route(ranking, path),
            methods=["POST"],
            response_model=None,
            openapi_extra=ranking_extra(path),
            operation_id=f"post{path.replace('/', '_')}",
        )
    answers = (about.health, about.info, about.models, about.render_metrics)
    for path, answer in zip(ABOUT_PATHS, answers, strict=True):
        app.add_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)
        app.add_api_route(  # for the document, which would have HEAD under the same id
            path,
            answer,
            methods=["GET"],
            response_model=None,
            openapi_extra=about_extra(path),
            operation_id=f"get{path.replace('/', '_')}",
        )

    for path in PREFIXED:
        app.add_api_route(
            path,
            _dialect_route(ranking, path.split("/")[1]),
            methods=["POST"],
            response_model=None,
            include_in_schema=False,
        )
    mount_page(app)


def _route(ranking: Ranking, path: str) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return await ranking.answer(request, path)

    return answer


def _dialect_route(ranking: Ranking, dialect: str) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        path = f"/{request.path_params['path']}"
        if path not in RERANK_PATHS:
            raise HTTPException(404)
        return await ranking.answer(request, path, dialect)

    return answer


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers what no route has answered."""
    assert isinstance(error, HTTPException)
    told = {
        404: ApiError(404, "no_such_route", "there is no such route; /openapi.json lists them"),
        405: ApiError(405, "method_not_allowed", "rerank and score want POST, the others GET"),
    }.get(error.status_code, ApiError(error.status_code, "http_error", "the request is refused"))
    trace = trace_of(request.scope)
    trace.code = told.code
    body = superset_body(told, trace.request_id)
    return JSONResponse(body, told.status, {**(error.headers or {}), **told.headers})


def _report(metrics: Metrics, trace: Trace) -> None:
    """Counts and logs a request that has ended."""
    metrics.request(trace.dialect, trace.route, trace.status, trace.seconds)
    log_request(trace.line())
