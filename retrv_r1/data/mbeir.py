"""Reader for directories in M-BEIR's layout: the benchmark's own and those built here.

    query/{split}/mbeir_{dataset}_{split}.jsonl
    cand_pool/local/mbeir_{dataset}[_{split}]_cand_pool.jsonl
    cand_pool/global/mbeir_union[_{family}][_{split}]_cand_pool.jsonl
    qrels/{split}/mbeir_{dataset}_{split}_qrels.txt          (qid 0 did 1 task_id)
    instructions/query_instructions.tsv

`dataset` is the part of a file name such as `cirr_task7` or `pictographs_t2i`. A directory with
several evaluations may have a global pool for each family of them: the pool of
`pictographs_unseen_t2i` is `mbeir_union_unseen_test_cand_pool.jsonl` if that file exists.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from retrv_r1.data.mbeir_lines import (
    TASKS,
    Candidate,
    MBEIRError,
    Query,
    json_lines,
    parse_query,
    read_instructions,
    read_qrels,
)
from retrv_r1.data.mbeir_pool import CandidatePool
from retrv_r1.types import Item

__all__ = [
    "TASKS",
    "Candidate",
    "CandidatePool",
    "Cell",
    "MBEIRError",
    "Query",
    "Task",
    "cells",
    "instruction",
    "load",
    "pool_path",
]

Pool: TypeAlias = Literal["local", "global"]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cell:
    """One query file of a directory, and its candidate pools by kind."""

    dataset: str
    split: str
    queries: Path
    pools: Mapping[str, Path]


@dataclass(frozen=True)
class Task:
    """Queries and the candidate pool that they search.

    Positives that the pool lacks stay with their query, as in the benchmark's qrels: nothing can
    find them. They are there only if the task was not read strictly.
    """

    root: Path
    dataset: str
    split: str
    queries: list[Query]
    pool: CandidatePool

    def candidate(self, did: str) -> Candidate:
        """The candidate with a did.

        Raises:
            KeyError: the pool has no such candidate.
        """
        return self.pool[self.pool.row(did)]

    def item(self, thing: Query | Candidate) -> Item:
        """A query or candidate as an item; its picture as a path under the root."""
        name = thing.qid if isinstance(thing, Query) else thing.did
        image = self.root / thing.image if thing.image else None
        return Item(text=thing.text, image=image, id=name)


def instruction(query: Query, which: int | random.Random = 0) -> str:
    """One wording of a query's instruction: by index (modulo their number), or drawn.

    Raises:
        MBEIRError: the instruction table has no row for this query.
    """
    options = query.instructions
    if not options:
        number = query.qid.split(":")[0]
        raise MBEIRError(
            f"query {query.qid} has no instruction: add a row for dataset id {number}, task "
            f"{query.task_id} to instructions/query_instructions.tsv"
        )
    if isinstance(which, random.Random):
        return which.choice(options)
    return options[which % len(options)]


def cells(root: str | Path) -> list[Cell]:
    """Every query file under `root` with its pools, sorted by split and name.

    Raises:
        MBEIRError: `root` has no `query` folder.
    """
    root = Path(root)
    if not (root / "query").is_dir():
        raise MBEIRError(
            f"{root} has no `query` folder: name an M-BEIR directory, or build one with "
            "`retrv-r1 data pictographs`"
        )
    found = []
    for split in SPLITS:
        for path in sorted((root / "query" / split).glob(f"mbeir_*_{split}.jsonl")):
            dataset = path.stem.removeprefix("mbeir_").removesuffix(f"_{split}")
            pools = {
                kind: pool
                for kind in ("local", "global")
                if (pool := _find_pool(root, dataset, split, kind))
            }
            found.append(Cell(dataset, split, path, pools))
    return found


def load(
    root: str | Path,
    dataset: str,
    split: str,
    pool: Pool | CandidatePool = "local",
    *,
    strict: bool = True,
) -> Task:
    """Reads one dataset's queries of a split with their candidate pool.

    Positives come from the qrels, or from a query's own list where the qrels do not judge it.

    Args:
        pool: kind of pool, or a pool that was read before.
        strict: whether to refuse queries that name candidates outside the pool, as training needs
            it. If False, positives outside it are kept and negatives are dropped: queries of the
            released M-BEIR name candidates of other pools.

    Raises:
        MBEIRError: a file is missing, a line is damaged, a qid is repeated or a did is unknown.
    """
    root = Path(root)
    path = root / "query" / split / f"mbeir_{dataset}_{split}.jsonl"
    if not path.is_file():
        there = ", ".join(f"{c.dataset} ({c.split})" for c in cells(root)) or "nothing"
        raise MBEIRError(f"{path} is missing; the directory holds {there}")
    if isinstance(pool, str):
        pool = CandidatePool(pool_path(root, dataset, split, pool))
    judged = read_qrels(root / "qrels" / split / f"mbeir_{dataset}_{split}_qrels.txt")
    prompts = read_instructions(root / "instructions" / "query_instructions.tsv")
    queries: list[Query] = []
    places: dict[str, str] = {}
    for row, where in json_lines(path):
        query = parse_query(row, where, judged, prompts)
        earlier = places.setdefault(query.qid, where)
        if earlier != where:
            raise MBEIRError(f"{where}: the qid {query.qid} is that of {earlier}; keep one of them")
        if not strict:
            query = replace(query, negatives=tuple(d for d in query.negatives if d in pool))
        queries.append(query)
    if strict:
        _require(pool, queries, places)
    return Task(root, dataset, split, queries, pool)


def _require(pool: CandidatePool, queries: Sequence[Query], places: Mapping[str, str]) -> None:
    """Refuses queries that name candidates outside the pool."""
    named = [(query, did) for query in queries for did in (*query.positives, *query.negatives)]
    unknown = np.flatnonzero(pool.rows([did for _, did in named]) < 0)
    if len(unknown):
        query, did = named[unknown[0]]
        raise MBEIRError(
            f"{places[query.qid]}: query {query.qid} names {did}, which is not in "
            f"{pool.path.name}; strict=False takes such queries"
        )


def pool_path(root: Path, dataset: str, split: str, pool: Pool) -> Path:
    """The pool file of a cell.

    Raises:
        MBEIRError: there is none.
    """
    if pool not in ("local", "global"):
        raise MBEIRError(f"pool must be 'local' or 'global', not {pool!r}")
    path = _find_pool(root, dataset, split, pool)
    if path is None:
        folder = root / "cand_pool" / pool
        raise MBEIRError(
            f"no candidate pool for {dataset} ({split}) in {folder}; copy the pool files there"
        )
    return path


def _find_pool(root: Path, dataset: str, split: str, pool: str) -> Path | None:
    folder = root / "cand_pool" / pool
    stems = [f"mbeir_{dataset}_{split}", f"mbeir_{dataset}"]
    if pool == "global":
        stems = [f"mbeir_union_{part}_{split}" for part in dataset.split("_")]
        stems += [f"mbeir_union_{split}", "mbeir_union"]
    paths = (folder / f"{stem}_cand_pool.jsonl" for stem in stems)
    return next((path for path in paths if path.is_file()), None)
