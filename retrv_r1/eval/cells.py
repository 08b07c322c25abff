"""Selects the cells of a data set and their queries. A cell is one task in one split."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retrv_r1.data import mbeir
from retrv_r1.types import RetrvError

PICTOGRAPH_PARTS = ("style", "composition", "unseen")
ICON_PARTS = ("hands", "concepts", "terms", "detail")
SPLITS = ("all", *PICTOGRAPH_PARTS, *ICON_PARTS, "test", "val")
"""Parts of the pictograph set's and of the icon corpus's test split have names of their own."""

_OURS, _ICONS = "pictographs_", "icons_"
_TRIMMED = "mbeir_union_val_cand_pool.jsonl"


class EvalError(RetrvError, ValueError):
    """An evaluation that cannot be run, or a result that is not valid."""


def part_of(cell: mbeir.Cell) -> str:
    """The part of our own test sets that a cell belongs to; for other cells their split."""
    if cell.split == "test" and cell.dataset.startswith(_ICONS):
        part = cell.dataset.split("_")[1]
        return part if part in ICON_PARTS else cell.split
    if cell.split != "test" or not cell.dataset.startswith(_OURS):
        return cell.split
    family = cell.dataset.removeprefix(_OURS).split("_")[0]
    return family if family in ("composition", "unseen") else "style"


def choose(root: Path, split: str, names: Sequence[str] = ()) -> list[mbeir.Cell]:
    """The cells of a split, sorted by part and name.

    Args:
        root: directory in M-BEIR's layout.
        split: one of ``SPLITS``; ``all`` is every test cell, or every val cell if there is no
            test cell.
        names: names of cells, such as ``cirr_task7``; all if empty.
    Raises:
        EvalError: unknown split or name, or no cell of the split; the message lists what there is.
    """
    if split not in SPLITS:
        raise EvalError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    there = [cell for cell in mbeir.cells(root) if cell.split != "train"]
    if split == "all":
        chosen = [cell for cell in there if cell.split == "test"] or there
    else:
        chosen = [cell for cell in there if split in (part_of(cell), cell.split)]
    if not chosen:
        counts = Counter(map(part_of, there))
        parts = ", ".join(f"{part} ({count} cells)" for part, count in counts.items())
        raise EvalError(
            f"{root} has no cell of split {split!r}: choose from {parts or 'none, it has no cells'}"
        )
    if unknown := set(names) - {cell.dataset for cell in chosen}:
        known = ", ".join(sorted(cell.dataset for cell in chosen))
        raise EvalError(f"no cell {sorted(unknown)[0]!r} in split {split!r}: choose from {known}")
    wanted = [cell for cell in chosen if not names or cell.dataset in names]
    return sorted(wanted, key=lambda cell: (SPLITS.index(part_of(cell)), cell.dataset))


def whole_pool(root: Path, cell: mbeir.Cell, kind: mbeir.Pool) -> Path:
    """The file of a cell's pool.

    Raises:
        MBEIRError: there is none, or it is M-BEIR's union pool of the val split, which holds only
            the candidates that queries name: a search in it is far too easy.
    """
    path = mbeir.pool_path(root, cell.dataset, cell.split, kind)
    if path.name == _TRIMMED and not cell.dataset.startswith(_OURS):
        raise mbeir.MBEIRError(
            f"{path} holds little more than the answers; use --pool local, or --split test"
        )
    return path


def shape_of(queries: Sequence[mbeir.Query]) -> str:
    """The task shape of a cell, such as ``it → i`` for image with text to image."""
    short = {"text": "t", "image": "i", "image,text": "it"}
    tasks = sorted({query.task_id for query in queries})
    return ", ".join(" → ".join(short[side] for side in mbeir.TASKS[task]) for task in tasks)


def sample(queries: Sequence[mbeir.Query], limit: int | None, seed: int) -> list[mbeir.Query]:
    """``limit`` random queries, all if None; a larger limit extends a smaller one's sample."""
    drawn = list(queries)
    random.Random(f"queries {seed}").shuffle(drawn)
    return drawn[:limit]


def prompt_order(dids: Sequence[str], qid: str, seed: int) -> list[str]:
    """Candidates in the order in which the prompt shows them.

    They are shuffled by seed and query, so that positions do not tell the first stage's ranks.
    """
    shown = list(dids)
    random.Random(f"prompt {seed} {qid} {len(shown)}").shuffle(shown)
    return shown
