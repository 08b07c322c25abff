"""Queries by name, by search terms and by picture, over the pictures of a pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.detail import Twin, Twins
from retrv_r1.data.icons.detail_words import POINTING
from retrv_r1.data.icons.drafts import Draft, concept, dids, sample, worded
from retrv_r1.data.icons.english import article
from retrv_r1.data.icons.index import Index, Pool, bag, sayable
from retrv_r1.data.icons.phrases import TEXTS_ID
from retrv_r1.data.icons.terms import Judgements, Terms

MOST_RELEVANT = 12
"""Most concepts that carry the terms of a query; more would say that it means nothing."""


def one_of_each(rows: Iterable[IconRow], rng: np.random.Generator) -> list[IconRow]:
    """A random picture of each concept and gender that a name can ask for, in random order."""
    found: dict[tuple[str, str], list[IconRow]] = defaultdict(list)
    for row in rows:
        if sayable(row.name) and not row.skin:
            found[bag(row.code), row.gender].append(row)
    return [
        of[int(rng.integers(len(of)))] for of in sample(found.values(), len(found), rng)
    ]  # fmt: skip


def by_name(
    pool: Pool, rows: Sequence[IconRow], rng: np.random.Generator, split: str
) -> list[Draft]:
    """Name → picture; ``rows`` show what is asked for.

    All pictures of the pool that have the name, in any order of its words, or one of its other
    names are relevant.
    """
    drafts = []
    for row in rows:
        relevant = pool.showing(row.code, row.gender)
        if relevant:
            text, how = worded(row.name, rng, split)
            found = {"wording": how, "query_name": row.name}
            drafts.append(Draft(text, None, concept(row), "name", dids(relevant), details=found))
    return drafts


def by_picture(pool: Pool, rows: Iterable[IconRow]) -> list[Draft]:
    """Picture → the same thing by another hand; a picture of the pool is not its own answer."""
    drafts = []
    for row in rows:
        relevant = [r for r in pool.showing(row.code, row.gender) if r.row != row.row]
        if relevant:
            drafts.append(Draft(None, row, concept(row), "picture", dids(relevant)))
    return drafts


class NamePool:
    """Names of concepts as candidates.

    Args:
        index: index of the corpus.
        rows: pictures whose names are candidates.
        first: number of the first name's did.
    """

    def __init__(self, index: Index, rows: Iterable[IconRow], first: int) -> None:
        self._index = index
        self._by_bag: dict[str, list[str]] = defaultdict(list)
        self.texts: dict[str, tuple[str, str]] = {}
        names = {row.name: row.code for row in rows if sayable(row.name) and not row.skin}
        for number, name in enumerate(sorted(names), first):
            self.texts[f"{TEXTS_ID}:{number}"] = name, names[name]
            # A woman running is no man running, though their concept is one.
            self._by_bag[bag(name)].append(f"{TEXTS_ID}:{number}")

    def naming(self, row: IconRow) -> list[str]:
        """Dids of all names of what a picture shows; its own first."""
        keys = [bag(row.name)]
        if bag(row.name) == bag(row.code):
            keys += sorted(self._index.same(row.code) - {bag(row.name)})
        return [did for key in keys for did in self._by_bag.get(key, ())]


def to_name(pool: NamePool, rows: Iterable[IconRow]) -> list[Draft]:
    """Picture → name."""
    found = ((row, pool.naming(row)) for row in rows)
    return [Draft(None, row, concept(row), "picture", names) for row, names in found if names]


def changed(twins: Twins, count: int, rng: np.random.Generator, split: str) -> list[Draft]:
    """Picture and what is to be different → its twin: "with dark skin tone", "pointing left".

    The twin of the picture's own hand comes first; twins by other hands are relevant too.
    """
    groups: dict[str, list[Sequence[Twin]]] = defaultdict(list)
    for (_, kind, _), members in sorted(twins.groups.items()):
        groups[kind].append(members)
    pairs: dict[str, list[tuple[Twin, Twin]]] = {}
    for kind, found in sorted(groups.items()):
        some = [pair for members in found for pair in _pairs(members, rng)]
        pairs[kind] = sample(some, count, rng)
    chosen: list[tuple[Twin, Twin]] = []
    while len(chosen) < count and any(pairs.values()):
        chosen += [queue.pop() for queue in pairs.values() if queue]
    drafts = []
    for source, target in chosen[:count]:
        phrases = change_phrases(target)
        phrase = phrases[int(rng.integers(len(phrases)))]
        relevant = [r for r in twins.relevant(target) if r.row != source.row.row]
        rest = [r for r in relevant if r.row != target.row.row]
        kind = target.detail.kind
        own = {r.row for r in relevant}
        others = twins.groups[source.row.set, kind, source.detail.frame]
        wrong = [t.row for t in others if t.row.row not in own]
        details = {
            "change": {"kind": kind, "text": phrase},
            "detail": {"kind": kind, "value": target.detail.value},
            "was": source.detail.value,
        }
        drafts.append(
            Draft(phrase, source.row, concept(target.row), kind, dids([target.row, *rest]),
                  dids(wrong[:30]), details)
        )  # fmt: skip
    return drafts


def _pairs(
    members: Sequence[Twin], rng: np.random.Generator, most: int = 3
) -> list[tuple[Twin, Twin]]:
    """Some pairs of twins that differ in the detail alone."""
    found = [
        (one, other)
        for one in members
        for other in members
        if other.detail.value and one.detail.value != other.detail.value
        and one.row.gender == other.row.gender
        and (other.detail.kind == "fill" or one.row.styles == other.row.styles)
        and change_phrases(other)
    ]  # fmt: skip
    return sample(found, most, rng)


def change_phrases(target: Twin) -> tuple[str, ...]:
    """Wordings that ask for a twin, beside a picture; empty if its kind is not asked for so."""
    value, kind = target.detail.value, target.detail.kind
    if kind == "skin":
        return f"with {value} skin tone", f"the same with {value} skin"
    if kind == "fill":
        if value == "filled":
            return "filled", "the same but filled", "make it solid"
        return "outline", "the same as an outline", "only the outline"
    if kind == "direction" and len(value.split()) == 1:
        aside = f"to the {value}" if value in ("left", "right") else f"{value} instead"
        if POINTING & set(target.detail.rest.split()):
            return f"pointing {value}", f"the same but pointing {value}", aside
        return f"{value} instead", f"the same but {value}"
    if kind == "badge":
        sign = {"off": "crossed out", "check": "with a check mark"}
        text = sign.get(value, f"with {article(value)} {value}")
        return text, f"the same {text}"
    if kind == "frame":
        return f"in {article(value)} {value}", f"the same in {article(value)} {value}"
    if kind == "count":
        return f"a {value} one", f"the same but {value}"
    if kind in ("clock", "dice"):
        return f"showing {value}", f"the same showing {value}"
    return ()


def by_terms(
    pool: Pool,
    terms: Sequence[Terms],
    judged: Mapping[str, Judgements],
    rng: np.random.Generator,
    split: str,
    *,
    each: int = 2,
    banned: frozenset[str] = frozenset(),
) -> list[Draft]:
    """One to three search terms → pictures that carry them all.

    Args:
        terms: terms whose concepts are asked for.
        judged: which concepts carry a term, by language.
        each: most queries of one concept in a language.
        banned: terms that may not be used.
    """
    drafts: list[Draft] = []
    seen: set[tuple[str, ...]] = set()
    for one in terms:
        said = [term for term in one.terms if term not in banned]
        options = [p for n in (1, 2, 3) for p in combinations(said[:12], n)]
        kept = 0
        for option in sample(options, 40, rng):
            key = (one.language, *sorted(option))
            bags = judged[one.language].bags(option)
            if key in seen or len(bags) > MOST_RELEVANT:
                continue
            relevant = [row for row in pool.of_bags(bags) if not row.skin]
            if not any(bag(row.code) == bag(one.code) for row in relevant):
                continue
            seen.add(key)
            words = sample(option, len(option), rng)
            text, how = worded(", ".join(words), rng, split, one.language)
            if rng.random() < 0.6:
                text = text.replace(", ", " ")
            target = {"code": one.code, "name": one.code, "gender": one.gender or None}
            found = {"keywords": words, "language": one.language, "wording": how}
            drafts.append(Draft(text, None, target, "terms", dids(relevant), details=found))
            kept += 1
            if kept == each:
                break
    return drafts
