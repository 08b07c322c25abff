"""Answers rerank and score requests: from a body to a call, from results to a response."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.serve.about import LOADING_RETRY
from retrv_r1.serve.calls import NotReady, RankCall
from retrv_r1.serve.cutting import cut_warning, refuse_cut
from retrv_r1.serve.dialects import DIALECTS, Answer, Dialect, choose
from retrv_r1.serve.dialects.base import all_warnings
from retrv_r1.serve.errors import ApiError, malformed
from retrv_r1.serve.failures import failure_of, refused_options
from retrv_r1.serve.front import internal_error, log_failure
from retrv_r1.serve.handing import Pictures, Read, default_mode, read_all, to_call
from retrv_r1.serve.limits import Gate, Held, read_body
from retrv_r1.serve.metrics import Metrics
from retrv_r1.serve.schema.asked import Asked
from retrv_r1.serve.schema.json_body import read_json
from retrv_r1.serve.sending import Whole, encode, encode_answer
from retrv_r1.serve.service import RerankService
from retrv_r1.serve.settings import HEADER, Settings
from retrv_r1.serve.stream import EventStream, Happening, Happenings
from retrv_r1.serve.trace import Trace, trace_of
from retrv_r1.serve.watching import watched
from retrv_r1.types import RankedResults

LISTS_AT_ONCE = 8
"""Lists of one score request that are in the queue at the same time."""

ALONE = (
    "a document without another of the same query has nothing to be compared with, so its score is "
    "1; send its rivals"
)
"""Warning where the checkpoint has no estimate that nothing fits."""

LARGE_BODY = 2**16
"""Bytes from which a body is parsed in a thread, so that other requests go on."""

PARSED_AT_ONCE = 2
"""Large bodies that are parsed at the same time: that takes up to nine times their memory."""

MOST_HEADER = 2000
"""Characters of warnings in a header; proxies refuse long ones."""


class Ranking:
    """What the routes of rerank and score do.

    Args:
        service: ranks.
        settings: of the server.
        pictures: reads pictures.
        metrics: counts.
    """

    def __init__(
        self, service: RerankService, settings: Settings, pictures: Pictures, metrics: Metrics
    ) -> None:
        self.service, self.settings = service, settings
        self.pictures, self.metrics = pictures, metrics
        self.gate = Gate(settings.limits)
        self._parsing = asyncio.Semaphore(PARSED_AT_ONCE)

    async def answer(self, request: Request, path: str, forced: str | None = None) -> Response:
        """The response to a request.

        Args:
            path: route whose form it has.
            forced: name of the dialect that its address names.
        """
        trace = trace_of(request.scope)
        forced = _named(request) or forced or self.settings.dialect
        dialect = choose(path, {}, forced)
        trace.dialect = dialect.name
        with ExitStack() as stack:
            try:
                if self.service.reranker is None:
                    raise NotReady("the model is being loaded", LOADING_RETRY)
                held = stack.enter_context(self.gate.enter())
                body = await self._body(request, held, trace)
                dialect = choose(path, body, forced)
                trace.dialect = dialect.name
                if trace.body_bytes < LARGE_BODY:
                    asked = self._asked(dialect, body, trace)
                else:
                    asked = await run_in_threadpool(self._asked, dialect, body, trace)
                if dialect.name != "score" and _wants_events(request, asked[0]):
                    return await self._stream(request, dialect, asked[0], held, trace, stack)
                answers = await watched(request.receive, self._rank_all(asked, held, trace))
                content = dialect.render(answers)
                headers = _warning_headers(content, answers)
                encoded = await encode_answer(content, trace.body_bytes)
                return Whole(encoded, 200, headers, stack.pop_all())
            except Exception as error:
                told, body = self._error(error, dialect, trace)
                trace.code = told.code
                return Whole(encode(body), told.status, told.headers)

    async def _body(self, request: Request, held: Held, trace: Trace) -> Mapping[str, Any]:
        _check_headers(request)
        announced = request.headers.get("content-length")
        try:
            body = await read_body(request.stream(), announced, self.settings.limits, held)
        except ClientDisconnect:
            raise ApiError(499, "client_closed_request", "the client has hung up") from None
        trace.body_bytes = len(body)
        most = self.settings.limits.max_json_values
        if len(body) < LARGE_BODY:
            return read_json(body, most)
        async with self._parsing:
            return await run_in_threadpool(read_json, body, most)

    def _asked(self, dialect: Dialect, body: Mapping[str, Any], trace: Trace) -> tuple[Asked, ...]:
        try:
            found = dialect.parse(body, self.settings.limits)
        except RecursionError:  # a body read in a thread may be deeper than the stack left here
            raise malformed("the body is nested too deeply; send flat lists of items") from None
        except ApiError as error:
            if error.status == 400 and error.code != "no_index":
                error.status = dialect.invalid_status
            raise
        trace.documents = sum(len(one.documents) for one in found)
        trace.pictures = sum(len(i.pictures) for one in found for i in (one.query, *one.documents))
        wanted, ours = found[0].model, self.settings.model
        if wanted is None or wanted == ours:
            return found
        if self.settings.strict_model:
            raise ApiError(
                404, "model_not_found", f"the model is not served here; ask for {ours}", "model"
            )
        warning = f"another model was asked for; {ours} has answered"
        return tuple(replace(one, warnings=(*one.warnings, warning)) for one in found)

    async def _rank_all(self, asked: tuple[Asked, ...], held: Held, trace: Trace) -> list[Answer]:
        """The answers of all lists."""
        free = asyncio.Semaphore(LISTS_AT_ONCE)

        async def one(asked: Asked, read: Read) -> Answer:
            async with free:
                call = self._call(asked, read, trace)
                with refused_options():
                    results = await self.service.rank(call)
            return self._answer(asked, results, trace)

        async with asyncio.timeout(self._left(trace)):
            read = await read_all(asked, self.pictures, held)
            tasks = [asyncio.create_task(one(each, read)) for each in asked]
            try:
                return await asyncio.gather(*tasks)
            finally:  # the first error ends the ranking of the other lists
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(
        self,
        request: Request,
        dialect: Dialect,
        asked: Asked,
        held: Held,
        trace: Trace,
        stack: ExitStack,
    ) -> Response:
        async with asyncio.timeout(self._left(trace)):
            read = await watched(request.receive, read_all([asked], self.pictures, held))
        call = self._call(asked, read, trace)
        trace.stream = True
        happenings = Happenings(self._events(call, trace))
        await watched(request.receive, happenings.begin())
        return EventStream(
            happenings,
            lambda results: dialect.render([self._answer(asked, results, trace)]),
            lambda draft: dialect.render([self._shown(asked, draft, trace)]),
            lambda error: self._error(error, dialect, trace),
            keep_alive=self.settings.keep_alive,
            seconds=self._left(trace),
            closing=stack.pop_all(),
        )

    async def _events(self, call: RankCall, trace: Trace) -> AsyncGenerator[Happening, None]:
        first = True
        with refused_options():
            async with aclosing(self.service.stream(call)) as events:
                async for event in events:
                    if first:
                        self.metrics.first_event(call.mode, trace.seconds)
                        first = False
                    yield event

    def _call(self, asked: Asked, read: Read, trace: Trace) -> RankCall:
        call = to_call(asked, read, self.settings.mode or default_mode(self.service.reranker))
        budget, left = call.budget_ms, self._left(trace)  # both begin when the request comes
        return replace(
            call,
            budget_ms=None if budget is None else max(0.0, budget - 1000 * trace.seconds),
            deadline_ms=None if left is None else 1000 * left,
        )

    def _answer(self, asked: Asked, results: RankedResults, trace: Trace) -> Answer:
        """The answer, which is counted."""
        answer = self._shown(asked, results, trace)
        self.metrics.answered(results, len(asked.documents))
        trace.add(results)
        return answer

    def _shown(self, asked: Asked, results: RankedResults, trace: Trace) -> Answer:
        """The response's content; a draft's is not counted, because its results come again."""
        if not asked.truncate:
            refuse_cut(asked, results, self._processor())
            results = replace(results, ranking=results.ranking[: asked.top_n])
        elif cut := cut_warning(asked, results, self._processor()):
            asked = replace(asked, warnings=(*asked.warnings, cut))
        if len(asked.documents) == 1 and results.none_of_these is None:
            asked = replace(asked, warnings=(*asked.warnings, ALONE))
        shown = replace(results, model=self.settings.model)
        return Answer(asked, shown, trace.request_id, int(time.time()))

    def _processor(self) -> RetrvR1Processor:
        assert self.service.reranker is not None, "it has ranked"
        return self.service.reranker.processor

    def _left(self, trace: Trace) -> float | None:
        """Seconds until the deadline of a request."""
        if self.settings.deadline is None:
            return None
        return max(0.001, self.settings.deadline - trace.seconds)

    def _error(self, error: Exception, dialect: Dialect, trace: Trace) -> tuple[ApiError, Any]:
        told = failure_of(error, self.settings.deadline)
        if told is None:
            log_failure(trace.request_id, error)
            told = internal_error()
        self.metrics.refused(told.code)
        return told, dialect.error(told, trace.request_id)


def _named(request: Request) -> str | None:
    """The dialect that a client names in a header."""
    name = request.headers.get(HEADER)
    known = [one.name for one in DIALECTS]
    if name is not None and name not in known:
        raise ApiError(400, "unknown_dialect", f"{HEADER} must be one of {', '.join(known)}")
    return name


def _check_headers(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            415, "content_type", "the body must be JSON: send Content-Type: application/json"
        )
    if "charset" in parameters and "utf-8" not in parameters.replace("utf8", "utf-8"):
        raise ApiError(415, "content_type", "the body must be UTF-8: leave the charset out")
    if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise ApiError(
            415, "content_encoding", "compressed bodies are not read; leave Content-Encoding out"
        )


def _wants_events(request: Request, asked: Asked) -> bool:
    accept = request.headers.get("accept", "").lower()
    return asked.options.stream or ("text/event-stream" in accept and "json" not in accept)


def _warning_headers(content: Any, answers: Sequence[Answer]) -> dict[str, str]:
    """Warnings in a header where the body, a bare array, has no place for them."""
    warnings = all_warnings(answers)
    if not isinstance(content, list) or not warnings:
        return {}
    for count in range(len(warnings), -1, -1):
        left = len(warnings) - count
        text = json.dumps([*warnings[:count], *([f"{left} more warnings"] if left else [])])
        if len(text) <= MOST_HEADER:
            break
    return {"X-Retrv-Warnings": text}
