"""Ranks the lists on a running server, in each dialect and with many requests at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from retrv_r1.types import RetrvError
from retrv_r1.verify.comparing import Comparison, compare
from retrv_r1.verify.dialects import FORMS, Form
from retrv_r1.verify.golden import Case, Outcome

ATTEMPTS = 20
SECONDS = 300.0


class ServerRefuses(RetrvError):
    """A server that cannot be reached, or does not rank; the message says why."""


def compare_server(
    url: str,
    golden: Mapping[str, Outcome],
    asked: Sequence[Case],
    *,
    batches: Sequence[int],
    bound: float,
    key: str | None = None,
    forms: Sequence[Form] = FORMS,
    ranked: Callable[[int], None] = lambda count: None,
) -> Iterator[Comparison]:
    """Yields a comparison for each dialect, and for each number of requests at once.

    The dialects are asked with the largest number of ``batches``; the first of them, with the
    others as well. What the server has in its caches when this begins is not known.

    Args:
        url: address of the server.
        golden: golden outcomes by the names of their cases.
        batches: numbers of requests that are sent at once.
        bound: largest difference of a score.
        key: API key.
        ranked: called with a number of lists when they are ranked.
    Raises:
        ServerRefuses: it does not answer, or refuses a list.
        BadAnswer: an answer is no ranking.
    """
    most = max(batches)
    plan = [(forms[0], batch) for batch in sorted(batches) if batch != most]
    plan += [(form, most) for form in forms]
    asyncio.run(_check(url, key))
    for number, (form, batch) in enumerate(plan):
        found = asyncio.run(_rank_all(url, key, form, asked, batch, ranked))
        cache = "unknown" if number == 0 else "warm"
        what = f"{url} {form.name}"
        yield compare(what, found, golden, cache=cache, batch=batch, bound=bound)


def _client(url: str, key: str | None, at_once: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=SECONDS,
        limits=httpx.Limits(max_connections=at_once),
    )


async def _check(url: str, key: str | None) -> None:
    """Refuses a server that calculates in other numbers than the golden scores."""
    async with _client(url, key, 1) as client:
        info = await _answer(client, "GET", "/info")
    dtype = info.get("model_dtype") if isinstance(info, Mapping) else None
    if dtype != "float32":
        raise ServerRefuses(
            f"{url} calculates in {dtype}, and golden scores are float32: start the server with "
            "--dtype float32"
        )


async def _rank_all(
    url: str,
    key: str | None,
    form: Form,
    asked: Sequence[Case],
    at_once: int,
    ranked: Callable[[int], None],
) -> dict[str, Outcome]:
    free = asyncio.Semaphore(at_once)
    async with _client(url, key, at_once) as client:

        async def one(case: Case) -> Outcome:
            async with free:
                answer = await _answer(
                    client, "POST", form.path, json=form.body(case), headers=form.headers
                )
            ranked(1)
            return form.outcome(answer, len(case.asked.candidates))

        outcomes = await asyncio.gather(*map(one, asked))
    return {case.name: outcome for case, outcome in zip(asked, outcomes, strict=True)}


async def _answer(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> Any:
    """The JSON of an answer; waits where the server is busy or loading."""
    for attempt in range(ATTEMPTS):
        try:
            response = await client.request(method, path, **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerRefuses(
                f"no server answers at {client.base_url} ({type(error).__name__}): start one with "
                "retrv-r1 serve"
            ) from error
        if response.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
            break
        await asyncio.sleep(_patience(response.headers.get("retry-after")))
    if response.status_code != 200:
        raise ServerRefuses(
            f"{client.base_url}{path} answered {response.status_code}: {response.text[:200]}"
        )
    try:
        return response.json()
    except ValueError as error:
        raise ServerRefuses(f"{client.base_url}{path} answered no JSON") from error


def _patience(asked: str | None) -> float:
    """Seconds to wait before the next attempt."""
    try:
        return min(max(float(asked or 1), 0.1), 30.0)
    except ValueError:
        return 1.0
