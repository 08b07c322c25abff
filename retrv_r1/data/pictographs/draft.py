"""Drafts of queries, and the choice of their positives and negatives."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.scenes import Scene

NEGATIVES = 30
MAX_CAPTIONED = 4  # pictures with text of one concept that a query lists as positives
KEYWORD_MATCHES = 10


@dataclass(frozen=True)
class Draft:
    """A query without a number.

    Args:
        image: (style, code) of the query's picture, if it has one.
        target: code of the concept that is asked for.
        kind: kind of phrase: `name`, `keywords`, `foreign`, `picture`, `question`, or a change's.
        positives, negatives: dids.
        details: further fields of the metadata.
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
    """Picks queries, positives and negatives of one scene."""

    catalog: Catalog
    scene: Scene
    rng: random.Random

    @cached_property
    def pool(self) -> frozenset[str]:
        """Codes that candidates may show or name."""
        return frozenset(self.scene.pool)

    def styles(self, code: str, among: Sequence[str]) -> list[str]:
        """Those styles `among` the given that draw a code."""
        return [s for s in among if code in self.catalog.pictures[s]]

    def queries(self, styles: Sequence[str]) -> list[tuple[str, str]]:
        """(style, code) of all pictures of the targets in given styles."""
        return [(s, c) for c in self.scene.targets for s in self.styles(c, styles)]

    def pictures(self, codes: Iterable[str], first: str | None = None) -> list[str]:
        """Dids of all pool pictures of some codes, those in the style `first` first."""
        styles = sorted(self.scene.pool_styles, key=lambda s: s != first)
        add = self.catalog.candidates.picture
        return [add(s, c) for c in codes for s in self.styles(c, styles)]

    def captioned(self, code: str, kind: str, first: str | None = None) -> list[str]:
        """Dids of a code's pictures with its name or the name of its role, by `kind`."""
        text = self.catalog.caption(code, kind)
        styles = self.styles(code, self.scene.pool_styles)
        if len(styles) > MAX_CAPTIONED:
            rest = [s for s in styles if s != first]
            keep = self.rng.sample(rest, MAX_CAPTIONED - (first in styles))
            styles = ([first] if first in styles else []) + keep
        return [self.catalog.candidates.captioned(s, code, text, kind) for s in styles]

    def near(self, code: str, avoid: Collection[str] = ()) -> list[str]:
        """Near concepts of the pool, most similar first, then random ones."""
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
        """Dids of up to 30 hard negatives: `first`, then one of each near concept.

        Args:
            make: function of a code that gives the did of its candidate, None for none.
            avoid: codes that get no negative.
        """
        made = list(first)
        for other in self.near(code, {code, *avoid}):
            if did := make(other):
                made.append(did)
        taken = set(positives)
        return [d for d in dict.fromkeys(made) if d not in taken][:NEGATIVES]

    def picture_of(self, prefer: str | None = None) -> Callable[[str], str | None]:
        """A function of a code that gives a picture of it, half of them in the style `prefer`."""

        def make(code: str) -> str | None:
            style = self._style(code, prefer)
            return style and self.catalog.candidates.picture(style, code)

        return make

    def captioned_of(self, kind: str, prefer: str | None = None) -> Callable[[str], str | None]:
        """A function of a code that gives a picture of it with text, as above."""

        def make(code: str) -> str | None:
            style, text = self._style(code, prefer), self.catalog.caption(code, kind)
            return style and self.catalog.candidates.captioned(style, code, text, kind)

        return make

    def _style(self, code: str, prefer: str | None) -> str | None:
        """A random style of the pool that draws a code; in half the cases `prefer` if it does."""
        styles = self.styles(code, self.scene.pool_styles)
        if prefer in styles and self.rng.random() < 0.5:
            return prefer
        return self.rng.choice(styles) if styles else None

    def name_of(self, code: str) -> str:
        """Did of a code's English name."""
        return self.catalog.candidates.text(self.catalog.concepts[code].name, code, "name")

    @cached_property
    def keyword_queries(self) -> list[tuple[tuple[str, ...], list[str]]]:
        """(keywords, all codes of the pool that have them), with at most ten codes each.

        Concepts with skin tones are left out: a keyword of a person fits every variant. Training
        uses no word that names something held out.
        """
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
