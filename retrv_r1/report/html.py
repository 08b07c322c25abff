"""A ranking as one self-contained page: no scripts, no other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from retrv_r1.files import write_whole
from retrv_r1.images import load_image
from retrv_r1.report.view import (
    percent,
    printable,
    reasoning_steps,
    seconds,
    short_name,
    timing_shares,
    token_shares,
)
from retrv_r1.types import Item, ItemLike, RankedResults, RetrvError

_FOLDER = Path(__file__).parent
_CARD, _LARGE, _CHIP = 192, 448, 56


@dataclass(frozen=True)
class Card:
    """A candidate on the page.

    Args:
        picture: CSS class of the picture; empty without one.
        rank: rank from 1; None for a candidate that the reasoning names but the ranking omits.
    """

    index: int
    name: str
    full_name: str
    text: str
    picture: str
    rank: int | None = None
    score: float = 0.0
    answer: bool = False
    inspected: bool = False
    truncated: bool = False


def render_html(
    results: RankedResults,
    *,
    candidates: Sequence[ItemLike] | None = None,
    title: str | None = None,
) -> str:
    """Renders a ranking as a page.

    Args:
        candidates: the caller's whole list. It is needed only where ``top_k`` cut the ranking, to
            show other candidates that the reasoning names.
        title: title of the page; by default the query.
    Raises:
        ItemError: a picture can no longer be read.
    """
    count = len(candidates) if candidates is not None else _least_count(results)
    steps = reasoning_steps(results.reasoning, count)
    pictures: dict[str, str] = {}
    query_picture = _add_picture(pictures, "q", results.query, _LARGE)
    cards = [_card(results, rank, pictures) for rank in range(1, len(results) + 1)]
    by_index = {card.index: card for card in cards}
    named = {one.candidate for step in steps for one in step.fragments} | set(results.inspected)
    for index in sorted(k for k in named if k is not None and k not in by_index):
        item = Item.of(candidates[index]) if candidates is not None else None
        by_index[index] = _unranked(index, item, pictures)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    query_text, none = printable(results.query.text or ""), results.none_of_these
    return environment.get_template("page.html.j2").render(
        title=printable(title or query_text or "picture query"),
        results=results,
        query_text=query_text,
        query_picture=query_picture,
        answer=next((card for card in cards if card.answer), None),
        cards=cards,
        pictured=any(card.picture for card in cards),
        by_index=by_index,
        count=count,
        steps=steps,
        pictures=pictures,
        rows=token_shares(results),
        phases=timing_shares(results),
        none_of_these=none if none is None else percent(none),
        total=seconds(sum(results.timings.values())),
    )


def write_html(page: str, path: Path) -> None:
    """Writes a page; a reader sees the old file or the new one, never a part.

    Raises:
        RetrvError: the file cannot be written.
    """
    try:
        write_whole(path, page)
    except OSError as error:
        raise RetrvError(
            f"cannot write {path}: {error.strerror}; name a file in a writable folder"
        ) from error


def _least_count(results: RankedResults) -> int:
    """Fewest candidates that there can have been, from what the results name."""
    return 1 + max([row.index for row in results] + list(results.inspected), default=-1)


def _card(results: RankedResults, rank: int, pictures: dict[str, str]) -> Card:
    row = results[rank - 1]
    answer = row.index == results.answer
    return Card(
        index=row.index,
        name=short_name(row.item, row.index),
        full_name=printable(row.item.id_text or row.item.text or ""),
        text=printable(row.item.text or ""),
        picture=_add_picture(pictures, f"c{row.index}", row.item, _LARGE if answer else _CARD),
        rank=rank,
        score=row.score,
        answer=answer,
        inspected=row.inspected,
        truncated=row.truncated,
    )


def _unranked(index: int, item: Item | None, pictures: dict[str, str]) -> Card:
    if item is None:
        return Card(index, "", "", "", "")
    name = short_name(item, index)
    picture = _add_picture(pictures, f"c{index}", item, _CHIP)
    return Card(index, name, name, printable(item.text or ""), picture)


def _add_picture(pictures: dict[str, str], key: str, item: Item, side: int) -> str:
    """Adds an item's thumbnail to the page's pictures; returns its key, empty without one."""
    if item.image is None:
        return ""
    pictures[key] = data_uri(load_image(item.image), side)
    return key


def data_uri(picture: Image.Image, side: int) -> str:
    """A picture within ``side`` x ``side`` pixels, as PNG or JPEG, whichever is smaller."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **options)
        encoded.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, data = min(encoded)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
