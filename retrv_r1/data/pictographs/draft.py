"""Queries before they are numbered, and the choice of positives and negatives."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.scenes import Scene

NEGATIVES = 30
MAX_CAPTIONED = 4  # picture-and-text candidates of one concept that a training query names
KEYWORD_MATCHES = 10


@dataclass(frozen=True)
class Draft:
    """A query without a number.

    Args:
        image: (style, code) of the query picture, if any.
        target: code of the concept that is asked for.
        kind: kind of phrase: `name`, `keywords`, `foreign`, `picture`, `question`, or a change.
        details: what else the metadata should hold.
    """

    text: str | None
    image: tuple[str, str] | None
    target: str
    kind: str
    positives: Sequence[str]
    negatives: Sequence[str]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Picker:
    """One scene with what its cells share: who draws what, and which keywords find what."""

    catalog: Catalog
    scene: Scene
    rng: random.Random
    pool: frozenset[str] = frozenset()
    _keywords: list[tuple[tuple[str, ...], list[str]]] | None = None

    def __post_init__(self) -> None:
        self.pool = frozenset(self.scene.pool)

    # pictures -----------------------------------------------------------------

    def styles(self, code: str, among: Sequence[str]) -> list[str]:
        """Styles of `among` that draw a code."""
        return [s for s in among if code in self.catalog.pictures[s]]

    def queries(self, styles: Sequence[str]) -> list[tuple[str, str]]:
        """All (style, code) of the targets in some styles."""
        return [(s, c) for c in self.scene.targets for s in self.styles(c, styles)]

    def pictures(self, codes: Iterable[str], first: str | None = None) -> list[str]:
        """Candidate dids of all pool pictures of some codes; the style `first` comes first."""
        styles = sorted(self.scene.pool_styles, key=lambda s: s != first)
        add = self.catalog.candidates.picture
        return [add(s, c) for c in codes for s in self.styles(c, styles)]

    def captioned(self, code: str, kind: str, first: str | None = None) -> list[str]:
        """Candidate dids of a code's pictures with its name or the name of its role."""
        text = self.catalog.caption(code, kind)
        styles = self.styles(code, self.scene.pool_styles)
        if len(styles) > MAX_CAPTIONED:
            rest = [s for s in styles if s != first]
            keep = self.rng.sample(rest, MAX_CAPTIONED - (first in styles))
            styles = ([first] if first in styles else []) + keep
        return [self.catalog.candidates.captioned(s, code, text, kind) for s in styles]

    # near concepts --------------------------------------------------------------

    def near(self, code: str, avoid: Collection[str] = ()) -> list[str]:
        """Near concepts of the pool, filled up with random ones, most similar first."""
        near = [c for c in self.catalog.near[code] if c in self.pool and c not in avoid]
        tries = 0
        while len(near) < NEGATIVES and tries < 200 and self.scene.pool:
            tries += 1
            other = self.rng.choice(self.scene.pool)
            if other != code and other not in avoid and other not in near:
                near.append(other)
        return near[: 2 * NEGATIVES]

    def negatives(
        self,
        code: str,
        make: Callable[[str], str | None],
        positives: Collection[str],
        avoid: Collection[str] = (),
        first: Sequence[str] = (),
    ) -> list[str]:
        """Up to 30 hard negatives: `first`, then a candidate made of each near concept."""
        made = list(first)
        for other in self.near(code, {code, *avoid}):
            if did := make(other):
                made.append(did)
        taken = set(positives)
        return [d for d in dict.fromkeys(made) if d not in taken][:NEGATIVES]

    def picture_of(self, prefer: str | None = None) -> Callable[[str], str | None]:
        """Makes a candidate picture of a near concept: half in the style `prefer`."""

        def make(code: str) -> str | None:
            styles = self.styles(code, self.scene.pool_styles)
            if not styles:
                return None
            style = prefer if prefer in styles and self.rng.random() < 0.5 else None
            return self.catalog.candidates.picture(style or self.rng.choice(styles), code)

        return make

    def captioned_of(self, kind: str, prefer: str | None = None) -> Callable[[str], str | None]:
        """Makes a candidate picture with text of a near concept."""

        def make(code: str) -> str | None:
            styles = self.styles(code, self.scene.pool_styles)
            if not styles:
                return None
            style = prefer if prefer in styles and self.rng.random() < 0.5 else None
            chosen = style or self.rng.choice(styles)
            return self.catalog.candidates.captioned(
                chosen, code, self.catalog.caption(code, kind), kind
            )

        return make

    def name_of(self, code: str) -> str:
        """Candidate text: the English name."""
        return self.catalog.candidates.text(self.catalog.concepts[code].name, code, "name")

    # keywords -------------------------------------------------------------------

    def keyword_queries(self) -> list[tuple[tuple[str, ...], list[str]]]:
        """(keywords, all codes of the pool that have them), at most ten codes each.

        Only things without skin tones: a keyword of a person fits every variant. Words that name
        something held out are not used in training.
        """
        if self._keywords is None:
            self._keywords = self._find_keywords()
        return self._keywords

    def _find_keywords(self) -> list[tuple[tuple[str, ...], list[str]]]:
        concepts, targets = self.catalog.concepts, set(self.scene.targets)
        toned = {c.base for c in concepts.values() if c.tones}
        holders: dict[str, set[str]] = defaultdict(set)
        for code in self.scene.pool:
            concept = concepts[code]
            for word in concept.keywords:
                if concept.base not in toned and not concept.is_flag and word != concept.name:
                    holders[word].add(code)
        splits = self.catalog.splits
        banned = splits.banned if self.scene.name != "unseen" else frozenset()
        banned = banned | splits.translation_texts if self.scene.training else banned
        found: dict[tuple[str, ...], list[str]] = {}
        for code in self.scene.targets:
            words = [w for w in concepts[code].keywords if code in holders[w] and w not in banned]
            options = [p for n in (1, 2, 3) for p in combinations(sorted(words), n)]
            self.rng.shuffle(options)
            kept = 0
            for option in options:
                codes = set.intersection(*(holders[w] for w in option))
                if len(codes) <= KEYWORD_MATCHES and codes <= targets and option not in found:
                    found[option] = sorted(codes)
                    kept += 1
                if kept == 3:
                    break
        return list(found.items())
