"""Named pictures: what a model from scratch learns to see, and the texts that people would type.

A *thing* is what a name means: the concept of an icon, with skin tone and gender where the name
has them. Pictures of one thing by different hands are drawn together, because what they share is
the thing and not the hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrv_r1.data.icons.wording import word
from retrv_r1.data.pack import HELD_OUT
from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Corpus, Entry, ListExample, described_pictures

PICTURES, TERMS = "pictures.jsonl", "terms.jsonl"
_COLOUR = 3.0
"""How much more often things are drawn that have a picture with colours."""
_TERM, _ALIAS = 0.3, 0.1
"""Shares of texts that are search terms, and other names, of things that have some."""


@dataclass(frozen=True)
class Draw:
    """Pictures of a step, and a text for each.

    Attributes:
        pictures: rows of the bank.
        things: number of the thing that each picture shows, ``[b]``.
        texts: a text that means it, as someone would type it.
    """

    pictures: list[int]
    things: np.ndarray
    texts: list[str]


class NamedPictures:
    """Training pictures by the thing that they show.

    Args:
        pictures: rows of the bank.
        things: the thing of each picture, a short text.
        texts: name of each picture in full.
        hands: the hand that drew each picture.
        glyphs: whether each picture has no colour of its own.
        terms, aliases: search terms and other names of things.
    Attributes:
        names: the things, in the order of their numbers.
    """

    def __init__(
        self,
        pictures: Sequence[int],
        things: Sequence[str],
        texts: Sequence[str],
        hands: Sequence[str],
        glyphs: np.ndarray,
        terms: Mapping[str, Sequence[str]],
        aliases: Mapping[str, Sequence[str]],
    ) -> None:
        if not pictures:
            raise ConfigError("the data name no training picture")
        self.names = sorted(set(things))
        number = {name: n for n, name in enumerate(self.names)}
        thing = np.array([number[name] for name in things])
        order = np.argsort(thing, kind="stable")
        self.pictures = np.asarray(pictures)[order]
        self.texts = [texts[n] for n in order]
        self.hands = np.unique(np.asarray(hands), return_inverse=True)[1][order]
        self.first = np.searchsorted(thing[order], np.arange(len(self.names) + 1))
        self.terms = {number[name]: tuple(found) for name, found in terms.items() if name in number}
        self.aliases = {
            number[name]: tuple(found) for name, found in aliases.items() if name in number
        }
        self._thing_of = {int(p): int(t) for p, t in zip(self.pictures, thing[order], strict=True)}
        self._number = number
        # A thing that many hands drew is drawn more often, but not as often as it has pictures;
        # and one that some hand drew in colour more often than the signs of user interfaces.
        coloured = np.maximum.reduceat(~glyphs[order], self.first[:-1])
        self._reach = np.cumsum(np.diff(self.first) ** 0.5 * np.where(coloured, _COLOUR, 1.0))

    def draw(self, rng: np.random.Generator, count: int) -> Draw:
        """Draws ``count`` pictures, two of each thing by two hands where there are two."""
        chosen: list[int] = []
        things: list[int] = []
        texts: list[str] = []
        while len(chosen) < count:
            at = int(np.searchsorted(self._reach, rng.random() * self._reach[-1], side="right"))
            members = np.arange(self.first[at], self.first[at + 1])
            one = int(rng.choice(members))
            others = members[self.hands[members] != self.hands[one]]
            pair = [one, int(rng.choice(others))] if len(others) else [one]
            for place in pair[: count - len(chosen)]:
                chosen.append(int(self.pictures[place]))
                things.append(at)
                texts.append(self.text(at, place, rng))
        return Draw(chosen, np.array(things), texts)

    def likeliest(self, count: int) -> list[int]:
        """The things that are drawn most often, by number."""
        chances = np.diff(self._reach, prepend=0.0)
        return np.argsort(-chances, kind="stable")[:count].tolist()

    def shown(self, thing: int) -> np.ndarray:
        """Pictures of a thing, rows of the bank."""
        return self.pictures[self.first[thing] : self.first[thing + 1]]

    def name(self, picture: int) -> str | None:
        """Name of the thing that a picture of the bank shows, if it is known."""
        thing = self._thing_of.get(picture)
        return None if thing is None else self.names[thing]

    def thing(self, entry: Entry) -> int:
        """Number of the thing that an entry means: its picture's, or that of its text; or -1."""
        if entry.picture is not None:
            return self._thing_of.get(entry.picture, -1)
        return self._number.get((entry.text or "").lower(), -1)

    def things(self, lists: Sequence[ListExample]) -> list[int]:
        """The thing that each list's query asks for, then that of each candidate; or -1."""
        answers = (None if x.answer is None else x.candidates[x.answer] for x in lists)
        asked = [-1 if answer is None else self.thing(answer) for answer in answers]
        return asked + [self.thing(candidate) for x in lists for candidate in x.candidates]

    def any_text(self, thing: int, rng: np.random.Generator) -> str:
        """A text for a thing, whichever picture shows it."""
        return self.text(thing, int(rng.integers(self.first[thing], self.first[thing + 1])), rng)

    def vocabulary(self) -> Iterator[str]:
        """All texts that a tokenizer should know, those of many pictures several times."""
        for texts in (self.texts, *self.terms.values(), *self.aliases.values()):
            for text in texts:
                yield text
                yield " " + text

    def text(self, thing: int, place: int, rng: np.random.Generator) -> str:
        """A text for the picture at a place, as someone would type it."""
        kind = rng.random()
        if kind < _TERM and (terms := self.terms.get(thing)):
            few = rng.permutation(len(terms))[: 1 + int(rng.integers(3))]
            return " ".join(terms[n] for n in few)
        if kind < _TERM + _ALIAS and (aliases := self.aliases.get(thing)):
            return word(aliases[int(rng.integers(len(aliases)))], rng, forms="train")
        return word(self.texts[place], rng, forms="train")


def named_pictures(corpus: Corpus) -> NamedPictures:
    """The named training pictures of all data sets of a corpus.

    Data sets whose ``pictures.jsonl`` has names (``retrv-r1 data icons``) give all their training
    pictures; of others those count that a candidate with a name shows.
    """
    pictures: list[int] = []
    things: list[str] = []
    texts: list[str] = []
    hands: list[str] = []
    terms: dict[str, list[str]] = defaultdict(list)
    aliases: dict[str, list[str]] = defaultdict(list)

    def add(picture: int, thing: str, text: str, hand: str) -> None:
        pictures.append(picture)
        things.append(thing.lower())
        texts.append(text)
        hands.append(hand)

    listed: set[int] = set()
    parts = [(offset, root, _read_lines(root / PICTURES)) for root, offset in corpus.bank.parts]
    # What one data set holds out, another may not show.
    barred = {
        line["name"].lower()
        for _, _, lines in parts
        for line in lines
        if line.get("split") in ("unseen", "composition")
    }
    barred |= {name.lower() for root, _ in corpus.bank.parts for name in _held_out(root)}
    for offset, root, lines in parts:
        if not lines or "family" not in lines[0]:
            continue
        listed.update(range(offset, offset + len(lines)))
        for number, line in enumerate(lines):
            if line["split"] == "train" and not barred & {line["name"].lower(), line["code"]}:
                person = line.get("skin") or line.get("gender")
                thing = line["name"] if person else line["code"]
                add(offset + number, thing, line["name"], line["family"])
        for line in _read_lines(root / TERMS):
            if line.get("split", "train") == "train":
                terms[line["code"].lower()] += line["terms"]
        if (path := root / "concepts.json").is_file():
            for code, names in json.loads(path.read_text(encoding="utf-8"))["aliases"].items():
                aliases[code.lower()] += names
    for entry in described_pictures(corpus):
        if entry.picture is not None and entry.picture not in listed:
            name = entry.meta["name"]
            add(entry.picture, name, name, str(entry.meta.get("style")))
    glyphs = corpus.bank.is_glyph[pictures]
    return NamedPictures(pictures, things, texts, hands, glyphs, terms, aliases)


def _held_out(root: Path) -> list[str]:
    """Names of pictures that a pack left behind, because they are held out."""
    path = root / HELD_OUT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
