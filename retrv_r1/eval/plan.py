"""Reads and checks the cells of an evaluation before anything is ranked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from retrv_r1 import __version__
from retrv_r1.data import mbeir
from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.eval.candidates import GivenList, lists_of
from retrv_r1.eval.cells import EvalError, part_of, sample, shape_of, whole_pool
from retrv_r1.eval.outcomes import Journal, file_hash, fingerprint
from retrv_r1.eval.pictures import Pictures
from retrv_r1.eval.presentation import wording
from retrv_r1.eval.progress import bar
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.types import Item

_NAMED = 20  # bad pictures that an error names


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
        given: candidates of each query from another first stage, by qid; None if there are none.
    """

    cell: mbeir.Cell
    pool: Pool
    task: mbeir.Task
    queries: Sequence[mbeir.Query]
    skipped: int
    data: str
    given: Mapping[str, GivenList] | None = None

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

    @property
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
            about["lists"] = fingerprint({qid: one.dids for qid, one in self.given.items()})
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
    works, bad = [], []
    with closing(Pictures(root, out)) as pictures:
        reader = _Reader(root, settings, pictures)
        for kind in settings.pools:
            for cell in cells:
                try:
                    works.append(reader.read(cell, kind))
                except (mbeir.MBEIRError, EvalError) as error:
                    message = str(error).replace(f"{root}/", "")
                    bad.append(BadCell(cell.dataset, cell.split, kind, message))
    if not works:
        raise EvalError(f"no cell can be evaluated; {bad[0].name}: {bad[0].error}")
    return Plan(works, bad)


_REMARKS = {
    "positives_outside_the_pool": "positives are in other pools, where nothing can find them",
    "queries_without_a_positive": "queries have no positive in the pool and count as not found",
    "queries_with_lists_unlike_the_qrels": "queries list other positives than the qrels, which "
    "decide",
    "skipped_candidates": "candidates were left out for pictures that cannot be used",
    "skipped_queries": "queries were left out for pictures that cannot be used",
}


def remarks(works: Sequence[CellWork]) -> list[str]:
    """Sentences on what was left out or is not as it should be, with the cells' counts."""
    said = []
    for key, words in _REMARKS.items():
        found = {f"{w.cell.dataset}, {w.pool.kind} pool": w.counts[key] for w in works}
        cells = "; ".join(f"{name}: {count}" for name, count in found.items() if count)
        if cells:
            said.append(f"{sum(found.values())} {words} ({cells}).")
    return said


class _Reader:
    """Reads cells; a pool that several of them share is read once."""

    def __init__(self, root: Path, settings: EvalSettings, pictures: Pictures) -> None:
        self.root, self.settings, self.pictures = root, settings, pictures
        self._pools: dict[Path, Pool | mbeir.MBEIRError] = {}

    def read(self, cell: mbeir.Cell, kind: mbeir.Pool) -> CellWork:
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
            raise mbeir.MBEIRError(_bad_queries(cell.queries, bad))
        queries = [query for query in asked if query.qid not in bad]
        if not queries:
            raise mbeir.MBEIRError(f"{cell.queries}: no query has a picture that can be used")
        given = None
        if settings.candidates is not None:
            given = self._given(Path(settings.candidates), cell, kind, task, queries)
            alone = settings.pool == "local" and "global" in cell.pools
            if alone and _unknown(given, task):  # LamRA reranks with the union pool
                pool, task = self._load(cell, "global")
            if did := _unknown(given, task):
                name = pool.candidates.path.name
                raise EvalError(f"{settings.candidates} names {did}, which is not in {name}")
        data = fingerprint(
            {"files": self._files(cell), "pool": pool.content, "pictures": checked.content}
        )
        return CellWork(cell, pool, task, queries, len(bad), data, given)

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
        lists = lists_of(path, cell, kind, known, asked)
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
            raise mbeir.MBEIRError(_bad_candidates(candidates, checked.bad))
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


def _bad_candidates(pool: mbeir.CandidatePool, bad: dict[int, str]) -> str:
    named = [f"line {pool.line(row)}: {error}" for row, error in list(bad.items())[:_NAMED]]
    return _bad_pictures(pool.path, "candidates", len(bad), named)


def _bad_queries(path: Path, bad: dict[str, str]) -> str:
    places = [
        f"line {where.rpartition(':')[2]}: {bad[row['qid']]}"
        for row, where in json_lines(path)
        if row["qid"] in bad
    ]
    return _bad_pictures(path, "queries", len(bad), places[:_NAMED])


def _bad_pictures(path: Path, things: str, count: int, named: Sequence[str]) -> str:
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    return (
        f"{path}: {count} {things} have pictures that cannot be used: {'; '.join(named)}{more}; "
        "mend them, or leave them out with --skip-bad"
    )
