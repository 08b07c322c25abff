"""Has a teacher write chains for the lists of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from retrv_r1.data import mbeir
from retrv_r1.data.list_items import ListItems
from retrv_r1.data.lists import CandidateList, read_lists
from retrv_r1.data.pictures import PictureFolder
from retrv_r1.teaching.asking import Teacher, ask_all
from retrv_r1.teaching.journal import ChainFile, Totals
from retrv_r1.teaching.prompt import Question, Show, Shown

Told = Callable[[int, int, Totals], None]
"""What is told of the progress: lists done, lists in all, counts so far."""


def write_chains(
    roots: Sequence[Path],
    lists: Path,
    out: Path,
    teacher: Teacher,
    *,
    seed: int = 0,
    limit: int | None = None,
    told: Told = lambda *_: None,
) -> Totals:
    """Asks a teacher about every list that ``out`` does not have, and writes a line for each.

    Args:
        roots: folders of the data sets that the lists are about.
        lists: file of ``retrv-r1 data lists``.
        out: file of the chains, which training reads as lists; a killed run goes on in it.
        seed: seed of the order in which candidates are shown.
        limit: number of lists to ask about, the first of the file; None for all.
    Raises:
        RetrvError: lists, data or teacher cannot be used; the message says what to do.
    """
    chains = ChainFile(out, teacher.model, seed)
    wanted = list(islice(read_lists(lists), limit))
    waiting = [one for one in wanted if one.key not in chains.done]
    done = len(wanted) - len(waiting)
    items, folders = ListItems(roots), {root: PictureFolder(root) for root in roots}

    def step() -> None:
        nonlocal done
        done += 1
        told(done, len(wanted), chains.totals)

    def show(question: Question) -> Show:
        asked = question.asked
        return folders[items.cell(asked.cell, asked.split).root].open

    if waiting:
        told(done, len(wanted), chains.totals)
        ask_all(teacher, _questions(waiting, items, seed), show, chains, step)
    return chains.totals


def _questions(lists: Sequence[CandidateList], items: ListItems, seed: int) -> Iterator[Question]:
    for one in lists:
        query, candidates = items.find(one)
        shown = [Shown(c.text, c.image) for c in candidates]
        asked = Shown(query.text, query.image)
        yield Question.of(one, mbeir.instruction(query), asked, shown, seed)
