"""Looks up pictures of an icon corpus by what they mean."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

from retrv_r1.data.icons.corpus import IconCorpus, IconRow
from retrv_r1.data.icons.english import word_set

_SMALL = word_set("a an the of with and")
_ORDERED = word_set("left right up down top bottom in out over under to from")
_MOST_WORDS = 6


@lru_cache(maxsize=1 << 18)
def bag(text: str) -> str:
    """Key of a name that does not depend on the order of words: "user plus", "plus user".

    Names with two words such as `left` and `down`, whose order tells drawings apart, keep it.
    """
    words = [word for word in text.lower().split() if word not in _SMALL] or text.lower().split()
    turning = sum(word in _ORDERED for word in words)
    return " ".join(words if turning > 1 else sorted(words))


def sayable(text: str) -> bool:
    """Whether a name can be a query: it has a word and is short."""
    return bool(re.search(r"[a-z]{3}", text)) and len(text.split()) <= _MOST_WORDS


class Index:
    """Pictures of a corpus by concept, with the concepts that mean the same.

    Args:
        corpus: the corpus.
    """

    def __init__(self, corpus: IconCorpus) -> None:
        self.corpus = corpus
        self._named: dict[str, set[str]] = defaultdict(set)
        for code, names in corpus.aliases.items():
            for name in names:
                if code.startswith("flag") or name.startswith("flag"):
                    continue  # islands are drawn by the flags of their states
                self._named[bag(code)].add(bag(name))
                self._named[bag(name)].add(bag(code))

    def same(self, text: str) -> frozenset[str]:
        """Keys of all concepts that a text names, by any of their names."""
        key = bag(text)
        return frozenset({key, *self._named.get(key, ())})

    @cached_property
    def by_icon(self) -> Mapping[tuple[str, str], IconRow]:
        """Picture by set and name in the set."""
        return {(row.set, row.icon): row for row in self.corpus.rows}

    def held_out(self, text: str) -> bool:
        """Whether a text names a concept that training must not name."""
        return not self.same(text).isdisjoint(self._held)

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset(bag(code) for code in self.corpus.splits)


class Pool:
    """Pictures that one search goes through.

    Args:
        index: index of the corpus.
        rows: pictures.
    """

    def __init__(self, index: Index, rows: Iterable[IconRow]) -> None:
        self.index = index
        self.rows: Sequence[IconRow] = tuple(rows)
        self._by_bag: dict[str, list[IconRow]] = defaultdict(list)
        for row in self.rows:
            self._by_bag[bag(row.code)].append(row)

    def showing(self, code: str, gender: str = "", skin: str = "") -> list[IconRow]:
        """All pictures that show a concept; any gender or skin unless it is asked for."""
        found = [r for key in sorted(self.index.same(code)) for r in self._by_bag.get(key, ())]
        return [r for r in found if gender in ("", r.gender) and skin in ("", r.skin)]

    def of_bags(self, bags: Iterable[str]) -> list[IconRow]:
        """All pictures of some concepts, by key."""
        return [row for key in sorted(set(bags)) for row in self._by_bag.get(key, ())]

    @property
    def bags(self) -> Mapping[str, Sequence[IconRow]]:
        """Pictures by key of their concept."""
        return self._by_bag
