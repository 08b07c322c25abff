"""Small slips of the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

import numpy as np

from retrv_r1.data.icons.english import word_set

MIN_LETTERS = 5  # shorter words become other words too easily
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_VOWELS = "aeiou"
# Words of the frames; a slip there would leave the name as it is.
_FRAMES = word_set(
    "picture drawing symbol emoji image illustration clipart pictogram something showing "
    "looking which where please could button there glyph website"
)
_WORD = re.compile(rf"[A-Za-z]{{{MIN_LETTERS},}}")


def _neighbours() -> dict[str, str]:
    """Keys beside each key, in its own row and in the rows above and below."""
    found = {}
    for r, row in enumerate(_ROWS):
        for c, key in enumerate(row):
            near = [row[i] for i in (c - 1, c + 1) if 0 <= i < len(row)]
            for other in (r - 1, r + 1):
                if 0 <= other < len(_ROWS):
                    near += _ROWS[other][max(c - (other > r), 0) : c + 1 + (other < r)]
            found[key] = "".join(dict.fromkeys(near))
    return found


NEIGHBOURS = MappingProxyType(_neighbours())


def swap(word: str, place: int, draw: float) -> str:
    """Exchanges two neighbouring letters; ``place`` is that of the first."""
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def drop(word: str, place: int, draw: float) -> str:
    """Leaves a letter out."""
    return word[:place] + word[place + 1 :]


def double(word: str, place: int, draw: float) -> str:
    """Types a letter twice."""
    return word[: place + 1] + word[place:]


def neighbour(word: str, place: int, draw: float) -> str:
    """Hits the key beside; ``draw`` in [0, 1) says which."""
    keys = NEIGHBOURS.get(word[place].lower(), word[place])
    return word[:place] + keys[int(draw * len(keys))] + word[place + 1 :]


def vowel(word: str, place: int, draw: float) -> str:
    """Writes another vowel, as one who spells by ear; at or behind ``place`` if there is one."""
    places = [i for i, c in enumerate(word) if i and c in _VOWELS]
    if not places:
        return drop(word, place, draw)
    at = next((i for i in places if i >= place), places[-1])
    other = [v for v in _VOWELS if v != word[at]]
    return word[:at] + other[int(draw * len(other))] + word[at + 1 :]


TRAIN: tuple[Callable[[str, int, float], str], ...] = (swap, drop, double, neighbour)
TEST: tuple[Callable[[str, int, float], str], ...] = (vowel,)


def typo(
    text: str, rng: np.random.Generator, kinds: tuple[Callable[[str, int, float], str], ...]
) -> str:
    """A text with one slip in a word of five letters or more; its first letter stays.

    Args:
        kinds: functions of a word, a place in it and a number in [0, 1); one of them is drawn.
    Returns:
        The text itself if it has no such word.
    """
    words = [m for m in _WORD.finditer(text) if m.group().lower() not in _FRAMES]
    if not words:
        return text
    match = words[int(rng.random() * len(words))]
    word = match.group()
    kind = kinds[int(rng.random() * len(kinds))]
    place = 1 + int(rng.random() * (len(word) - 2))
    changed = kind(word, place, rng.random())
    if changed == word:  # two equal letters were exchanged
        changed = drop(word, place, 0.0)
    return text[: match.start()] + changed + text[match.end() :]
