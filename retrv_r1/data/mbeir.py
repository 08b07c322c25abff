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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from retrv_r1.data.mbeir_lines import (
    TASKS,
    Candidate,
    MBEIRError,
    Query,
    json_lines,
    parse_candidate,
    parse_query,
    read_instructions,
    read_qrels,
)
from retrv_r1.types import Item

__all__ = [
    "TASKS",
    "Candidate",
    "Cell",
    "MBEIRError",
    "Query",
    "Task",
    "cells",
    "instruction",
    "load",
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
    """Queries and the candidate pool that they search."""

    root: Path
    dataset: str
    split: str
    queries: list[Query]
    pool: list[Candidate]
    _rows: dict[str, int] = field(default_factory=dict, repr=False)

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Position of each did in the pool, from 0."""
        return self._rows or {c.did: i for i, c in enumerate(self.pool)}

    def candidate(self, did: str) -> Candidate:
        """The candidate with a did.

        Raises:
            KeyError: the pool has no such candidate.
        """
        return self.pool[self.row_of[did]]

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
                if (pool := _pool_path(root, dataset, split, kind))
            }
            found.append(Cell(dataset, split, path, pools))
    return found


def load(
    root: str | Path, dataset: str, split: str, pool: Pool = "local", *, strict: bool = True
) -> Task:
    """Reads one dataset's queries of a split with their candidate pool.

    Positives come from the queries' own lists, or from the qrels where those are empty.

    Args:
        strict: refuse queries that name candidates outside the pool. If False, such candidates
            are dropped, and so are queries without any positive left.

    Raises:
        MBEIRError: a file is missing, a line is damaged or a did is unknown.
    """
    root = Path(root)
    if pool not in ("local", "global"):
        raise MBEIRError(f"pool must be 'local' or 'global', not {pool!r}")
    path = root / "query" / split / f"mbeir_{dataset}_{split}.jsonl"
    if not path.is_file():
        there = ", ".join(f"{c.dataset} ({c.split})" for c in cells(root)) or "nothing"
        raise MBEIRError(f"{path} is missing; the directory holds {there}")
    pool_path = _pool_path(root, dataset, split, pool)
    if pool_path is None:
        folder = root / "cand_pool" / pool
        raise MBEIRError(
            f"no candidate pool for {dataset} ({split}) in {folder}; copy the pool files there"
        )
    candidates = [parse_candidate(row, where) for row, where in json_lines(pool_path)]
    rows = {c.did: i for i, c in enumerate(candidates)}
    if len(rows) < len(candidates):
        raise MBEIRError(
            f"{pool_path}: {len(candidates) - len(rows)} dids are repeated; keep one line for each"
        )
    judged = read_qrels(root / "qrels" / split / f"mbeir_{dataset}_{split}_qrels.txt")
    prompts = read_instructions(root / "instructions" / "query_instructions.tsv")
    queries = []
    for row, where in json_lines(path):
        query = parse_query(row, where, judged, prompts)
        unknown = [d for d in (*query.positives, *query.negatives) if d not in rows]
        if unknown and strict:
            raise MBEIRError(
                f"{where}: query {query.qid} names {unknown[0]}, which is not in "
                f"{pool_path.name}; strict=False drops such candidates"
            )
        if unknown:
            query = _without_unknown(query, rows)
        if query.positives:
            queries.append(query)
    return Task(root, dataset, split, queries, candidates, rows)


def _without_unknown(query: Query, rows: Mapping[str, int]) -> Query:
    """The query without candidates that the pool lacks."""
    return replace(
        query,
        positives=tuple(d for d in query.positives if d in rows),
        negatives=tuple(d for d in query.negatives if d in rows),
    )


def _pool_path(root: Path, dataset: str, split: str, pool: str) -> Path | None:
    folder = root / "cand_pool" / pool
    stems = [f"mbeir_{dataset}_{split}", f"mbeir_{dataset}"]
    if pool == "global":
        stems = [f"mbeir_union_{part}_{split}" for part in dataset.split("_")]
        stems += [f"mbeir_union_{split}", "mbeir_union"]
    paths = (folder / f"{stem}_cand_pool.jsonl" for stem in stems)
    return next((path for path in paths if path.is_file()), None)
