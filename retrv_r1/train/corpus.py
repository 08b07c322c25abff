"""Training data in memory: the queries and pools of an M-BEIR directory."""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrv_r1.data import mbeir
from retrv_r1.model.chains import Chain
from retrv_r1.train.config import ConfigError
from retrv_r1.train.machine import cores
from retrv_r1.train.pictures import PictureBank

Key = tuple[str | None, int | None]
"""What a model sees of an entry: its text, and its picture's row in the bank."""


@dataclass(frozen=True)
class Entry:
    """A query or candidate: its text, its picture's row in the bank, and its metadata.

    A query's metadata is the ``detail`` that it asks for, if any.
    """

    text: str | None
    picture: int | None
    meta: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.text, self.picture


@dataclass(frozen=True)
class Cell:
    """One data set of M-BEIR, with one task shape.

    Attributes:
        positives: pool numbers of the relevant candidates of each query.
        instructions: wordings of the task.
        retrieved: pool numbers of each query's candidates, best first, if lists are given; then
            the pool has no others.
        chains: given chains by query; their candidates are pool numbers.
    """

    name: str
    queries: Sequence[Entry]
    pool: Sequence[Entry]
    positives: Sequence[np.ndarray]
    instructions: Sequence[str]
    retrieved: Sequence[np.ndarray] | None = None
    chains: Mapping[int, Chain] = field(default_factory=dict)


@dataclass(frozen=True)
class ListExample:
    """A query with candidates, at most one of which is relevant.

    Attributes:
        instruction: wording of the task; empty for the checkpoint's own.
        answer: number of the relevant candidate; None if no candidate is relevant.
        closeness: rank of each candidate's closeness to the query; the answer has 0.
        ideal: what the query asks for, in a few words.
        bare: whether the query is the answer's name alone.
        relevant: keys of all entries known to be relevant, in this list or elsewhere.
        chain: a given chain of thought.
        describable: whether a chain may be made from metadata if none is given.
    """

    cell: str
    instruction: str
    query: Entry
    candidates: Sequence[Entry]
    answer: int | None
    closeness: Sequence[int]
    relevant: frozenset[Key] = frozenset()
    ideal: str = ""
    bare: bool = False
    chain: Chain | None = None
    describable: bool = True


class Corpus:
    """All cells of one split of one or more data sets.

    Args:
        roots: folders of the data sets.
        split: ``train`` or ``val``.
        bank: their pictures.
    Raises:
        ConfigError: the split has no queries, or shows a picture that the bank lacks.
    """

    def __init__(self, roots: Path | Sequence[Path], split: str, bank: PictureBank) -> None:
        self.bank = bank
        self.cells: dict[str, Cell] = {}
        roots = [roots] if isinstance(roots, Path) else list(roots)
        known = {root: (read_metadata(root), _read_details(root)) for root in roots}
        found = [(root, c) for root in roots for c in mbeir.cells(root) if c.split == split]
        for (root, cell), columns in zip(found, _read(found), strict=True):
            if cell.dataset in self.cells:
                raise ConfigError(f"two data sets have a cell {cell.dataset}: leave one out")
            self.cells[cell.dataset] = self._cell(cell.dataset, columns, *known[root])
        if not self.cells:
            raise ConfigError(
                f"{', '.join(map(str, roots))}: no queries for the split {split!r}; build the data "
                "set again with `retrv-r1 data pictographs DIR`"
            )

    def _cell(
        self,
        name: str,
        columns: _Columns,
        meta: dict[str, dict[str, Any]],
        asked: dict[str, dict[str, Any]],
    ) -> Cell:
        def entry(text: str | None, image: str | None, known: dict[str, Any]) -> Entry:
            if image and image not in self.bank.row_of:
                raise ConfigError(f"pictures.jsonl lacks {image}: build the data set again")
            return Entry(text or None, self.bank.row_of[image] if image else None, known)

        return Cell(
            name=name,
            queries=[
                entry(text, image, asked.get(qid, {})) for qid, text, image in columns.queries
            ],
            pool=[entry(text, image, meta.get(did, {})) for did, text, image in columns.pool],
            positives=columns.positives,
            instructions=columns.instructions,
        )


@dataclass(frozen=True)
class _Columns:
    """What is read of a cell: id, text and picture of queries and candidates."""

    queries: list[tuple[str, str | None, str | None]]
    pool: list[tuple[str, str | None, str | None]]
    positives: list[np.ndarray]
    instructions: Sequence[str]


def _read(found: Sequence[tuple[Path, mbeir.Cell]]) -> Iterator[_Columns]:
    """Reads cells; processes share the work if the files are large."""
    size = sum(cell.queries.stat().st_size for _, cell in found)
    if size < _LARGE or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_columns, found)
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(cores(), len(found)), mp_context=fork) as processes:
        yield from processes.map(_columns, found)


_LARGE = 2**24
"""Bytes of query files from which processes read them."""


def _columns(one: tuple[Path, mbeir.Cell]) -> _Columns:
    root, cell = one
    task = mbeir.load(root, cell.dataset, cell.split)
    counts = [len(query.positives) for query in task.queries]
    rows = task.pool.rows([did for query in task.queries for did in query.positives])
    return _Columns(
        [(q.qid, q.text, q.image) for q in task.queries],
        [(c.did, c.text, c.image) for c in task.pool],
        np.split(rows, np.cumsum(counts)[:-1]),
        task.queries[0].instructions,
    )


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """Metadata of a data set's candidates by ``did``; empty if it has no ``metadata.jsonl``."""
    path = root / "metadata.jsonl"
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["did"]: row for row in rows}


def _read_details(root: Path) -> dict[str, dict[str, Any]]:
    """The detail that a query asks for, by ``qid``, of those queries that ask for one."""
    path = root / "query_metadata.jsonl"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        return {row["qid"]: {"detail": row["detail"]} for row in rows if row.get("detail")}


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


def described_pictures(corpus: Corpus) -> list[Entry]:
    """All distinct pictures of the pools that have a name, as entries without text."""
    seen: dict[int, Entry] = {}
    for cell in corpus.cells.values():
        for entry in cell.pool:
            if entry.picture is not None and entry.meta.get("name"):
                seen.setdefault(entry.picture, Entry(None, entry.picture, entry.meta))
    return list(seen.values())


def pictures_of(entries: Sequence[Entry]) -> list[int]:
    """Bank rows of the entries' pictures, in order."""
    return [entry.picture for entry in entries if entry.picture is not None]


def distinct(
    lists: Sequence[ListExample],
) -> tuple[list[Entry], list[tuple[int, list[int]]]]:
    """Distinct entries of lists, and the numbers of each list's query and candidates among them."""
    entries: dict[Key, int] = {}
    ordered: list[Entry] = []

    def number(entry: Entry) -> int:
        if entry.key not in entries:
            entries[entry.key] = len(ordered)
            ordered.append(entry)
        return entries[entry.key]

    return ordered, [(number(x.query), [number(c) for c in x.candidates]) for x in lists]


def rivals(lists: Sequence[ListExample]) -> np.ndarray:
    """Whether each candidate of all lists is a negative of a list's query, ``[b, c]``.

    Negatives are the other candidates of the same list, and candidates of other lists in the same
    cell unless they are known to be relevant or are the query itself.
    """
    owner = np.repeat(np.arange(len(lists)), [len(x.candidates) for x in lists])
    cells = np.unique([x.cell for x in lists], return_inverse=True)[1]
    places: defaultdict[Key, list[int]] = defaultdict(list)
    for place, candidate in enumerate(c for x in lists for c in x.candidates):
        places[candidate.key].append(place)
    out = cells[:, None] == cells[owner]
    for b, example in enumerate(lists):
        answer = None if example.answer is None else example.candidates[example.answer].key
        for key in (*example.relevant, example.query.key, *([] if answer is None else [answer])):
            out[b, places.get(key, [])] = False
        own = owner == b
        out[b, own] = [candidate.key != answer for candidate in example.candidates]
    return out
