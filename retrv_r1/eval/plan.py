"""Reads the cells of an evaluation before anything is ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrv_r1 import __version__
from retrv_r1.data import mbeir
from retrv_r1.eval.cells import EvalError, part_of, sample, shape_of
from retrv_r1.eval.outcomes import Journal, file_hash
from retrv_r1.eval.settings import EvalSettings


@dataclass(frozen=True)
class CellWork:
    """A cell to rank.

    Attributes:
        pool: kind of the pool, ``local`` or ``global``.
        queries: queries to ask, a sample of the task's.
        data: hash of everything that was read.
    """

    cell: mbeir.Cell
    pool: mbeir.Pool
    task: mbeir.Task
    queries: Sequence[mbeir.Query]
    data: str

    @property
    def part(self) -> str:
        """Part of the report that the cell belongs to."""
        return part_of(self.cell) + (", global pool" if self.pool == "global" else "")

    @property
    def shape(self) -> str:
        return shape_of(self.queries)

    @property
    def name(self) -> str:
        return f"{self.part} {self.shape}"

    def journal(self, out: Path | None, model: str, name: str, **about: object) -> Journal:
        """The file of outcomes of one system.

        Args:
            out: folder of the evaluation; None keeps outcomes in memory.
            model: fingerprint of the model.
        """
        cell = self.cell
        folder = out and out / "outcomes" / f"{cell.dataset}_{cell.split}"
        about |= {"cell": cell.dataset, "split": cell.split, "data": self.data}
        return Journal(folder, name, about | {"model": model, "version": __version__})


@dataclass(frozen=True)
class BadCell:
    """A cell that cannot be evaluated, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Plan:
    """Cells to rank, and those that cannot be."""

    works: Sequence[CellWork]
    bad: Sequence[BadCell]


def read_cells(root: Path, cells: Sequence[mbeir.Cell], settings: EvalSettings) -> Plan:
    """Reads every cell with its pools; a bad one costs only itself.

    Raises:
        EvalError: no cell can be read; the message has the first cell's error.
    """
    works, bad = [], []
    for pool in settings.pools:
        for cell in cells:
            try:
                works.append(_read(root, cell, pool, settings))
            except mbeir.MBEIRError as error:
                bad.append(BadCell(f"{cell.dataset} ({cell.split}, {pool} pool)", str(error)))
    if not works:
        raise EvalError(f"{bad[0].name}: {bad[0].error}")
    return Plan(works, bad)


def _read(root: Path, cell: mbeir.Cell, pool: mbeir.Pool, settings: EvalSettings) -> CellWork:
    task = mbeir.load(root, cell.dataset, cell.split, pool)
    if not task.queries:
        raise mbeir.MBEIRError(f"{cell.queries} has no queries: choose another --split")
    queries = sample(task.queries, settings.limit, settings.seed)
    return CellWork(cell, pool, task, queries, _data_hash(root, cell, pool))


def _data_hash(root: Path, cell: mbeir.Cell, pool: mbeir.Pool) -> str:
    """Hash of queries, candidates, relevance, instructions, and the data set's manifest."""
    qrels = f"qrels/{cell.split}/mbeir_{cell.dataset}_{cell.split}_qrels.txt"
    others = (qrels, "instructions/query_instructions.tsv", "manifest.json")
    paths = [cell.queries, *(root / name for name in others)]
    if pool in cell.pools:
        paths.append(cell.pools[pool])
    return file_hash(root, [path for path in paths if path.is_file()])
