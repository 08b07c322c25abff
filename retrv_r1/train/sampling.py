"""Draws training lists: queries with candidates from a neighbourhood of first-stage vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from retrv_r1.data.icons.wording import word
from retrv_r1.model.chains import Chain
from retrv_r1.model.details import asked_for, asked_words, with_detail
from retrv_r1.train.chains import describe
from retrv_r1.train.corpus import Cell, Corpus, Entry, ListExample
from retrv_r1.train.entry_vectors import Ranking
from retrv_r1.train.named import NamedPictures


class ListSampler:
    """Draws lists whose candidates are neighbours in the first stage's space.

    The candidates of a list are of one style, as in a pool that someone searches, so that they
    differ only in what they show. Lists may share candidates, because a query costs little to
    process and the rows of a candidate cost much.

    Args:
        vectors: first-stage vectors of each cell, or its given lists.
        named: the named pictures, whose names queries and ideals have.
        wordings: share of the queries by a name alone that are worded as people type.
        unanswered: share of lists without their answer.
    """

    def __init__(
        self,
        corpus: Corpus,
        vectors: Mapping[str, Ranking],
        named: NamedPictures,
        wordings: float = 0.0,
        unanswered: float = 0.0,
    ) -> None:
        self.names = sorted(corpus.cells)
        self.wordings, self.unanswered = wordings, unanswered
        self._cells = {n: _CellSampler(corpus.cells[n], vectors[n], named) for n in self.names}

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        size: int,
        hard: float,
        *,
        share: int = 1,
        cell: str | None = None,
    ) -> list[ListExample]:
        """Draws ``count`` lists of ``size`` candidates, of fewer if the pool has no more negatives.

        Args:
            hard: hardness of negatives: 0 takes them from the whole pool, 1 takes the nearest;
                between, the size of the neighbourhood falls geometrically.
            share: most lists that have the same candidates.
            cell: name of the cell to draw from; a random one for each group of lists when None.
        """
        lists: list[ListExample] = []
        while len(lists) < count:
            name = cell or self.names[rng.integers(len(self.names))]
            lists += self._cells[name].draw(rng, min(share, count - len(lists)), size, hard)
        return [self._varied(example, rng) for example in lists]

    def _varied(self, example: ListExample, rng: np.random.Generator) -> ListExample:
        """The list in other words, or without its answer."""
        query = example.query
        if query.picture is None and example.bare and rng.random() < self.wordings:
            text = word(query.text or "", rng, forms="train")
            example = replace(example, query=replace(query, text=text))
        if rng.random() < self.unanswered and len(example.candidates) > 1:
            example = without_answer(example)
        return example


def with_default_instruction(
    lists: Sequence[ListExample], rng: np.random.Generator, share: float
) -> list[ListExample]:
    """Gives a share of the lists the checkpoint's own instruction, which is short."""
    return [replace(x, instruction="") if rng.random() < share else x for x in lists]


def without_answer(example: ListExample) -> ListExample:
    """The list without the candidate that is relevant."""
    kept = [k for k in range(len(example.candidates)) if k != example.answer]
    return replace(
        example,
        candidates=[example.candidates[k] for k in kept],
        answer=None,
        closeness=[example.closeness[k] - 1 for k in kept],
        chain=None,
    )


class _CellSampler:
    def __init__(self, cell: Cell, vectors: Ranking, named: NamedPictures) -> None:
        self.cell, self.vectors, self.named = cell, vectors, named
        styles = np.array([str(entry.meta.get("style")) for entry in cell.pool])
        self.group_of = np.unique(styles, return_inverse=True)[1]
        self.members = [np.flatnonzero(self.group_of == g) for g in range(self.group_of.max() + 1)]
        self.queries_of: dict[int, list[int]] = defaultdict(list)
        for row, known in enumerate(cell.positives):
            for number in known.tolist():
                self.queries_of[number].append(row)

    def draw(
        self, rng: np.random.Generator, count: int, size: int, hard: float
    ) -> list[ListExample]:
        """Up to ``count`` lists from the neighbourhood of one query, whose list comes first."""
        row = int(rng.integers(len(self.cell.queries)))
        answers = self.cell.positives[row]
        if self.cell.retrieved is not None:  # others are relevant to the query, but not in its list
            answers = answers[np.isin(answers, self.cell.retrieved[row])]
        answer = int(rng.choice(answers))
        members = self.members[self.group_of[answer]]
        others = members[~np.isin(members, self.cell.positives[row])]
        scores = self.vectors.scores(row, others)
        others, scores = others[scores > -np.inf], scores[scores > -np.inf]
        # What a given chain names stands in the list.
        named = self._named(row, answer)[: size - 1]
        scores, others = scores[~np.isin(others, named)], others[~np.isin(others, named)]
        wanted = min(size - 1 - len(named), len(others))
        if wanted:
            window = round(len(others) ** (1 - hard) * wanted**hard)
            near = others[np.argsort(-scores, kind="stable")[:window]]
            named += rng.choice(near, wanted, replace=False).tolist()
        candidates = [answer, *named]
        pairs = {row: answer}
        for number in rng.permutation(candidates[1:]).tolist():
            if len(pairs) >= count:
                break
            if rows := [r for r in self.queries_of[number] if r not in pairs]:
                pairs[rows[rng.integers(len(rows))]] = number
        return [self._example(rng, query, found, candidates) for query, found in pairs.items()]

    def _example(
        self, rng: np.random.Generator, row: int, answer: int, candidates: list[int]
    ) -> ListExample:
        cell, known = self.cell, set(self.cell.positives[row].tolist())
        kept = [number for number in candidates if number == answer or number not in known]
        kept = rng.permutation(kept).tolist()
        scores = self.vectors.scores(row, kept)
        place = kept.index(answer)
        scores[place] = np.inf
        closeness = np.empty(len(kept), int)
        closeness[np.argsort(-scores, kind="stable")] = np.arange(len(kept))
        query, found = cell.queries[row], cell.pool[answer]
        name = describe(found).lower()
        return ListExample(
            cell=cell.name,
            instruction=cell.instructions[int(rng.integers(len(cell.instructions)))],
            query=query,
            candidates=[cell.pool[number] for number in kept],
            answer=place,
            closeness=closeness.tolist(),
            relevant=frozenset(cell.pool[number].key for number in known),
            ideal=self._ideal(query, found),
            bare=query.picture is None and (query.text or "").lower() == name,
            chain=self._chain(row, kept),
            # Who has chains written has no metadata that say as much.
            describable=not cell.chains,
        )

    def _named(self, row: int, answer: int) -> list[int]:
        """The candidates but the answer that a query's given chain names."""
        given = self.cell.chains.get(row)
        return [] if given is None else [n for n, _ in given.near if n != answer]

    def _chain(self, row: int, kept: list[int]) -> Chain | None:
        """A query's given chain with places of a list; None if the list lacks what it names."""
        given = self.cell.chains.get(row)
        if given is None or not {n for n, _ in (*given.near, *given.seen)} <= set(kept):
            return None
        near = tuple((kept.index(n), name) for n, name in given.near)
        seen = tuple((kept.index(n), said) for n, said in given.seen)
        return replace(given, near=near, seen=seen)

    def _ideal(self, query: Entry, answer: Entry) -> str:
        """What a query asks for: its own words, the name of its picture, or that of the answer.

        The latter is said with the detail that the query asks for.
        """
        said = asked_words(query.text or "", asked_for(query.meta))
        if query.picture is None and said:
            return said
        shown = None if query.text or query.picture is None else self.named.name(query.picture)
        return shown or with_detail(describe(answer), query.meta)
