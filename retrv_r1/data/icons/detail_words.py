"""The details that a name states: what tells an icon from its near twins."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.english import article, word_set

KINDS: tuple[str, ...] = (
    "skin", "fill", "direction", "count", "badge", "clock", "dice", "card", "level", "character",
    "frame",
)  # fmt: skip
"""Kinds of details: the skin tone of people, filled or outline, where something points, how many
of it there are, a small sign at its corner, the time on a clock, the dots of a die, the rank and
suit of a playing card, a level of battery or signal, a letter or digit, and what frames it."""


@dataclass(frozen=True, slots=True)
class Detail:
    """A detail of a picture.

    Pictures with equal kind and frame are near twins if their values differ, and show the same if
    their values are equal.

    Args:
        kind: one of ``KINDS``.
        value: the detail in words; empty if the picture has none: a user without a plus.
        frame: words of the rest of the name, sorted; what twins have in common.
        rest: the same in the name's order, as text.
    """

    kind: str
    value: str
    frame: str
    rest: str


_DIRECTIONS = {
    "left": "left", "right": "right", "up": "up", "down": "down", "top": "top",
    "bottom": "bottom", "upward": "up", "downward": "down", "upwards": "up", "downwards": "down",
    "leftward": "left", "rightward": "right", "leftwards": "left", "rightwards": "right",
    "north": "up", "south": "down", "east": "right", "west": "left",
}  # fmt: skip
POINTING = word_set(
    "arrow arrows chevron chevrons caret carets angle angles hand finger pointer index backhand"
)
_COUNTS = {"double": "double", "triple": "triple", "single": "single"}
_COUNTED = word_set("arrow chevron caret angle")
_BADGES = {
    "plus": "plus", "add": "plus", "minus": "minus", "subtract": "minus", "check": "check",
    "checked": "check", "tick": "check", "checkmark": "check", "x": "cross", "cross": "cross",
    "xmark": "cross", "off": "off", "slash": "off", "question": "question", "help": "question",
    "exclamation": "exclamation", "lock": "lock", "heart": "heart", "star": "star",
    "search": "search", "cog": "gear", "gear": "gear", "settings": "gear", "pencil": "pencil",
    "edit": "pencil",
}  # fmt: skip
_LEADING = word_set("plus add minus subtract")  # "add user"; but a "lock screen" has no lock
# Words that some hands draw as a cross, others as a minus or a bin: no one can say what is right.
_VAGUE = word_set("remove delete close cancel clear disabled times error alert warning")
_BADGE_TEXT = {
    "plus": "with a plus", "minus": "with a minus", "check": "with a check mark",
    "cross": "with a cross", "off": "crossed out", "question": "with a question mark",
    "exclamation": "with an exclamation mark", "lock": "with a lock", "heart": "with a heart",
    "star": "with a star", "search": "with a magnifying glass", "gear": "with a gear",
    "pencil": "with a pencil",
}  # fmt: skip
_NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
_WORD_OF = {number: word for word, number in _NUMBERS.items()}
_RANKS = word_set("ace king queen jack 2 3 4 5 6 7 8 9 10")
_SUITS = word_set("clubs spades hearts diamonds")
_LEVELS = word_set("low medium high full empty half quarter zero mid middle")
_LEVELLED = word_set(
    "battery wifi signal volume speaker cell cellular network thermometer temperature gauge "
    "brightness reception antenna connection"
)
_FRAMES = word_set("circle square triangle hexagon octagon diamond")
_OWN_FRAME = word_set("message messages chat bubble comment speech")  # they are the circle
_MARKS = word_set("letter number numeric alpha digit keycap")


def details(row: IconRow) -> tuple[Detail, ...]:
    """All details that the name, style and skin of a picture state; fill is told by twins alone."""
    found = _named(row.code)
    if found and " and " not in row.skin:
        skin = _detail("skin", row.skin.replace(" ", "-"), row.code.split())
        return (*found, skin)
    return found


@lru_cache(maxsize=1 << 17)
def _named(code: str) -> tuple[Detail, ...]:
    """Details that a concept's name states."""
    words = code.split()
    return () if _VAGUE & set(words) else tuple(d for read in _READERS for d in read(words))


def _detail(kind: str, value: str, rest: Sequence[str]) -> Detail:
    return Detail(kind, value, " ".join(sorted(rest)), " ".join(rest))


def _direction(words: Sequence[str]) -> Iterator[Detail]:
    values = [_DIRECTIONS[w] for w in words if w in _DIRECTIONS]
    rest = [w for w in words if w not in _DIRECTIONS]
    if values and rest and len(values) <= 2:
        vertical = sorted(values, key=lambda v: v not in ("up", "down", "top", "bottom"))
        mixed = len({v in ("left", "right") for v in values}) == 2
        yield _detail("direction", " ".join(vertical if mixed else values), rest)


def _count(words: Sequence[str]) -> Iterator[Detail]:
    """How many arrows there are: "chevron double left", "chevrons left", "chevron left"."""
    plain = [w for w in words if w not in _COUNTS]
    named = [_COUNTS[w] for w in words if w in _COUNTS]
    heads = [w for w in plain if w.removesuffix("s") in _COUNTED]
    if len(heads) != 1 or len(named) > 1 or len(plain) < 2:
        return
    if sum(w in _DIRECTIONS for w in plain) != 1:  # "arrows left right" are two of another kind
        return
    plural = heads[0] not in _COUNTED
    value = named[0] if named else "double" if plural else "single"
    yield _detail("count", value, [w.removesuffix("s") if w in heads else w for w in plain])


def _badge(words: Sequence[str]) -> Iterator[Detail]:
    if len(words) < 2:
        yield _detail("badge", "", words)
        return
    last = len(words) - 1
    ends = [last] if words[last] in _BADGES else [0] if words[0] in _LEADING else []
    if not ends:
        yield _detail("badge", "", words)
        return
    place = ends[0]
    rest = [w for i, w in enumerate(words) if i != place]
    marked = set(rest) <= _FRAMES or rest[-1] in ("mark", "sign")  # "circle plus", "cross mark"
    if not set(rest) & set(_BADGES) and not marked:
        yield _detail("badge", _BADGES[words[place]], rest)


def _clock(words: Sequence[str]) -> Iterator[Detail]:
    """Time on a clock, as "4:00" or "4:30"."""
    text = " ".join(words)
    match = re.fullmatch(r"(?:clock )?(\w+) (o ?clock|thirty)", text)
    if match and match[1] in _NUMBERS:
        minutes = "30" if match[2] == "thirty" else "00"
        yield _detail("clock", f"{_NUMBERS[match[1]]}:{minutes}", ["clock"])
        return
    match = re.fullmatch(r"(?:clock|clock time|clock hour|time)(?: hour)? (\d+|[a-z]+)", text)
    if match:
        number = _NUMBERS.get(match[1], int(match[1]) if match[1].isdecimal() else 0)
        if 1 <= number <= 12:
            yield _detail("clock", f"{number}:00", ["clock"])


def _dice(words: Sequence[str]) -> Iterator[Detail]:
    match = re.fullmatch(r"(?:dice|die)(?: face)? (\d|[a-z]+)", " ".join(words))
    if match:
        number = _NUMBERS.get(match[1], int(match[1]) if match[1].isdecimal() else 0)
        if 1 <= number <= 6:
            yield _detail("dice", _WORD_OF[number], ["die"])


def _card(words: Sequence[str]) -> Iterator[Detail]:
    rest = [w for w in words if w not in _RANKS and w not in _SUITS]
    rank, suit = ([w for w in words if w in group] for group in (_RANKS, _SUITS))
    if rest == ["card"] and len(rank) == len(suit) == 1:
        yield _detail("card", f"{rank[0]} of {suit[0]}", rest)


def _level(words: Sequence[str]) -> Iterator[Detail]:
    if not _LEVELLED & set(words):
        return
    values = [w for w in words if w in _LEVELS or w.isdecimal()]
    rest = [w for w in words if w not in values]
    if len(values) == 1 and rest and not set(rest) & {"bar", "bars", "alt"}:
        same = {"mid": "medium", "middle": "medium", "zero": "empty"}
        yield _detail("level", same.get(values[0], values[0]), rest)


def _character(words: Sequence[str]) -> Iterator[Detail]:
    """A letter or a digit, alone or in a circle: "circle number 5", "square letter b"."""
    rest = [w for w in words if w not in _MARKS]
    marks = [w for w in words if w in _MARKS]
    values = [w for w in rest if re.fullmatch(r"[a-z]|\d\d?", w) or w in _NUMBERS]
    frames = ["square" if w == "box" else w for w in rest if w in _FRAMES or w == "box"]
    if len(values) == 1 and len(rest) == 1 + len(frames) and (marks or frames):
        value = str(_NUMBERS.get(values[0], values[0]))
        if value != "x":  # a cross in a circle
            yield _detail("character", value, frames or ["plain"])


def _frame(words: Sequence[str]) -> Iterator[Detail]:
    values = [w for w in words if w in _FRAMES]
    rest = [w for w in words if w not in _FRAMES]
    if len(values) <= 1 and rest and not _OWN_FRAME & set(words):
        yield _detail("frame", values[0] if values else "", rest)


_READERS: tuple[Callable[[Sequence[str]], Iterator[Detail]], ...] = (
    _direction, _count, _badge, _clock, _dice, _card, _level, _character, _frame,
)  # fmt: skip


def words_of(detail: Detail, named: str, place: int) -> str:
    """A query that states a detail in words.

    Args:
        named: name of the picture without the detail: "user", "arrow", "woman running".
        place: number that chooses among the wordings.
    """
    options = _WORDINGS[detail.kind](detail.value, named, detail.rest)
    return options[place % len(options)]


def _said_direction(value: str, named: str, rest: str) -> tuple[str, ...]:
    parts = value.split()
    if not POINTING & set(named.split()):
        return (f"{named} {value}",)
    if len(parts) == 1:
        aside = f"{named} to the {value}" if value in ("left", "right") else f"{named} {value}wards"
        return f"{named} pointing {value}", aside, f"{value} {named}"
    vertical = parts[0] in ("up", "down", "top", "bottom") and parts[1] in ("left", "right")
    if vertical:
        return (
            f"{named} pointing {parts[0]} and to the {parts[1]}",
            f"diagonal {named} {parts[0]} {parts[1]}",
        )
    return (f"{named} {value}",)


def _said_badge(value: str, named: str, rest: str) -> tuple[str, ...]:
    if value == "off":
        return f"crossed out {named}", f"{named} with a line through it", f"{named}, crossed out"
    text = _BADGE_TEXT[value]
    return f"{named} {text}", f"{article(named)} {named} {text}"


def _said_clock(value: str, named: str, rest: str) -> tuple[str, ...]:
    hour, minutes = value.split(":")
    spelled = _WORD_OF[int(hour)]
    if minutes == "30":
        return f"clock at half past {spelled}", f"clock showing {value}", f"{spelled} thirty clock"
    return f"clock at {spelled} o'clock", f"clock showing {value}", f"{spelled} o'clock"


def _said_level(value: str, named: str, rest: str) -> tuple[str, ...]:
    if value.isdecimal():
        return (f"{named} {value}", f"{named} at level {value}")
    return (f"{value} {named}", f"{named}, {value}")


def _said_character(value: str, named: str, rest: str) -> tuple[str, ...]:
    what = f"number {value}" if value.isdecimal() else f"letter {value.upper()}"
    if rest == "plain":
        return (what, f"the {what}")
    return f"{what} in {article(rest)} {rest}", f"{rest} with the {what}"


_WORDINGS: Mapping[str, Callable[[str, str, str], tuple[str, ...]]] = {
    "skin": lambda v, n, r: (f"{n} with {v} skin tone", f"{n}, {v} skin"),
    "fill": lambda v, n, r: (
        (f"filled {n}", f"{n}, filled", f"solid {n}")
        if v == "filled"
        else (f"{n} outline", f"outlined {n}", f"{n}, only the outline")
    ),
    "direction": _said_direction,
    "count": lambda v, n, r: (f"{v} {n}",),
    "badge": _said_badge,
    "clock": _said_clock,
    "dice": lambda v, n, r: (f"die showing {v}", f"dice with {v} dots" if v != "one" else "dice 1"),
    "card": lambda v, n, r: (v, f"the {v}", f"playing card {v}"),
    "level": _said_level,
    "character": _said_character,
    "frame": lambda v, n, r: (f"{n} in {article(v)} {v}", f"{v} with {n}"),
}
