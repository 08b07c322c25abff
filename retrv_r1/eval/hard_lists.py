"""Candidate lists from a first stage: what it finds for the queries of a split, to train on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from retrv_r1.data import mbeir
from retrv_r1.data.lists import CandidateList, ListsError
from retrv_r1.data.pictures import PictureFolder
from retrv_r1.eval.candidates import find_file, read_lists
from retrv_r1.model.first_stage import FOLDER, FirstStage, local_checkpoint
from retrv_r1.types import Item

Wanted: TypeAlias = Literal["all", "hard"]
_BLOCK = 4096
"""Candidates of a pool whose items are in memory while they are embedded."""
_SPARE = 16
"""Candidates that are searched beyond K, since further relevant ones are left out."""
_QUERIES_PER_LIST = 20
"""Queries that are searched for each list that is wanted, since many lists are left out."""


@dataclass(frozen=True)
class Choice:
    """Which lists are kept.

    Args:
        k: candidates of a list.
        wanted: ``hard`` leaves out lists whose first candidate is the answer.
        limit: lists of each cell; None for all.
        seed: seed of the queries' order.
    """

    k: int = 50
    wanted: Wanted = "hard"
    limit: int | None = None
    seed: int = 0


def choose_cells(root: Path, split: str, names: Sequence[str]) -> list[mbeir.Cell]:
    """The cells of a split, or those of the names.

    Raises:
        ListsError: there is no such cell.
    """
    there = {cell.dataset: cell for cell in mbeir.cells(root) if cell.split == split}
    if not there:
        raise ListsError(f"{root} has no queries for the split {split}")
    for name in names:
        if name not in there:
            known = ", ".join(there)
            raise ListsError(f"{root} has no cell {name} ({split}): choose from {known}")
    return [there[name] for name in names or there]


def make_lists(
    root: Path,
    cells: Sequence[mbeir.Cell],
    choice: Choice,
    counts: dict[str, Counter[str]],
    *,
    runs: Path | None = None,
    model: str | Path = "",
    device: str = "cpu",
) -> Iterator[CandidateList]:
    """The lists of cells, one after the other.

    Args:
        counts: for each cell, counts of what is kept and of what is left out and why.
        runs: run files of another first stage, or a folder of them.
        model: checkpoint whose first stage searches where there are no run files.
        device: its device.
    """
    for cell in cells:
        count = counts.setdefault(cell.dataset, Counter())
        task = mbeir.load(root, cell.dataset, cell.split, strict=False)
        if runs is not None:
            found = given(runs, cell, task)
        else:
            found = searched(model, task, choice, device)
        for one in lists_of(task, found, choice, count):
            yield one
            count["lists"] += 1
            if count["lists"] == choice.limit:
                break


def lists_of(
    task: mbeir.Task,
    found: Mapping[str, Sequence[str]],
    choice: Choice,
    count: Counter[str],
) -> Iterator[CandidateList]:
    """The lists of a cell's queries, in random order.

    Of a query's relevant candidates the list has the first that was found; others are left out of
    it, and so are dids that the pool lacks.

    Args:
        found: dids by qid, best first.
        count: counts what is left out and why.
    """
    rng = random.Random(f"lists {choice.seed} {task.dataset} {task.split}")
    for query in rng.sample(task.queries, len(task.queries)):
        if query.qid not in found:
            count["not retrieved"] += 1
            continue
        relevant = set(query.positives)
        dids = [did for did in found[query.qid] if did in task.pool]
        answer = next((did for did in dids[: choice.k] if did in relevant), None)
        kept = [did for did in dids if did == answer or did not in relevant][: choice.k]
        if answer is None:
            count["without the answer, left out"] += 1
        elif choice.wanted == "hard" and kept and kept[0] == answer:
            count["easy, left out"] += 1
        elif len(kept) > 1:
            yield CandidateList(task.dataset, task.split, query.qid, tuple(kept), answer)


def given(path: Path, cell: mbeir.Cell, task: mbeir.Task) -> Mapping[str, Sequence[str]]:
    """The candidates of a cell's queries from run files; queries without any may be missing."""
    known = {query.qid for query in task.queries}
    found = read_lists(find_file(path, cell.dataset, cell.split, "local"))
    return {qid: one.dids for qid, one in found.items() if qid in known}


def searched(
    name: str | Path, task: mbeir.Task, choice: Choice, device: str
) -> Mapping[str, Sequence[str]]:
    """The nearest candidates of a cell's queries by a checkpoint's first stage, by qid."""
    stage = FirstStage.from_pretrained(local_checkpoint(name) / FOLDER, device=device)
    folder = PictureFolder(task.root)

    def item(one: mbeir.Query | mbeir.Candidate) -> Item:
        return Item(text=one.text, image=folder.open(one.image) if one.image else None)

    def embedded(things: Sequence[mbeir.Query] | Sequence[mbeir.Candidate]) -> torch.Tensor:
        starts = range(0, len(things), _BLOCK)
        return torch.cat([stage.embed([item(t) for t in things[s : s + _BLOCK]]) for s in starts])

    queries = task.queries
    if choice.limit is not None and len(queries) > (most := _QUERIES_PER_LIST * choice.limit):
        queries = random.Random(f"queries {choice.seed}").sample(queries, most)
    _, places = stage.search(embedded(queries), embedded(task.pool), choice.k + _SPARE)
    return {
        query.qid: [task.pool[int(row)].did for row in rows]
        for query, rows in zip(queries, places.tolist(), strict=True)
    }
