"""What training must not see: unseen bases, held-out combinations, held-out translations."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from retrv_r1.data.pictographs.concepts import LANGUAGES, TONES, Concept

Side = Literal["known", "composition", "unseen"]
UNSEEN_SHARE = 0.08
_GENDERS = ("person", "man", "woman")
# The plain person is the base of every profession: half of all people would be held out with it.
_NEVER_UNSEEN = frozenset({"1F9D1"})


def hashed(seed: int, *parts: str) -> str:
    """Hash of a seed and texts: orders and choices by it depend on the seed only."""
    return hashlib.sha256("\n".join([str(seed), *parts]).encode()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """What is held out.

    Args:
        unseen: bases that no training file mentions, nor any of their variants.
        held_combinations: codes of held-out combinations of skin tone, gender and role.
        combination_bases: bases of these combinations.
        translations: `val` or `test` by (code, language); never asked or answered in training.
        banned: texts that name something held out and never occur in training.
        translation_texts: texts of the held-out translations that name nothing else; they never
            occur in training either.
    """

    unseen: frozenset[str]
    held_combinations: frozenset[str]
    combination_bases: frozenset[str]
    translations: Mapping[tuple[str, str], str] = field(default_factory=dict)
    banned: frozenset[str] = frozenset()
    translation_texts: frozenset[str] = frozenset()

    def side(self, concept: Concept) -> Side:
        """The side of the split that a concept is on."""
        if concept.base in self.unseen:
            return "unseen"
        return "composition" if concept.code in self.held_combinations else "known"


def _family(name: str) -> str:
    """Name without ` face`: `cat` and `cat face` look alike and stay on one side."""
    return name.removesuffix(" face") or name


def _unseen_bases(concepts: Mapping[str, Concept], drawn: Collection[str], seed: int) -> set[str]:
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for concept in concepts.values():
        if concept.code == concept.base and concept.code not in _NEVER_UNSEEN:
            families[concept.group][_family(concept.name)].append(concept.code)
    chosen: set[str] = set()
    for group in sorted(families):
        members = families[group]
        pickable = [f for f, codes in members.items() if all(c in drawn for c in codes)]
        pickable.sort(key=lambda f: hashed(seed, "unseen", f))
        for name in pickable[: max(1, round(UNSEEN_SHARE * len(members)))]:
            chosen.update(members[name])
    return chosen


def _held_combinations(
    concepts: Mapping[str, Concept], unseen: Collection[str], seed: int
) -> tuple[set[str], set[str]]:
    """Held-out codes and their bases: one tone for each gender of a role, so each pair is seen."""
    by_base: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts.values():
        if concept.base not in unseen and len(concept.tones) == 1 and concept.gender:
            by_base[concept.base].append(concept)
    held: set[str] = set()
    composed: set[str] = set()
    tones = list(TONES.values())
    for base in sorted(by_base):
        kinds = {(c.gender, c.tone) for c in by_base[base]}
        if len(kinds) < len(_GENDERS) * len(tones):
            continue
        start = int(hashed(seed, "combination", base)[:8], 16)
        dropped = {(g, tones[(start + 2 * i) % len(tones)]) for i, g in enumerate(_GENDERS)}
        held.update(c.code for c in by_base[base] if (c.gender, c.tone) in dropped)
        composed.add(base)
    return held, composed


def _translations(
    concepts: Mapping[str, Concept], seed: int, val: int, test: int
) -> dict[tuple[str, str], str]:
    """Held-out translations: at most one language of a concept, so that others teach its name."""
    pairs = []
    for concept in concepts.values():
        if concept.tones or concept.is_flag:
            continue
        names = concept.names
        distinct = [
            lang
            for lang in LANGUAGES
            if names.get(lang)
            and names[lang] != concept.name
            and list(names.values()).count(names[lang]) == 1
        ]
        if len(distinct) > 1:
            pairs.append((concept.code, min(distinct, key=lambda x: hashed(seed, concept.code, x))))
    pairs.sort(key=lambda pair: hashed(seed, "translation", *pair))
    # At most three eighths of all pairs, so that a small build still trains.
    test = min(test, len(pairs) // 4)
    val = min(val, len(pairs) // 8)
    held = dict.fromkeys(pairs[:test], "test")
    return held | dict.fromkeys(pairs[test : test + val], "val")


def make_splits(
    concepts: Mapping[str, Concept],
    drawn: Collection[str],
    *,
    seed: int = 0,
    val_translations: int = 120,
    test_translations: int = 300,
) -> Splits:
    """Chooses what is held out, by the seed only.

    Args:
        drawn: codes that the reference style draws; only those can be unseen.
        val_translations, test_translations: largest numbers of held-out translations.
    """
    unseen = _unseen_bases(concepts, drawn, seed)
    held, composed = _held_combinations(concepts, unseen, seed)
    hidden = [c for c in concepts.values() if c.base in unseen or c.code in held]
    known = {c.code: c for c in concepts.values() if c.base not in unseen and c.code not in held}
    translations = _translations(known, seed, val_translations, test_translations)
    taught = {c.name for c in known.values()} | {
        name
        for c in known.values()
        for lang, name in c.names.items()
        if (c.code, lang) not in translations
    }
    return Splits(
        unseen=frozenset(unseen),
        held_combinations=frozenset(held),
        combination_bases=frozenset(composed),
        translations=translations,
        banned=frozenset(t for c in hidden for t in (c.name, *c.names.values()))
        - {c.name for c in known.values()},
        translation_texts=frozenset(known[code].names[lang] for code, lang in translations)
        - taught,
    )
