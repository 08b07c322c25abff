"""Parts that terminal and page share: names of items, steps of reasoning, token counts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from retrv_r1.types import Item, RankedResults

_INSPECT = re.compile(r"\binspect \[(\d+)\]")
_LABEL = re.compile(r"\[(\d+)\]")
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_SENTENCE = re.compile(r"[.!?](?=\s)")


@dataclass(frozen=True)
class Fragment:
    """A fragment of reasoning: words, or a label; ``candidate`` is the index that it names."""

    text: str
    candidate: int | None = None


@dataclass(frozen=True)
class Step:
    """A line of reasoning; ``inspected`` is the index of the candidate it inspects, if any."""

    fragments: tuple[Fragment, ...]
    inspected: int | None = None


@dataclass(frozen=True)
class Share:
    """A share of a total, such as the seconds of a phase or the rows of a kind."""

    name: str
    value: float
    text: str
    percent: float


def display_name(item: Item, index: int | None = None) -> str:
    """Printable name of an item: its id, else the picture's file name, else the whole text."""
    if item.id_text:
        name = item.id_text
    elif isinstance(item.image, str | Path):
        name = Path(item.image).name
    else:
        name = item.text or ("picture" if index is None else f"picture {index + 1}")
    return printable(name)


def short_name(item: Item, index: int | None = None) -> str:
    """The display name; that of a picture file without folders and suffix."""
    name = display_name(item, index)
    return Path(name).stem or name if isinstance(item.image, str | Path) else name


def printable(text: str) -> str:
    """Text that cannot steer a terminal: no escape sequences, no overrides of direction."""
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character == "\n":
        return character
    if character.isspace():
        return " "
    steers = unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTIONS
    return "\ufffd" if steers else character


def reasoning_steps(text: str, count: int) -> list[Step]:
    """Splits reasoning at line ends, before each inspection, and after its first sentence.

    Args:
        text: reasoning, with ``[k]`` for the candidate of index ``k - 1`` and ``inspect [k]`` for
            an inspection of it.
        count: number of candidates; a ``[k]`` beyond it stays text.
    """
    steps = []
    for line in printable(text).split("\n"):
        looks = [m for m in _INSPECT.finditer(line) if 0 < int(m[1]) <= count]
        ends = [look.start() for look in looks[1:]] + [len(line)]
        steps.append(Step(_fragments(line[: looks[0].start() if looks else len(line)], count)))
        for look, end in zip(looks, ends, strict=False):
            verdict = line[look.end() : end]
            stop = _SENTENCE.search(verdict)
            cut = stop.end() if stop else len(verdict)
            steps.append(Step(_fragments(verdict[:cut], count), int(look[1]) - 1))
            steps.append(Step(_fragments(verdict[cut:], count)))
    return [step for step in steps if step.fragments or step.inspected is not None]


def _fragments(text: str, count: int) -> tuple[Fragment, ...]:
    fragments, last = [], 0
    text = text.strip()
    for match in _LABEL.finditer(text):
        if 0 < int(match[1]) <= count:
            fragments += [
                Fragment(text[last : match.start()]),
                Fragment(match[0], int(match[1]) - 1),
            ]
            last = match.end()
    return tuple(one for one in (*fragments, Fragment(text[last:])) if one.text)


def token_shares(results: RankedResults) -> list[Share]:
    """Rows of a request by kind; the prompt is counted without its candidates."""
    tokens = results.tokens
    return _shares(
        {
            "query and instruction": tokens.prompt - tokens.candidates,
            "candidates": tokens.candidates,
            "inspected": tokens.inspected,
            "generated": tokens.generated,
        },
        lambda value: f"{value:,.0f}",
    )


def timing_shares(results: RankedResults) -> list[Share]:
    """Seconds of a request by phase."""
    return _shares(results.timings, seconds)


def percent(value: float) -> str:
    """A probability as short text."""
    return f"{100 * value:.0f} %" if not 0 < value < 0.01 else f"{100 * value:.2g} %"


def seconds(value: float) -> str:
    """A duration as short text."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _shares(values: Mapping[str, float], text: Callable[[float], str]) -> list[Share]:
    total = sum(values.values())
    return [
        Share(name, value, text(value), 100 * value / total if total > 0 else 0.0)
        for name, value in values.items()
    ]
