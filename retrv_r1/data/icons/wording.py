"""How people type a wish for a thing: articles, frames, case, separators, slips.

A wording is drawn from a name by a random generator: first a frame, such as "icon of {a}", then
at most one change to the spelling. Some frames and some changes are for tests only; training
never draws them, so that robustness to a new wording can be measured.

    >>> word("dog face", np.random.default_rng(4))
    'icon for dog face'
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from string import capwords
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from retrv_r1.data.icons import typos
from retrv_r1.data.icons.english import MODIFIERS, article, indefinite, plural, word_set

Forms: TypeAlias = Literal["train", "test"]

WORDINGS: Mapping[Forms, Mapping[str, float]] = MappingProxyType(
    {
        "train": {
            "{x}": 30, "{a}": 10, "{the}": 4, "{s}": 5, "{turned}": 8, "{verb}": 4,
            "icon of {a}": 3, "an icon of {a}": 2, "picture of {a}": 3, "a picture of {a}": 5,
            "drawing of {a}": 2, "a drawing of {a}": 2, "image of {a}": 2, "photo of {a}": 1,
            "{x} icon": 9, "{ax} icon": 3, "{x} symbol": 3, "{x} emoji": 3, "{x} picture": 1,
            "{x} image": 1, "show me {a}": 4, "i need {ax} icon": 2, "i want {a}": 1,
            "find {a}": 2, "find {the}": 1, "find {ax} icon": 1, "search for {a}": 1,
            "icon for {x}": 3, "symbol for {x}": 2, "icons of {s}": 1, "something like {a}": 1,
            "is there {ax} icon?": 1, "a sign that means {x}": 1, "give me {a}": 1,
        },
        "test": {
            "could you find me {a}?": 2, "{x} pictogram": 3, "i'm looking for {a}": 3,
            "{x} clipart": 2, "an image that shows {a}": 2, "{x} glyph": 2,
            "which one is {the}?": 1, "where is {the}?": 2, "please show {the}": 2,
            "{x} svg": 2, "an illustration of {a}": 2,
            "what does {ax} icon look like": 2, "{x} for my website": 1, "{a}, please": 2,
            "do you have {ax} symbol?": 2, "one of {those}": 1, "{camel}": 3, ":{snake}:": 2,
            "{joined}": 2, "{x}": 6,
        },
    }
)  # fmt: skip
"""Frames of wordings with their weights, by use.

``{x}`` is the name, ``{a}`` the name with its article ("some scissors"), ``{ax}`` the name behind
the article of "an umbrella icon", ``{the}`` the name behind "the", ``{s}`` the plural, ``{those}``
the plural behind "those", ``{turned}`` the name in another order of words, ``{verb}`` what one does
with it if it is an action, ``{camel}``, ``{snake}`` and ``{joined}`` the name as an identifier.
"""

SIX: tuple[str, ...] = (
    "{x}", "{a}", "a picture of {a}", "{X} icon", "show me {a}", "{typo}",
)  # fmt: skip
"""The six wordings of the demo measure; see :func:`six`."""

TYPO_SHARE = 0.1
CASE_SHARE = 0.12
SEPARATOR_SHARE = 0.06
PUNCTUATION_SHARE = 0.08
_TRAILING = (".", "!", "?", "...", " ", ",")
# A name that starts with one of these is an action: "delete", "add user".
VERBS = word_set(
    "add remove delete edit save send upload download undo redo refresh reload merge sort zoom "
    "move rotate resize insert open close create import export install uninstall restore reset "
    "cancel confirm accept reject approve decline block mute unmute unlock hide show expand "
    "collapse minimize maximize follow unfollow subscribe unsubscribe pay buy sell pause skip "
    "shuffle repeat connect disconnect attach detach unpin translate erase clean wash eat drink "
    "read write learn cook paste share print copy invite improve compare find search discard "
    "enable disable activate deactivate exit leave enter destroy throw"
)
# "dog face" is also the "face of a dog"; "sad face" is no face of a sad.
_PARTS = word_set("face head tail paw ear nose")
_CREATURES = word_set(
    "dog cat horse pig cow mouse rabbit bear tiger lion monkey dragon panda fox wolf frog hamster "
    "unicorn koala sheep goat bird chicken duck eagle owl elephant dinosaur whale shark fish snake "
    "turtle crocodile robot clown alien baby man woman girl boy child person moon sun"
)


def _camel(name: str) -> str:
    first, *rest = name.replace("-", " ").split() or [""]
    return first + "".join(word.capitalize() for word in rest)


def turned(name: str) -> str:
    """A name in another order of words, or the name itself.

    "dog face" becomes "face of a dog", "flag of france" "france flag", "arrow left" "left arrow".
    """
    words = name.split()
    if len(words) == 3 and words[1] == "of":
        return f"{words[2]} {words[0]}"
    if len(words) != 2:
        return name
    first, last = words
    if last in _PARTS and first in _CREATURES:
        return f"{last} of {indefinite(first)}"
    if first not in VERBS and (first in MODIFIERS) != (last in MODIFIERS):
        return f"{last} {first}"
    return name


def action(name: str, draw: float = 0.0) -> str:
    """What one does with a name that starts with a verb: "to delete something"; or the name.

    Args:
        draw: number in [0, 1) that chooses among the wordings.
    """
    words = name.split()
    if not words or words[0] not in VERBS:
        return name
    rest = words[1:]
    if rest and (rest[0] in MODIFIERS or rest[-1] in MODIFIERS):
        return name
    thing = indefinite(" ".join(rest)) if rest else "something"
    doing = f"{words[0]} {thing}"
    options = (f"to {doing}", doing, f"button to {doing}", f"how to {doing}", f"icon to {doing}")
    return options[int(draw * len(options))]


def _is_action(name: str) -> bool:
    return name.split(maxsplit=1)[0] in VERBS


# What each field of a frame makes of a name.
_FIELDS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "x": lambda name: name,
        "a": lambda name: name if _is_action(name) else indefinite(name),
        "ax": lambda name: f"{article(name)} {name}",
        "the": lambda name: name if _is_action(name) else f"the {name}",
        "s": lambda name: name if _is_action(name) else plural(name),
        "those": lambda name: (
            f"those {name} icons" if plural(name) == name else f"those {plural(name)}"
        ),
        "turned": turned,
        "verb": action,
        "camel": _camel,
        "snake": lambda name: name.replace(" ", "_").replace("-", "_"),
        "joined": lambda name: name.replace(" ", ""),
    }
)


class _Frames:
    """Frames as (what stands before, field, what stands behind), for drawing by weight."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.frames = [re.split(r"[{}]", frame) for frame in weights]
        self.sums = list(accumulate(weights.values()))

    def draw(self, rng: np.random.Generator) -> list[str]:
        return self.frames[bisect_right(self.sums, rng.random() * self.sums[-1])]


_FRAMES: Mapping[Forms, _Frames] = MappingProxyType({k: _Frames(v) for k, v in WORDINGS.items()})
_BARE = ["", "x", ""]


def word(
    name: str, rng: np.random.Generator, *, forms: Forms = "train", language: str = "en"
) -> str:
    """One way to type a wish for a thing.

    Args:
        name: lower-case name or search term; several terms are separated by commas.
        forms: ``train``, or ``test`` for wordings that training never sees.
        language: code of the name's language; frames are English, so that a name in another
            language changes in case, punctuation and slips alone.
    Raises:
        ValueError: the name is empty, or ``forms`` is unknown.
    """
    if not name.strip():
        raise ValueError("an empty name has no wording: leave such rows out")
    if forms not in _FRAMES:
        raise ValueError(f"forms must be 'train' or 'test', not {forms!r}")
    bare = language != "en" or "," in name
    before, field, behind = _BARE if bare else _FRAMES[forms].draw(rng)
    if field in ("joined", "camel") and name.count(" ") > 1:  # nobody types a sentence so
        field = "x"
    shown = action(name, rng.random()) if field == "verb" else _FIELDS[field](name)
    text = f"{before}{shown}{behind}"
    spell = _train_spelling if forms == "train" else _test_spelling
    return spell(text, rng, plain=text == name)


def _train_spelling(text: str, rng: np.random.Generator, *, plain: bool) -> str:
    """At most one change to a text's spelling; ``plain`` says that it is a name alone."""
    draw = rng.random() - TYPO_SHARE
    if draw < 0:
        return typos.typo(text, rng, typos.TRAIN)
    draw -= CASE_SHARE
    if draw < 0:
        case = (str.upper, capwords, str.capitalize, str.capitalize)[int(rng.random() * 4)]
        return case(text)
    draw -= PUNCTUATION_SHARE
    if draw < 0:
        return text.rstrip("?") + _TRAILING[int(rng.random() * len(_TRAILING))]
    draw -= SEPARATOR_SHARE
    if draw < 0 and plain and "," not in text:
        return text.replace(" ", "-" if rng.random() < 0.5 else "_")
    return text


def _test_spelling(text: str, rng: np.random.Generator, *, plain: bool) -> str:
    """A change that training never makes; a bare name always has one, if it can."""
    draw = rng.random()
    if not plain:
        return typos.typo(text, rng, typos.TEST) if draw < TYPO_SHARE else text
    slipped = typos.typo(text, rng, typos.TEST) if draw < 0.5 else text
    if slipped != text:
        return slipped
    return f'"{text}"' if draw < 0.75 else f"{text}!!"


def slip(name: str) -> str:
    """A name with one small slip, always the same: the two middle letters of its longest word.

    "violin" becomes "viloin". A name whose words are shorter than five letters gets a "!".
    """
    words = name.split()
    longest = max(words, key=len, default="")
    middle = len(longest) // 2 - 1
    changed = typos.swap(longest, middle, 0.0) if len(longest) >= typos.MIN_LETTERS else longest
    if changed == longest:
        return f"{name}!"
    words[words.index(longest)] = changed
    return " ".join(words)


def six(name: str) -> tuple[str, ...]:
    """The six wordings of the demo measure, in the order of ``SIX``.

    "violin", "a violin", "a picture of a violin", "VIOLIN icon", "show me a violin", "viloin".
    """
    a = indefinite(name)
    return tuple(f.format(x=name, a=a, X=name.upper(), typo=slip(name)) for f in SIX)
