"""What the lists of a file are about: queries and candidates, found in their data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from retrv_r1.data import mbeir
from retrv_r1.data.lists import CandidateList, ListsError


@dataclass(frozen=True)
class ListCell:
    """A cell of a data set, with its queries by qid."""

    root: Path
    task: mbeir.Task

    @cached_property
    def queries(self) -> dict[str, mbeir.Query]:
        return {query.qid: query for query in self.task.queries}


@dataclass(frozen=True)
class ListItems:
    """Finds what lists are about; a cell is read when the first of its lists is asked for.

    Args:
        roots: folders of the data sets.
    """

    roots: Sequence[Path]
    _cells: dict[tuple[str, str], ListCell] = field(default_factory=dict)

    def cell(self, name: str, split: str) -> ListCell:
        """A cell by its name and split.

        Raises:
            ListsError: no data set has it.
        """
        if (name, split) not in self._cells:
            has = [r for r in self.roots if _query_file(r, name, split).is_file()]
            if not has:
                folders = ", ".join(map(str, self.roots))
                raise ListsError(
                    f"no cell {name} ({split}) in {folders}: name the data set that the lists "
                    "were made from"
                )
            # The released files name candidates of other pools, which no list here can have.
            task = mbeir.load(has[0], name, split, strict=False)
            self._cells[name, split] = ListCell(has[0], task)
        return self._cells[name, split]

    def find(self, one: CandidateList) -> tuple[mbeir.Query, list[mbeir.Candidate]]:
        """Query and candidates of a list, the latter in its order.

        Raises:
            ListsError: its data set lacks one of them.
        """
        cell = self.cell(one.cell, one.split)
        query = cell.queries.get(one.qid)
        rows = cell.task.pool.rows(one.candidates).tolist()
        if query is None or min(rows) < 0:
            absent = one.qid if query is None else one.candidates[rows.index(-1)]
            raise ListsError(
                f"{cell.root}: {one.cell} ({one.split}) has no {absent}: the lists were made from "
                "another data set"
            )
        return query, [cell.task.pool[row] for row in rows]


def _query_file(root: Path, name: str, split: str) -> Path:
    return root / "query" / split / f"mbeir_{name}_{split}.jsonl"
