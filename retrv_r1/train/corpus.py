"""Training data in memory: the queries and pools of an M-BEIR directory, and list sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrv_r1.data import mbeir
from retrv_r1.train.pictures import PictureBank


@dataclass(frozen=True)
class Entry:
    """A query or candidate: its text, its picture's row in the bank, what is known about it."""

    text: str | None
    picture: int | None
    meta: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One data set of one task shape.

    Attributes:
        queries, pool: entries.
        positives, negatives: pool numbers per query.
        instructions: phrasings of the task.
    """

    name: str
    queries: Sequence[Entry]
    pool: Sequence[Entry]
    positives: Sequence[np.ndarray]
    negatives: Sequence[np.ndarray]
    instructions: Sequence[str]

    @cached_property
    def has_pictures(self) -> bool:
        return any(entry.picture is not None for entry in self.pool)


@dataclass(frozen=True)
class ListExample:
    """A query with candidates, the answer among them, and how the task is put.

    Attributes:
        answer: number of the one relevant candidate.
        closeness: rank of each candidate's closeness to the query, the answer itself 0.
    """

    cell: str
    instruction: str
    query: Entry
    candidates: Sequence[Entry]
    answer: int
    closeness: Sequence[int]


class Corpus:
    """All cells of one split."""

    def __init__(self, root: Path, split: str, bank: PictureBank) -> None:
        meta = read_metadata(root)
        self.bank = bank
        self.cells = {
            cell.dataset: self._cell(mbeir.load(root, cell.dataset, split), meta)
            for cell in mbeir.cells(root)
            if cell.split == split
        }
        if not self.cells:
            raise ValueError(f"{root} has no queries for split {split!r}")

    def _cell(self, task: mbeir.Task, meta: dict[str, dict[str, Any]]) -> Cell:
        def entry(text: str | None, image: str | None, known: dict[str, Any]) -> Entry:
            return Entry(text or None, self.bank.row_of[image] if image else None, known)

        number = task.row_of
        return Cell(
            name=task.dataset,
            queries=[entry(q.text, q.image, {}) for q in task.queries],
            pool=[entry(c.text, c.image, meta.get(c.did, {})) for c in task.pool],
            positives=[np.array([number[d] for d in q.positives]) for q in task.queries],
            negatives=[np.array([number[d] for d in q.negatives], int) for q in task.queries],
            instructions=task.queries[0].instructions,
        )


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """What a built data set knows of its candidates, by did; empty where it says nothing."""
    path = root / "metadata.jsonl"
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["did"]: row for row in rows}


def used_pictures(corpus: Corpus) -> list[int]:
    """Bank rows of every picture that a corpus uses."""
    return sorted(
        {
            entry.picture
            for cell in corpus.cells.values()
            for entry in (*cell.queries, *cell.pool)
            if entry.picture is not None
        }
    )


class ListSampler:
    """Draws lists: a query, one of its positives, and negatives of chosen difficulty.

    Args:
        mined: first-stage neighbours per cell and query, pool numbers best first, or none yet.
    """

    def __init__(self, corpus: Corpus, mined: dict[str, np.ndarray] | None = None) -> None:
        self.corpus, self.mined = corpus, mined or {}
        self.names = sorted(corpus.cells)

    def draw(
        self, rng: np.random.Generator, size: int, hard: float, cell: str | None = None
    ) -> ListExample:
        """One list of ``size`` candidates, about ``hard`` of the negatives close ones.

        Close negatives are drawn half from the data set's own hard negatives and half from the
        first stage's neighbours; the rest of the list is random.
        """
        data = self.corpus.cells[cell or self.names[rng.integers(len(self.names))]]
        row = int(rng.integers(len(data.queries)))
        positives = data.positives[row]
        answer = int(rng.choice(positives))
        chosen = self._negatives(rng, data, row, size - 1, hard)
        order = rng.permutation(len(chosen) + 1)  # order[slot] = number in [answer, *chosen]
        numbers = [answer, *chosen]
        candidates = [data.pool[numbers[i]] for i in order]
        return ListExample(
            cell=data.name,
            instruction=data.instructions[int(rng.integers(len(data.instructions)))],
            query=data.queries[row],
            candidates=candidates,
            answer=int(np.flatnonzero(order == 0)[0]),
            closeness=[int(i) for i in order],
        )

    def _negatives(
        self, rng: np.random.Generator, data: Cell, row: int, count: int, hard: float
    ) -> list[int]:
        """Pool numbers of negatives, the closest first."""
        banned = set(data.positives[row].tolist())
        known = rng.permutation(data.negatives[row])
        if data.name in self.mined:
            neighbours = self.mined[data.name][row]
            window = neighbours[: max(count * 2, 12)]
            picked = np.sort(rng.permutation(len(window))[: round(count * hard * 0.75)])
            close = [*window[picked], *known[: round(count * hard * 0.25)]]
        else:
            close = list(known[: round(count * hard)])
        chosen: list[int] = []
        for number in map(int, close):
            if number not in banned:
                banned.add(number)
                chosen.append(number)
        while len(chosen) < count:
            number = int(rng.integers(len(data.pool)))
            if number not in banned:
                banned.add(number)
                chosen.append(number)
            elif len(banned) >= len(data.pool):
                break
        return chosen[:count]
