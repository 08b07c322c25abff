"""Reads and checks the cells of an evaluation before anything is ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from retrv_r1 import __version__
from retrv_r1.data import mbeir
from retrv_r1.eval.candidates import GivenList, KeptLists, lists_of, read_lists
from retrv_r1.eval.cells import EvalError, part_of, sample, shape_of, whole_pool
from retrv_r1.eval.outcomes import Journal, file_hash, fingerprint
from retrv_r1.eval.pictures import Pictures, bad_candidates, bad_queries
from retrv_r1.eval.presentation import wording
from retrv_r1.eval.progress import bar
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.types import Item


@dataclass(frozen=True)
class Pool:
    """A pool that was checked.

    Attributes:
        content: hash of the pool's file and pictures.
        skipped: number of candidates that were left out for their pictures.
    """

    kind: mbeir.Pool
    candidates: mbeir.CandidatePool
    content: str
    skipped: int


@dataclass(frozen=True)
class CellWork:
    """A cell to rank.

    Attributes:
        queries: queries to ask, a sample of the task's.
        skipped: number of sampled queries that were left out for their pictures.
        data: hash of everything that was read.
        given: candidates of each query from another first stage; None if there are none.
        short: number of queries with fewer such candidates than are to be reranked.
    """

    cell: mbeir.Cell
    pool: Pool
    task: mbeir.Task
    queries: Sequence[mbeir.Query]
    skipped: int
    data: str
    given: KeptLists | None = None
    short: int = 0

    @property
    def part(self) -> str:
        """Part of the report that the cell belongs to."""
        return part_of(self.cell) + (", global pool" if self.pool.kind == "global" else "")

    @property
    def shape(self) -> str:
        return shape_of(self.queries)

    @property
    def name(self) -> str:
        return f"{self.part} {self.shape}"

    def items(self, start: int, stop: int) -> list[Item]:
        """Consecutive candidates of the pool."""
        return [self.task.item(candidate) for candidate in self.task.pool[start:stop]]

    @cached_property
    def counts(self) -> dict[str, int]:
        """What was left out or is not as it should be, for the report."""
        foreign = [[did for did in q.positives if did not in self.task.pool] for q in self.queries]
        pairs = zip(foreign, self.queries, strict=True)
        return {
            "positives_outside_the_pool": sum(map(len, foreign)),
            "queries_without_a_positive": sum(len(out) == len(q.positives) for out, q in pairs),
            "queries_with_lists_unlike_the_qrels": sum(q.disputed for q in self.queries),
            "skipped_candidates": self.pool.skipped,
            "skipped_queries": self.skipped,
            "queries_with_short_lists": self.short,
        }

    def journal(self, out: Path | None, model: str, name: str, **about: object) -> Journal:
        """The file of outcomes of one system; those of data that are no longer there are removed.

        Args:
            out: folder of the evaluation; None keeps outcomes in memory.
            model: fingerprint of the model.
        """
        cell = self.cell
        folder = out and out / "outcomes" / f"{cell.dataset}_{cell.split}"
        about |= {"cell": cell.dataset, "split": cell.split, "pool": self.pool.kind}
        if self.given is not None:
            about["lists"] = self.given.content
        about |= {"model": model, "version": __version__, "data": self.data}
        if folder is not None:
            _remove_stale(folder, name, about)
        return Journal(folder, name, about)


def _remove_stale(folder: Path, name: str, about: Mapping[str, object]) -> None:
    """Removes outcomes that differ from those to come in nothing but their data."""
    plain = json.loads(json.dumps(about))  # as a file has it
    for path in folder.glob(f"{name}-*.jsonl"):
        with path.open("rb") as handle:
            first = handle.readline()
        try:
            header = json.loads(first)
        except ValueError:
            continue
        ours = header | {"data": plain["data"], "fingerprint": None} == plain | {
            "fingerprint": None
        }
        if ours and header["data"] != plain["data"]:
            path.unlink()


@dataclass(frozen=True)
class BadCell:
    """A cell that cannot be evaluated, and why."""

    cell: str
    split: str
    pool: mbeir.Pool
    error: str

    @property
    def name(self) -> str:
        return f"{self.cell} ({self.split}, {self.pool} pool)"


@dataclass(frozen=True)
class Plan:
    """Cells to rank, and those that cannot be."""

    works: Sequence[CellWork]
    bad: Sequence[BadCell]


def read_cells(
    root: Path, cells: Sequence[mbeir.Cell], settings: EvalSettings, out: Path | None
) -> Plan:
    """Reads and checks every cell with its pools and pictures; a bad one costs only itself.

    Args:
        out: folder of the evaluation, which keeps what is known of picture files.
    Raises:
        EvalError: no cell can be evaluated; the message has the first cell's error. Or one file
            of candidates is to serve both pools.
    """
    if settings.pool == "both" and settings.candidates and Path(settings.candidates).is_file():
        raise EvalError(
            f"{settings.candidates} has lists of one search: name its pool with --pool local or "
            "--pool global, or give a folder with a file for each pool"
        )
    with closing(Pictures(root, out)) as pictures:
        reader, works = _Reader(root, settings, pictures, out), list[CellWork]()
        for kind in settings.pools:
            works += reader.read_all(cells, kind)
        local = [work.cell for work in works if work.pool.kind == "local"]
        if settings.pool == "local" and len(local) < len(works):  # one pool for all lists
            works = [work for work in works if work.pool.kind == "global"]
            works += reader.read_all(local, "global")
    bad = reader.bad
    if not works:
        raise EvalError(f"no cell can be evaluated; {bad[0].name}: {bad[0].error}")
    return Plan(works, bad)


class _Reader:
    """Reads cells; a pool that several of them share is read once."""

    def __init__(
        self, root: Path, settings: EvalSettings, pictures: Pictures, out: Path | None
    ) -> None:
        self.root, self.settings, self.pictures, self.out = root, settings, pictures, out
        self.bad: list[BadCell] = []
        self._pools: dict[Path, Pool | mbeir.MBEIRError] = {}
        self._lists = lru_cache(maxsize=1)(read_lists)  # one file may serve all cells

    def read_all(self, cells: Sequence[mbeir.Cell], kind: mbeir.Pool) -> list[CellWork]:
        """Cells that search one kind of pool; those that cannot be read are added to ``bad``."""
        works = []
        for cell in cells:
            try:
                works.append(self._read(cell, kind))
            except (mbeir.MBEIRError, EvalError) as error:
                message = str(error).replace(f"{self.root}/", "")
                self.bad.append(BadCell(cell.dataset, cell.split, kind, message))
        return works

    def _read(self, cell: mbeir.Cell, kind: mbeir.Pool) -> CellWork:
        settings = self.settings
        pool, task = self._load(cell, kind)
        if not task.queries:
            raise mbeir.MBEIRError(f"{cell.queries} has no queries: choose another --split")
        asked = sample(task.queries, settings.limit, settings.seed)
        for query in asked:
            wording(query, settings)  # raises where there is none
        # All of the cell, so that a limit does not change the hash.
        checked = self.pictures.check(query.image for query in task.queries)
        errors = {task.queries[place].qid: error for place, error in checked.bad.items()}
        bad = {query.qid: errors[query.qid] for query in asked if query.qid in errors}
        if bad and not settings.skip_bad:
            raise mbeir.MBEIRError(bad_queries(cell.queries, bad))
        queries = [query for query in asked if query.qid not in bad]
        if not queries:
            raise mbeir.MBEIRError(f"{cell.queries}: no query has a picture that can be used")
        given, short = None, 0
        if settings.candidates is not None:
            lists = self._given(Path(settings.candidates), cell, kind, task, queries)
            alone = settings.pool == "local" and "global" in cell.pools
            if alone and _unknown(lists, task):  # LamRA reranks with the union pool
                pool, task = self._load(cell, "global")
            if did := _unknown(lists, task):
                name = pool.candidates.path.name
                raise EvalError(
                    f"{settings.candidates} names {did}, which is not in {name}; give lists of a "
                    "search in that pool, or choose another --pool"
                )
            wanted = min(max(settings.k), len(task.pool))
            short = sum(len(lists[query.qid].dids) < wanted for query in queries)
            given = KeptLists(lists, [query.qid for query in queries], self.out)
        data = fingerprint(
            {"files": self._files(cell), "pool": pool.content, "pictures": checked.content}
        )
        return CellWork(cell, pool, task, queries, len(bad), data, given, short)

    def _given(
        self,
        path: Path,
        cell: mbeir.Cell,
        kind: mbeir.Pool,
        task: mbeir.Task,
        queries: Sequence[mbeir.Query],
    ) -> dict[str, GivenList]:
        """The lists that a file gives for a cell's queries."""
        known, asked = ([query.qid for query in some] for some in (task.queries, queries))
        lists = lists_of(path, cell, kind, known, asked, self._lists)
        if self.settings.fuse is not None and not all(one.similarities for one in lists.values()):
            raise EvalError(
                f"{path} gives distances or ranks, which cannot be added to P(yes); leave --fuse "
                "out, or give similarities"
            )
        return lists

    def _load(self, cell: mbeir.Cell, kind: mbeir.Pool) -> tuple[Pool, mbeir.Task]:
        """A pool, and a cell's queries that search it."""
        pool = self._pool(whole_pool(self.root, cell, kind), kind)
        return pool, mbeir.load(self.root, cell.dataset, cell.split, pool.candidates, strict=False)

    def _pool(self, path: Path, kind: mbeir.Pool) -> Pool:
        if path not in self._pools:
            try:
                self._pools[path] = self._read_pool(path, kind)
            except mbeir.MBEIRError as error:
                self._pools[path] = error
        pool = self._pools[path]
        if isinstance(pool, mbeir.MBEIRError):
            raise pool
        return pool

    def _read_pool(self, path: Path, kind: mbeir.Pool) -> Pool:
        candidates = mbeir.CandidatePool(path)
        images = (candidate.image for candidate in candidates)
        label = f"checking the pictures of {path.name}"
        checked = self.pictures.check(bar(images, label, len(candidates)))
        if checked.bad and not self.settings.skip_bad:
            raise mbeir.MBEIRError(bad_candidates(candidates, checked.bad))
        if len(checked.bad) == len(candidates):
            raise mbeir.MBEIRError(f"{path}: no candidate has a picture that can be used")
        content = fingerprint({"file": file_hash(self.root, [path]), "pictures": checked.content})
        if checked.bad:
            candidates = candidates.without(checked.bad)
        return Pool(kind, candidates, content, len(checked.bad))

    def _files(self, cell: mbeir.Cell) -> str:
        """Hash of queries, relevance, instructions, and the data set's manifest."""
        qrels = f"qrels/{cell.split}/mbeir_{cell.dataset}_{cell.split}_qrels.txt"
        others = (qrels, "instructions/query_instructions.tsv", "manifest.json")
        paths = [cell.queries, *(self.root / name for name in others)]
        return file_hash(self.root, [path for path in paths if path.is_file()])


def _unknown(given: Mapping[str, GivenList], task: mbeir.Task) -> str | None:
    """The first given candidate that a task's pool lacks."""
    return next((did for one in given.values() for did in one.dids if did not in task.pool), None)
