"""Chains of thought in one fixed wording, in which every statement can be checked.

    ideal: violin. close: [3] guitar, [7] violin. inspect [7] violin with a bow; best: [7]

The ideal is what the query asks for, in its own words, or the name of its picture. Then come likely
candidates by label and name, those of them that are looked at in full with the detail that decides,
and the decision. Only the ideal is always there: nothing is named where nothing is close, and a
chain may leave the decision to the answer behind it. There a list's scores are read, which are a
probability only while the label is not yet written.

Training writes chains as :class:`ChainPart`, whose text is tokens; a reranker's reasoning has
``[k]`` for the label of candidate k - 1, which :func:`parse` reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_WORDS = 8
"""Words to which ideals, names and statements are cut."""

_IDEAL, _CLOSE, _BEST = "ideal:", " close:", " best:"
_WORDS = r"[^.,;:\[\]]+"  # `words` leaves none of these characters
_CLAUSE = re.compile(
    rf"\s*(?:ideal:(?P<ideal>{_WORDS})\."
    rf"|close:(?P<near>(?:\s*\[\d+\]{_WORDS},)*\s*\[\d+\]{_WORDS})\."
    rf"|inspect\s*\[(?P<seen>\d+)\](?P<statement>{_WORDS});"
    r"|best:\s*\[(?P<best>\d+)\])"
)
_NAMED = re.compile(rf"\[(\d+)\]({_WORDS})")
_PICTURE = r"(?:icon|picture|image|photo|symbol|drawing|emoji|pictogram|glyph)s?"
# Wrappings of queries. A word of them alone, such as "search" or "image", is a thing asked for.
_BEFORE = re.compile(
    r"(?:please |an? |the |some |to |i (?:want|need) |looking for |(?:show|give|find|get) me "
    r"|(?:show|give|find|get) (?=(?:an?|the|some) )"
    rf"|{_PICTURE} (?:of|for|showing|meaning|(?:that|which) (?:shows|means|says)) )(?=\w)"
)
_AFTER = re.compile(rf"(?<!\ba)(?<!\ban)(?<!\bthe)(?<!\bof) (?:{_PICTURE}|please)$")
_ARTICLES = re.compile(r"\b(?:a|an|the) (?=\w)")


@dataclass(frozen=True)
class ChainPart:
    """A part of a chain: words, a candidate's label, or an inspection of a candidate."""

    kind: Literal["text", "label", "inspect"]
    text: str = ""
    candidate: int = -1


@dataclass(frozen=True)
class Chain:
    """What a chain says. Candidates are indices in the list.

    Attributes:
        ideal: what the query asks for; empty if the chain does not say it.
        near: likely candidates, with their names.
        seen: inspected candidates, with what they show.
        best: the decision, or None if it is left to the answer.
        damage: pieces of text that are not in the chain's form; empty unless it was parsed.
    """

    ideal: str
    near: tuple[tuple[int, str], ...] = ()
    seen: tuple[tuple[int, str], ...] = ()
    best: int | None = None
    damage: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the chain has an ideal and nothing but clauses of the form, in their order."""
        return bool(self.ideal) and not self.damage

    def parts(self) -> list[ChainPart]:
        """The chain as it is written, without the surrounding tags.

        Raises:
            ValueError: an ideal, a name or a statement has no words.
        """
        parts = [_text(f"{_IDEAL}{_said(self.ideal)}.")]
        if self.near:
            parts.append(_text(_CLOSE))
        for place, (candidate, name) in enumerate(self.near, 1):
            end = "." if place == len(self.near) else ","
            parts += [ChainPart("label", candidate=candidate), _text(_said(name) + end)]
        for candidate, statement in self.seen:
            parts += [ChainPart("inspect", candidate=candidate), _text(_said(statement) + ";")]
        if self.best is not None:
            parts += [_text(_BEST), ChainPart("label", candidate=self.best)]
        return _joined(parts)

    def text(self) -> str:
        """The chain as a reranker's reasoning shows it."""
        shown = {"text": "{0.text}", "label": " [{1}]", "inspect": " inspect [{1}]"}
        return "".join(shown[part.kind].format(part, part.candidate + 1) for part in self.parts())


def parse(text: str) -> Chain:
    """The chain that a reranker's reasoning says.

    Whatever has not the form of a clause, stands out of order or stands twice goes to ``damage``;
    the clauses around it are read all the same.
    """
    read = _Reader()
    end = 0
    for match in _CLAUSE.finditer(text):
        read.damaged(text[end : match.start()])
        read.clause(match)
        end = match.end()
    read.damaged(text[end:])
    return Chain(read.ideal, tuple(read.near), tuple(read.seen), read.best, tuple(read.damage))


def words(text: str, most: int | None = MOST_WORDS, keep: Collection[str] = ()) -> str:
    """A text as chains write it: lower case, letters, digits and apostrophes, ``most`` words.

    Equal things have equal words, however they are spelled: "Arrow-left", "arrow_left".

    Args:
        keep: words that stay where a text is cut; the last of the others are left out.
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    plain = (c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    said = "".join(plain).split()
    if most is not None and len(said) > most:
        first = sorted(range(len(said)), key=lambda place: said[place] not in keep)[:most]
        said = [said[place] for place in sorted(first)]
    return " ".join(said)


def content_words(text: str, keep: Collection[str] = ()) -> str:
    """The words of an English query that say what it asks for, without its wrapping.

    "a picture of a violin" is "violin", and so are "Violin!" and "the violin icon".

    Args:
        keep: see :func:`words`.
    """
    plain, before = words(text, None), ""
    while plain != before:
        before = plain
        wrapping = _BEFORE.match(plain)
        plain = _AFTER.sub("", plain[wrapping.end() :] if wrapping else plain)
    return words(_ARTICLES.sub("", plain), keep=keep)


def phrases() -> list[str]:
    """The fixed wording of chains, for training a tokenizer."""
    return [_IDEAL, _CLOSE, _BEST, ".", ",", ";"]


class _Reader:
    """The clauses of a chain, as they are found one after another."""

    def __init__(self) -> None:
        self.ideal = ""
        self.near: list[tuple[int, str]] = []
        self.seen: list[tuple[int, str]] = []
        self.best: int | None = None
        self.damage: list[str] = []

    def damaged(self, text: str) -> None:
        if text := text.strip():
            self.damage.append(text)

    def clause(self, match: re.Match[str]) -> None:
        later = bool(self.near or self.seen or self.best is not None)
        ideal, near, seen, statement, best = match.groups()
        in_order = self.best is None
        if ideal is not None:
            in_order = not (self.ideal or later)
            if in_order:
                self.ideal = words(ideal)
        elif near is not None:
            in_order = not later
            if in_order:
                self.near = [(int(k) - 1, words(name)) for k, name in _NAMED.findall(near)]
        elif in_order and seen is not None:
            self.seen.append((int(seen) - 1, words(statement)))
        elif in_order:
            self.best = int(best) - 1
        if not in_order:
            self.damaged(match.group())


def _text(text: str) -> ChainPart:
    return ChainPart("text", text)


def _said(text: str) -> str:
    """The words of a name behind a blank."""
    if not (plain := words(text)):
        raise ValueError(f"a chain cannot say {text!r}: it has no letters or digits")
    return f" {plain}"


def _joined(parts: Sequence[ChainPart]) -> list[ChainPart]:
    """The same parts, with neighbouring texts as one, since each is tokenised alone."""
    joined: list[ChainPart] = []
    for part in parts:
        if joined and part.kind == joined[-1].kind == "text":
            joined[-1] = _text(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined
