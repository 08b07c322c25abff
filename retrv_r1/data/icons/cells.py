"""The cells of the icon corpus: queries and pools in M-BEIR's format.

Training cells show pictures of the split `train` alone. The parts of the test are `hands` (hands
never seen, one set a pool, because people search one set), `concepts` (names never seen, among
known ones), `terms` (search terms of a package that training does not read) and `detail` (near
twins, with the list of its siblings for each query).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrv_r1.data.icons.corpus import IconCorpus, IconRow, Split
from retrv_r1.data.icons.detail import Twins, detail_queries
from retrv_r1.data.icons.drafts import CellData, generator, sample
from retrv_r1.data.icons.index import Index, Pool, bag
from retrv_r1.data.icons.phrases import DATASETS, DETAIL_CELLS, HANDS, Dataset
from retrv_r1.data.icons.pools import (
    Sizes,
    shown,
    some_of_each,
    some_twins,
    used,
    used_or_listed,
)
from retrv_r1.data.icons.publish import publish
from retrv_r1.data.icons.queries import (
    NamePool,
    by_name,
    by_picture,
    by_terms,
    changed,
    one_of_each,
    to_name,
)
from retrv_r1.data.icons.terms import LANGUAGES, Judgements, Part, Terms, read_terms

TRAIN_SETS_OF_TERMS = (
    "tabler", "mdi", "fa7-solid", "noto", "twemoji", "fluent-emoji-flat",
)  # fmt: skip
_PER_CONCEPT = 3  # pictures of one concept in the pool of names
FOREIGN_SHARE = 0.35
"""Most queries of search terms that are not English."""
UNSPACED = ("fxemoji", "whh")
"""Sets whose names are written without gaps."""


def write_cells(
    corpus: IconCorpus, out: Path, *, seed: int = 0, sizes: Sizes | None = None
) -> dict[str, Any]:
    """Writes all cells of a built corpus into its folder; what lies there is replaced.

    Args:
        out: folder of the corpus, with the arrays of its pictures and the packages of terms.
        seed: seed of what is asked.
        sizes: numbers of queries.
    Returns:
        Counts by data set and split.
    Raises:
        RetrvError: a package of terms is missing or damaged.
    """
    terms = read_terms(corpus, out, seed=seed)
    plan = Plan(corpus, terms, seed, sizes or Sizes())
    return publish(out, corpus, terms, plan.cells(), seed)


class Plan:
    """What is asked, and among what; a function of corpus, terms and seed.

    Args:
        terms: search terms of all sources.
    """

    def __init__(
        self, corpus: IconCorpus, terms: Sequence[Terms], seed: int = 0, sizes: Sizes | None = None
    ) -> None:
        self.corpus, self.seed, self.sizes = corpus, seed, sizes or Sizes()
        self.index = Index(corpus)
        self.terms = [t for t in terms if not (t.split != "test" and self._held(t))]

    def _held(self, terms: Terms) -> bool:
        return self.corpus.splits.get(terms.code, "train") != "train"

    def cells(self) -> Iterator[CellData]:
        """All cells with queries."""
        for make in (self.training, self.validation, self.hands, self.concepts, self.searches):
            yield from (cell for cell in make() if cell.drafts)
        yield from (cell for cell in self.details() if cell.drafts)

    def _rng(self, *key: str) -> np.random.Generator:
        return generator(self.seed, *key)

    def _rows(self, split: Split) -> list[IconRow]:
        """Pictures that a split may use; a validation of hands has no concept of the test."""
        rows = self.corpus.rows
        if split == "train":
            return [row for row in rows if row.split == "train"]
        return [
            row
            for row in rows
            if row.hand_split == split and row.concept_split == "train" and not row.skin
        ]

    def training(self) -> Iterator[CellData]:
        """Training cells; their pictures are in the store alone."""
        sizes, rng = self.sizes, self._rng("train")
        rows = self._rows("train")
        plain = [row for row in rows if not row.skin]
        kept = some_of_each(plain, self.seed, _PER_CONCEPT)
        pool = Pool(self.index, kept)
        asked = one_of_each(kept, rng)
        # Concepts that several hands draw come first: a name that one hand gives may be odd.
        asked.sort(key=lambda row: -min(len(pool.showing(row.code)), 2))
        names = by_name(pool, asked[: sizes.names], rng, "train")
        yield shown(CellData(DATASETS["names_t2i"], "train", names), kept)
        kept_rows = {row.row for row in kept}
        others = [row for row in plain if row.row not in kept_rows]
        same = by_picture(pool, sample(others, 3 * sizes.i2i, rng))[: sizes.i2i]
        yield shown(CellData(DATASETS["i2i"], "train", same), kept)
        texts = NamePool(self.index, asked[: sizes.names], first=1)
        named = to_name(texts, sample(plain, 2 * sizes.i2t, rng))[: sizes.i2t]
        yield CellData(DATASETS["i2t"], "train", named, texts=texts.texts)
        yield self._term_cell("train", [r for r in plain if r.set in TRAIN_SETS_OF_TERMS])
        twins = Twins(some_twins(rows, self.seed))
        detail = detail_queries(twins, sizes.detail, rng, "train", listed=False)
        yield shown(CellData(DATASETS["detail_t2i"], "train", detail), used(twins))
        change = changed(twins, sizes.it2i, rng, "train")
        yield shown(CellData(DATASETS["it2i"], "train", change), used(twins))

    def validation(self) -> Iterator[CellData]:
        """Validation: hands that neither training nor the test shows; other codes' terms."""
        rng, count = self._rng("val"), self.sizes.evaluation
        rows = self._rows("val")
        yield from self._hand_cells(rows, rng, "val", 1_000_001, ("names_t2i", "i2i", "i2t"))
        train = [r for r in self._rows("train") if not r.skin and r.set in TRAIN_SETS_OF_TERMS]
        some = sample(sorted(train, key=lambda r: r.row), self.sizes.pool, rng)
        yield self._term_cell("val", [*self._of_terms("val", train), *some])
        toned = [r for r in self.corpus.rows if r.hand_split == "val" and r.split == "val"]
        twins = Twins(toned)
        detail = detail_queries(twins, count, rng, "val", listed=True)
        cell = CellData(DATASETS["detail_t2i"], "val", detail)
        yield shown(cell, used_or_listed(twins, cell))
        change = changed(twins, count, rng, "val")
        yield shown(CellData(DATASETS["it2i"], "val", change), used(twins))

    def _hand_cells(
        self,
        rows: Sequence[IconRow],
        rng: np.random.Generator,
        split: str,
        first: int,
        names: tuple[str, str, str],
    ) -> Iterator[CellData]:
        """Cells by name, by picture and to name over some pictures, all in one pool."""
        pool = Pool(self.index, rows)
        by_names, by_pictures, to_names = (DATASETS[name] for name in names)
        asked = self._asked(rows, rng)
        yield shown(CellData(by_names, split, by_name(pool, asked, rng, split)), rows)
        known = [r for r in self._rows("train") if r.set == "tabler"]
        yield self._across(by_pictures, split, rows, some_of_each(known, self.seed, 1), rng)
        texts = NamePool(self.index, [*rows, *self._others(rng)], first)
        named = to_name(texts, self._asked(rows, rng))
        yield CellData(to_names, split, named, texts=texts.texts)

    def _asked(self, rows: Iterable[IconRow], rng: np.random.Generator) -> list[IconRow]:
        """What an evaluation asks for by name: one picture of each concept, few of them flags.

        Names of sets that write no gaps are asked only where another set has them.
        """
        readable = [r for r in rows if r.set not in UNSPACED or bag(r.code) in self._spaced]
        asked = one_of_each(readable, rng)
        flags = [row for row in asked if row.code.startswith("flag")]
        others = [row for row in asked if not row.code.startswith("flag")]
        return sample([*others, *flags[: len(asked) // 20]], self.sizes.evaluation, rng)

    @cached_property
    def _spaced(self) -> frozenset[str]:
        """Keys of concepts of all sets whose names have gaps between words."""
        return frozenset(bag(row.code) for row in self.corpus.rows if row.set not in UNSPACED)

    def _others(self, rng: np.random.Generator) -> list[IconRow]:
        """Pictures of training whose names are wrong answers."""
        rows = some_of_each([r for r in self._rows("train") if not r.skin], self.seed, 1)
        return sample(rows, self.sizes.pool // 2, rng)

    def _across(
        self,
        dataset: Dataset,
        split: str,
        rows: Sequence[IconRow],
        more: Sequence[IconRow],
        rng: np.random.Generator,
    ) -> CellData:
        """The hand with the most pictures asks among the pictures of the others and some more.

        Its own pictures are not in the pool, where each query would find itself first.
        """
        families: dict[str, list[IconRow]] = defaultdict(list)
        for row in rows:
            families[row.family].append(row)
        asking = max(sorted(families), key=lambda family: len(families[family]), default="")
        candidates = [*(row for row in rows if row.family != asking), *more]
        pool = Pool(self.index, candidates)
        drafts = by_picture(pool, one_of_each(families.get(asking, ()), rng))
        return shown(CellData(dataset, split, drafts[: self.sizes.evaluation]), candidates)

    def hands(self) -> Iterator[CellData]:
        """Hands never seen: one pool for each set, and picture tasks across hands."""
        count = self.sizes.evaluation
        rows = self._rows("test")
        every = [r for r in self.corpus.rows if r.hand_split == "test" and not r.skin]
        for prefix in HANDS:
            rng = self._rng("hands", prefix)
            own = [row for row in every if row.set == prefix]
            asked = self._asked([row for row in rows if row.set == prefix], rng)
            name = f"hands_t2i_{prefix.replace('-', '_')}"
            drafts = by_name(Pool(self.index, own), asked, rng, "test")
            yield shown(CellData(DATASETS[name], "test", drafts), own)
        rng = self._rng("hands")
        main = [row for row in rows if row.set in HANDS]
        yield self._across(DATASETS["hands_i2i"], "test", main, self._rows("val"), rng)
        texts = NamePool(self.index, [*main, *self._others(rng)], 2_000_001)
        named = to_name(texts, self._asked(main, rng))
        yield CellData(DATASETS["hands_i2t"], "test", named, texts=texts.texts)
        toned = [r for r in self.corpus.rows if r.hand_split == "test" and r.set in HANDS]
        twins = Twins(toned)
        change = changed(twins, count, rng, "test")
        yield shown(CellData(DATASETS["hands_it2i"], "test", change), used(twins))

    def concepts(self) -> Iterator[CellData]:
        """Names never seen, drawn by hands of training, among pictures of known concepts."""
        rng, count = self._rng("concepts"), self.sizes.evaluation
        rows = [
            row
            for row in self.corpus.rows
            if row.hand_split == "train" and row.why == ("concepts",) and row.split == "test"
            if not row.skin
        ]
        new = some_of_each(rows, self.seed, 2)
        known = self._near(new, self.sizes.pool - len(new), rng)
        pool = Pool(self.index, [*new, *known])
        asked = [row for _ in range(4) for row in one_of_each(new, rng)][:count]
        drafts = by_name(pool, asked, rng, "test")
        unique = {draft.text: draft for draft in drafts}
        yield shown(CellData(DATASETS["concepts_t2i"], "test", [*unique.values()]), pool.rows)
        taken = {row.row for row in pool.rows}
        others = [row for row in rows if row.row not in taken]
        same = by_picture(pool, sample(others, count, rng))
        yield shown(CellData(DATASETS["concepts_i2i"], "test", same), pool.rows)
        texts = NamePool(self.index, [*new, *known], 3_000_001)
        named = to_name(texts, sample(rows, count, rng))
        yield CellData(DATASETS["concepts_i2t"], "test", named, texts=texts.texts)

    def _near(self, rows: Sequence[IconRow], count: int, rng: np.random.Generator) -> list[IconRow]:
        """Pictures of known concepts, one each; half of them share a word with some names."""
        words = {word for row in rows for word in row.code.split()}
        plain = [row for row in self._rows("train") if not row.skin]
        known = some_of_each(plain, self.seed + 1, 1)
        near = [row for row in known if words & set(row.code.split())]
        chosen = sample(near, count // 2, rng)
        taken = {row.row for row in chosen}
        rest = [row for row in known if row.row not in taken]
        return [*chosen, *sample(rest, count - len(chosen), rng)]

    def searches(self) -> Iterator[CellData]:
        """Search terms of a package that training does not read: in its own set, and in all."""
        rows = [r for r in self.corpus.rows if r.hand_split == "test" and not r.skin]
        own = [row for row in rows if row.set == "lucide"]
        yield self._term_cell("test", own, "terms_t2i_lucide")
        mixed = [row for row in rows if row.set in HANDS]
        yield self._term_cell("test", mixed, "terms_t2i_mixed")

    def details(self) -> Iterator[CellData]:
        """Near twins by hands never seen; each cell asks for some kinds of details."""
        rows = [r for r in self.corpus.rows if r.hand_split == "test" and r.set in HANDS]
        for name, kinds in DETAIL_CELLS.items():
            twins = Twins(rows, kinds)
            rng = self._rng("detail", name)
            drafts = detail_queries(twins, self.sizes.evaluation // 2, rng, "test", listed=True)
            cell = CellData(DATASETS[f"detail_{name}"], "test", drafts)
            yield shown(cell, used_or_listed(twins, cell))

    def _of_terms(self, split: Part, rows: Iterable[IconRow]) -> list[IconRow]:
        """Pictures whose concepts have terms of a split."""
        bags = {bag(one.code) for one in self.terms if one.split == split}
        return [row for row in rows if bag(row.code) in bags]

    @cached_property
    def _banned(self) -> frozenset[str]:
        """Terms of training that name something that is held out."""
        said = {term for one in self.terms if one.split == "train" for term in one.terms}
        return frozenset(term for term in said if self.index.held_out(term))

    def _term_cell(self, split: Part, rows: Iterable[IconRow], name: str = "terms_t2i") -> CellData:
        """Queries of search terms over some pictures.

        All sources but the test's judge what training and validation may show as wrong; in the
        test all sources judge.
        """
        kept = list({row.row: row for row in rows}.values())
        rng = self._rng("terms", split, name)
        asked = [t for t in self.terms if t.split == split]
        asked = sample(asked, len(asked), rng)
        judging = [t for t in self.terms if split == "test" or t.split != "test"]
        judged = {lang: Judgements(self.index, judging, lang) for lang in ("en", *LANGUAGES)}
        training = split == "train"
        drafts = by_terms(
            Pool(self.index, kept), asked, judged, rng, split,
            each=3 if training else 1,
            banned=self._banned if training else frozenset(),
        )  # fmt: skip
        most = self.sizes.terms if training else self.sizes.evaluation
        english = [draft for draft in drafts if draft.details["language"] == "en"]
        foreign = [draft for draft in drafts if draft.details["language"] != "en"]
        chosen = sample(english, most - min(len(foreign), int(most * FOREIGN_SHARE)), rng)
        chosen += sample(foreign, min(most - len(chosen), int(most * FOREIGN_SHARE)), rng)
        return shown(CellData(DATASETS[name], split, sample(chosen, most, rng)), kept)
