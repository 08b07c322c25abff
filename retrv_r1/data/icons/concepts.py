"""Concepts: one key for what many sets draw, and which concepts training never sees."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from retrv_r1.data.icons.corpus import Split
from retrv_r1.data.icons.families import SHARED
from retrv_r1.data.icons.names import group_key, singular

TEST_SHARE, VAL_SHARE = 0.03, 0.02
_FAMILIES = 3  # hands that must have drawn a concept, before it is held out
_BRAND_SETS = 3  # sets of brands that must have a name, before it is one


def share(seed: int, *key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    digest = hashlib.sha256("\n".join((str(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def merge_plurals(codes_of: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Plural keys that mean the same as their singular, with it.

    A set that has both tells them apart: "user" is one person, "users" are several. Two such sets
    are enough to keep them apart everywhere.

    Args:
        codes_of: concept keys of each set.
    """
    every = {code for codes in codes_of.values() for code in codes}
    merged = {}
    for code in sorted(every):
        head, _, last = code.rpartition(" ")
        one = f"{head} {singular(last)}".strip()
        if one != code and one in every:
            both = sum(one in codes and code in codes for codes in codes_of.values())
            if both < 2:
                merged[code] = one
    return merged


_PRODUCTIVE = 60  # names that a word is a part of, from which on it is a word and no brand
_ONLY_BRANDS = frozenset(
    (
        *("android", "angular", "edge", "facebook", "fedora", "git", "github", "google", "ibm"),
        *("ios", "medium", "microsoft", "opera", "periscope", "steam", "twitter", "vine"),
        *("windows", "xbox"),
    )
)
"""Brands that are words of things, or parts of many names; the drawings are the brands'."""


def brands(
    names_of: Mapping[str, Collection[str]],
    things: Collection[str],
    names: Iterable[Sequence[str]],
) -> frozenset[str]:
    """Names that several sets of brands have and that are not words for things.

    Brands are called "box", "image" and "target" too: a word that a drawn thing's name has, or that
    very many names have, stays.

    Args:
        names_of: names of each set of brands.
        things: words in the names of sets that draw things: emoji, games.
        names: words of the names of all other sets.
    """
    count = Counter(name for found in names_of.values() for name in set(found))
    several = {name.replace("-", " ") for name, sets in count.items() if sets >= _BRAND_SETS}
    parts = Counter(word for name in set(map(tuple, names)) if len(name) > 1 for word in set(name))
    words = {word for word, number in parts.items() if number >= _PRODUCTIVE} | set(things)
    return frozenset(several - words | several & _ONLY_BRANDS)


_MARKS = frozenset(("logo", "logos", "brand", "social"))
_FRAMES = frozenset(("square", "circle"))


def is_brand(code: str, known: Collection[str]) -> bool:
    """Whether a concept is a brand: by its name, by a word that says so, or in a frame."""
    words = code.split()
    rest = [word for word in words if word not in _FRAMES]
    marked = bool(_MARKS & {words[0], words[-1]}) and len(words) > 1
    return code in known or marked or (len(rest) < len(words) and " ".join(rest) in known)


def hold_out(families_of: Mapping[str, Collection[str]], seed: int) -> dict[str, Split]:
    """Split of the concepts that are held out, by concept key.

    Keys of one group ("violin", "violins") are held out together. What a training style of the
    pictographs shows is not held out, because a model learns from both.

    Args:
        families_of: families that drew each concept.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for code, families in families_of.items():
        groups[group_key(code.split())] |= set(families)
    held: dict[str, Split] = {}
    for code in families_of:
        group = group_key(code.split())
        place = share(seed, "concept", group)
        drawn = groups[group]
        if len(drawn) < _FAMILIES or drawn & SHARED:
            continue
        if place < TEST_SHARE + VAL_SHARE:
            held[code] = "test" if place < TEST_SHARE else "val"
    return held


class Words:
    """Finds the words of names that are written without gaps: "brokenheart".

    Args:
        names: words of names that are written with gaps; how often a word occurs weighs it.
    """

    def __init__(self, names: Iterable[Sequence[str]]) -> None:
        count = Counter(w for words in names for w in words if w.isalpha())
        total = sum(count.values())
        self._cost = {
            w: math.log(total / n) for w, n in count.items() if n >= 3 and (len(w) > 2 or n >= 300)
        }
        self._longest = max(map(len, self._cost), default=0)

    def __contains__(self, word: str) -> bool:
        return word in self._cost

    def split(self, text: str) -> tuple[str, ...]:
        """The likeliest words of a name; the name itself where no words fit."""
        if text in self._cost or not text.isalpha():
            return (text,)
        best: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
        for end in range(1, len(text) + 1):
            choices = [
                (best[start][0] + self._cost[word], (*best[start][1], word))
                for start in range(max(0, end - self._longest), end)
                if (word := text[start:end]) in self._cost and best[start][0] < math.inf
            ]
            best.append(min(choices, default=(math.inf, ())))
        return best[-1][1] or (text,)
