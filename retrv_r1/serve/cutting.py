"""Texts that are longer than what is read of them: a warning, or an error where it is asked for."""

from __future__ import annotations

from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.schema.asked import Asked
from retrv_r1.serve.schema.items import AskedItem
from retrv_r1.types import RankedResults

COUNTED = 200_000
"""Characters up to which the tokens of a text are counted for a message: some 50 ms."""

NAMED = 5
"""Texts that a warning names; more are counted."""


def refuse_cut(asked: Asked, results: RankedResults, processor: RetrvR1Processor) -> None:
    """Refuses an answer for which a text was cut.

    Raises:
        ApiError: 413; it names the first of these texts.
    """
    cut = _cut(asked, results)
    if not cut:
        return
    text, most = cut[0].text or "", processor.max_text_tokens
    has = f"{processor.count_tokens(text)}" if len(text) <= COUNTED else f"more than {most}"
    raise ApiError(
        413,
        "max_text_tokens",
        f"{cut[0].place} has {has} tokens, and {most} of a text are read; shorten it, allow "
        "truncation, or start the server with --max-text-tokens N",
        cut[0].place,
    )


def cut_warning(asked: Asked, results: RankedResults, processor: RetrvR1Processor) -> str | None:
    """Says which texts were cut; None where all were read whole."""
    places = [one.place for one in _cut(asked, results)]
    if not places:
        return None
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return (
        f"only the first {processor.max_text_tokens} tokens were read of "
        f"{', '.join(places[:NAMED])}{more}"
    )


def _cut(asked: Asked, results: RankedResults) -> list[AskedItem]:
    """The items of which only the start was read, in the order of the request."""
    numbers = sorted(row.index for row in results if row.truncated)
    query = [asked.query] if results.query_truncated else []
    return query + [asked.documents[number] for number in numbers]
