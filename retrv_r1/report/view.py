"""What terminal and page show alike: names of items, the reasoning in steps, token counts."""

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
class Part:
    """A stretch of reasoning: words, or a reference to a candidate (its index)."""

    text: str
    candidate: int | None = None


@dataclass(frozen=True)
class Step:
    """A line of reasoning; ``inspected`` is the candidate that it looks at in full, if any."""

    parts: tuple[Part, ...]
    inspected: int | None = None


@dataclass(frozen=True)
class Share:
    """One piece of a whole: a phase's seconds, a kind of row's count."""

    name: str
    value: float
    text: str
    percent: float


def name_of(item: Item, index: int | None = None) -> str:
    """A printable name: the id, else the picture's file name, else the text."""
    if item.id:
        name = item.id
    elif isinstance(item.image, str | Path):
        name = Path(item.image).name
    else:
        name = item.text or ("picture" if index is None else f"picture {index + 1}")
    return printable(name)


def short_name(item: Item, index: int | None = None) -> str:
    """The name; of a picture file, without folders and suffix."""
    name = name_of(item, index)
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
        text: reasoning with ``[k]`` for candidate ``k - 1`` and ``inspect [k]`` for a look at it.
        count: how many candidates there were; a ``[k]`` beyond them stays text.
    """
    steps = []
    for line in printable(text).split("\n"):
        looks = [m for m in _INSPECT.finditer(line) if 0 < int(m[1]) <= count]
        ends = [look.start() for look in looks[1:]] + [len(line)]
        steps.append(Step(_parts(line[: looks[0].start() if looks else len(line)], count)))
        for look, end in zip(looks, ends, strict=False):
            verdict = line[look.end() : end]
            stop = _SENTENCE.search(verdict)
            cut = stop.end() if stop else len(verdict)
            steps.append(Step(_parts(verdict[:cut], count), int(look[1]) - 1))
            steps.append(Step(_parts(verdict[cut:], count)))
    return [step for step in steps if step.parts or step.inspected is not None]


def _parts(text: str, count: int) -> tuple[Part, ...]:
    parts, last = [], 0
    text = text.strip()
    for match in _LABEL.finditer(text):
        if 0 < int(match[1]) <= count:
            parts += [Part(text[last : match.start()]), Part(match[0], int(match[1]) - 1)]
            last = match.end()
    return tuple(part for part in (*parts, Part(text[last:])) if part.text)


def token_shares(results: RankedResults) -> list[Share]:
    """The rows of a request by kind; the prompt without its candidates."""
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
    """The seconds of a request by phase."""
    return _shares(results.timings, seconds)


def seconds(value: float) -> str:
    """A duration with a unit that keeps it short."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def _shares(values: Mapping[str, float], text: Callable[[float], str]) -> list[Share]:
    total = sum(values.values())
    return [
        Share(name, value, text(value), 100 * value / total if total > 0 else 0.0)
        for name, value in values.items()
    ]
