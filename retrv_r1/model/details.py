"""What chains say of details: the ideal those asked for, an inspection those that decide.

A detail decides beside a close candidate that does not have it: of a filled and an outlined "star"
a chain says "star filled" and "star outline"; of "arrow left" and "arrow right" the names say
enough. Training writes statements by these rules, and evaluation judges them by the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from retrv_r1.model.chains import content_words, words

# Words that two names may share without naming similar things.
_COMMON = {
    *("with", "from", "and", "the", "for", "skin", "tone", "dark", "light", "medium"),
    *("face", "flag", "sign", "button"),
}
UNNAMED = ("fill",)
"""Kinds of details that no name says: whether a thing is drawn filled or as an outline."""


@dataclass(frozen=True)
class Shown:
    """What is known of a candidate: a name, and values of details by kind ("fill": "filled")."""

    name: str
    details: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def words(self) -> list[str]:
        """All words of the name."""
        return words(self.name, None).split()


def details_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """The details that a candidate's metadata has: values by kind."""
    found = meta.get("details") or {}
    return {kind: str(value) for kind, value in found.items() if value}


def asked_for(meta: Mapping[str, Any]) -> str:
    """The value of the detail that a query's metadata says it asks for; empty if there is none."""
    return str((meta.get("detail") or {}).get("value") or "")


def asked_words(query: str, value: str) -> str:
    """The content words of a query; where it is cut, the words of the detail asked for stay."""
    return content_words(query, keep=_words_of([value]))


def are_close(one: Shown, other: Shown) -> bool:
    """Whether two candidates show similar things: their names share a word of weight.

    Between candidates with a detail of one kind short words count, too: "die two" and "die six".
    """
    if one.words == other.words:
        return True
    shared = set(one.words) & set(other.words) - _COMMON
    if any(len(word) > 3 for word in shared):
        return True
    values = _words_of([*one.details.values(), *other.details.values()])
    return bool(one.details.keys() & other.details.keys() and shared - set(values))


def statement(one: Shown, others: Sequence[Shown], more: Collection[str] = ()) -> str:
    """What an inspection says of a candidate: its name, with the details that decide.

    Beside a candidate of the same name these are all in which it differs, beside another close one
    those that names do not say. Where that is too long, the name's last words are left out: never
    a detail that decides, whether it is in the name or added to it.

    Args:
        others: what is known of the other candidates that the chain names.
        more: kinds of details that are said besides.
    """
    added, kept = [], []
    for kind, value in one.details.items():
        unlike = [o for o in others if o.details.get(kind) != value and are_close(one, o)]
        if unlike or kind in more:
            kept += _words_of([value])
        if kind in more or any(kind in UNNAMED or o.words == one.words for o in unlike):
            added += _words_of([value])
    return _said(one.words, added, kept)


def with_detail(name: str, meta: Mapping[str, Any]) -> str:
    """The name of what a query asks for, with the detail that its metadata says it asks for."""
    asked = _words_of([asked_for(meta)])
    unnamed = (meta.get("detail") or {}).get("kind") in UNNAMED
    return _said(words(name, None).split(), asked if unnamed else (), asked)


def states(said: str, one: Shown, others: Sequence[Shown]) -> bool:
    """Whether a statement has the name and the deciding details, and besides only other details."""
    told = set(said.split())
    more = [kind for kind, value in one.details.items() if told >= set(_words_of([value]))]
    least = set(statement(one, others, more).split())
    return least <= told <= {*one.words, *_words_of(one.details.values())}


def _said(name: Sequence[str], added: Sequence[str], kept: Sequence[str]) -> str:
    missing = [word for word in dict.fromkeys(added) if word not in name]
    return words(" ".join([*name, *missing]), keep=kept)


def _words_of(values: Iterable[str]) -> list[str]:
    return [word for value in values for word in words(value).split()]
