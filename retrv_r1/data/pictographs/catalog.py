"""The catalog that cells are built from: concepts, pictures, splits and candidates."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from retrv_r1.data.pictographs.concepts import LANGUAGES, Concept
from retrv_r1.data.pictographs.splits import Splits, hashed
from retrv_r1.data.pictographs.styles import Roles

CANDIDATE_DATASET = 100
NEAR = 60  # near concepts that each concept keeps
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A candidate as M-BEIR stores it, with the fields of our metadata.

    Args:
        code: its concept; the first one for a text that several concepts share.
        kind: `picture`, `name`, `foreign`, `gloss`, `picture+name` or `picture+role`.
    """

    did: str
    text: str | None
    style: str | None
    code: str
    kind: str
    language: str | None = None

    @property
    def img_path(self) -> str | None:
        """Path of its picture relative to the data root."""
        return image_path(self.style, self.code) if self.style else None


def image_path(style: str, code: str) -> str:
    """Path of a picture relative to the data root."""
    return f"mbeir_images/{style}/{code}.png"


class CandidateTable:
    """All candidates, numbered in the order in which they are first used."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Candidate] = {}
        self.by_did: dict[str, Candidate] = {}

    def _add(self, key: Hashable, **fields: Any) -> str:
        if key not in self._by_key:
            did = f"{CANDIDATE_DATASET}:{len(self._by_key) + 1}"
            self._by_key[key] = self.by_did[did] = Candidate(did=did, **fields)
        return self._by_key[key].did

    def picture(self, style: str, code: str) -> str:
        """Did of a picture."""
        return self._add((style, code), text=None, style=style, code=code, kind="picture")

    def text(self, text: str, code: str, kind: str, language: str | None = None) -> str:
        """Did of a text; one that several concepts or languages share is one candidate."""
        return self._add(text, text=text, style=None, code=code, kind=kind, language=language)

    def captioned(self, style: str, code: str, text: str, kind: str) -> str:
        """Did of a picture with text."""
        return self._add((style, code, text), text=text, style=style, code=code, kind=kind)


def spread(items: Iterable[T], base: Callable[[T], str], count: int, rng: random.Random) -> list[T]:
    """Up to `count` items, one of each base in turn.

    Otherwise bases with many variants would crowd out the others.
    """
    rows: dict[str, list[T]] = defaultdict(list)
    for item in items:
        rows[base(item)].append(item)
    keys = list(rows)
    rng.shuffle(keys)
    for row in rows.values():
        rng.shuffle(row)
    chosen: list[T] = []
    depth = 0
    while len(chosen) < count:
        layer = [rows[key][depth] for key in keys if len(rows[key]) > depth]
        if not layer:
            break
        chosen += layer[: count - len(chosen)]
        depth += 1
    return chosen


@dataclass(frozen=True)
class Catalog:
    """Everything that cells are built from.

    Args:
        concepts: concepts by code.
        pictures: codes that each style draws, without duplicates.
        near: codes of the concepts most similar to each code, most similar first.
        glosses: gloss of each code; empty without WordNet.
        seed: seed of all random choices.
    """

    concepts: Mapping[str, Concept]
    pictures: Mapping[str, frozenset[str]]
    splits: Splits
    roles: Roles
    near: Mapping[str, Sequence[str]]
    glosses: Mapping[str, str]
    seed: int
    candidates: CandidateTable = field(default_factory=CandidateTable)

    def rng(self, *parts: str) -> random.Random:
        """A random generator that depends on the seed and `parts` only."""
        return random.Random(hashed(self.seed, *parts))

    def base(self, code: str) -> str:
        """Code of a concept's base."""
        return self.concepts[code].base

    def side(self, code: str) -> str:
        """Side of the split that a concept is on."""
        return self.splits.side(self.concepts[code])

    def name_in(self, code: str, language: str) -> str:
        """Name in a language; empty for flags, held-out texts and names over 60 characters."""
        concept = self.concepts[code]
        name = concept.names.get(language, "")
        unusable = concept.is_flag or not name or len(name) > 60
        if unusable or (self.side(code) == "known" and name in self.splits.banned):
            return ""
        return name

    def caption(self, code: str, kind: str) -> str:
        """Text beside a picture: its name, or its role or group, which fit its variants as well."""
        concept = self.concepts[code]
        if kind == "picture+name":
            return concept.name
        varied = concept.tones or concept.gender or concept.base != code
        return concept.role if varied or code in self._toned_bases else concept.group

    @cached_property
    def _toned_bases(self) -> frozenset[str]:
        return frozenset(c.base for c in self.concepts.values() if c.tones)

    def codes_named(self, name: str, language: str) -> list[str]:
        """Codes that have this name in a language."""
        return self._codes_by_name.get((name, language), [])

    @cached_property
    def _codes_by_name(self) -> Mapping[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for code in self.concepts:
            for lang in self.languages(code):
                found[self.name_in(code, lang), lang].append(code)
        return found

    def languages(self, code: str) -> list[str]:
        """Languages in which a concept has a name."""
        return [lang for lang in LANGUAGES if self.name_in(code, lang)]


def near_concepts(concepts: Mapping[str, Concept], seed: int) -> dict[str, list[str]]:
    """Codes of the concepts that are easily mistaken for each concept.

    Variants of the same base alternate with related bases: those that share keywords and words of
    the name (rarer ones count more), then those of the same subgroup, then of the same group.
    """
    words: dict[str, set[str]] = {
        c.code: {*c.keywords, *(w for w in c.name.split() if len(w) > 2)}
        for c in concepts.values()
        if c.code == c.base
    }
    holders: dict[str, list[str]] = defaultdict(list)
    for code, terms in words.items():
        for term in terms:
            holders[term].append(code)
    by_base: dict[str, list[str]] = defaultdict(list)
    for concept in concepts.values():
        by_base[concept.base].append(concept.code)
    groups: dict[str, list[str]] = defaultdict(list)
    for code in words:
        groups[concepts[code].group].append(code)
        if concepts[code].subgroup:
            groups[concepts[code].subgroup].append(code)
    related = {
        code: _related(code, terms, holders, groups, concepts[code], seed)
        for code, terms in sorted(words.items())
    }
    return {
        code: _merge(concept, by_base[concept.base], related[concept.base], by_base, concepts, seed)
        for code, concept in concepts.items()
    }


def _related(
    code: str,
    terms: Collection[str],
    holders: Mapping[str, list[str]],
    groups: Mapping[str, list[str]],
    concept: Concept,
    seed: int,
) -> list[str]:
    """Bases related to a base, by shared words, then by subgroup and group."""
    score: dict[str, float] = defaultdict(float)
    for term in sorted(terms):
        if len(holders[term]) <= 120:
            for other in holders[term]:
                score[other] += 1 / len(holders[term])
    score.pop(code, None)
    best = sorted(score, key=lambda other: (-score[other], other))[:24]
    for label in (concept.subgroup, concept.group):
        rest = [other for other in groups.get(label, ()) if other != code and other not in best]
        rest.sort(key=lambda other: hashed(seed, "near", code, other))
        best += rest[: 20 if label == concept.subgroup else 24]
    return best


def _merge(
    concept: Concept,
    own: Sequence[str],
    related: Sequence[str],
    by_base: Mapping[str, list[str]],
    concepts: Mapping[str, Concept],
    seed: int,
) -> list[str]:
    """A concept's variants and the closest variant of each related base, alternating."""
    variants = [c for c in own if c != concept.code and concepts[c].tone != "mixed"]

    def distance(code: str) -> tuple[int, str]:
        other = concepts[code]
        same = (other.tone == concept.tone) + (other.gender == concept.gender)
        return -same - (other.facing == concept.facing), hashed(seed, "variant", concept.code, code)

    variants.sort(key=distance)
    others = [min(by_base[base], key=distance) for base in related]
    merged: list[str] = []
    for i in range(max(len(variants[:16]), len(others))):
        merged += variants[:16][i : i + 1] + others[i : i + 1]
    return list(dict.fromkeys(merged))[:NEAR]
