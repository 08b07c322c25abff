"""Sizes of cells, and the choice of the pictures that a pool shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from retrv_r1.data.icons.concepts import share
from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.detail import Twins
from retrv_r1.data.icons.drafts import CellData
from retrv_r1.data.icons.index import bag

PER_GROUP = 12
"""Pictures of groups of twins with one frame in training, about."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of queries and of candidates.

    Args:
        names, terms, detail, i2i, i2t, it2i: queries of each training cell.
        evaluation: queries of a validation or test cell.
        pool: pictures of an evaluation's pool, about.
    """

    names: int = 45_000
    terms: int = 35_000
    detail: int = 25_000
    i2i: int = 15_000
    i2t: int = 15_000
    it2i: int = 15_000
    evaluation: int = 1_000
    pool: int = 3_000


def shown(cell: CellData, rows: Iterable[IconRow]) -> CellData:
    """A cell with the pictures of its pool, each once."""
    return replace(cell, pictures=tuple({row.row: row for row in rows}.values()))


def some_of_each(rows: Iterable[IconRow], seed: int, most: int) -> list[IconRow]:
    """Up to ``most`` pictures of each concept and gender, each from another set."""
    found: dict[tuple[str, str], dict[str, IconRow]] = defaultdict(dict)
    for row in sorted(rows, key=lambda r: share(seed, "pool", str(r.row))):
        sets = found[bag(row.code), row.gender]
        if len(sets) < most:
            sets.setdefault(row.set, row)
    return sorted((row for sets in found.values() for row in sets.values()), key=lambda r: r.row)


def some_twins(rows: Sequence[IconRow], seed: int) -> list[IconRow]:
    """Pictures of groups of twins; of a group that many sets have, some sets stay."""
    twins = Twins(rows)
    count: dict[tuple[str, str], int] = defaultdict(int)
    kept: dict[int, IconRow] = {}
    keys = sorted(twins.groups, key=lambda key: share(seed, "twins", *key))
    for key in keys:
        if count[key[1:]] < PER_GROUP:
            members = twins.groups[key]
            count[key[1:]] += len(members)
            kept |= {twin.row.row: twin.row for twin in members}
    return [kept[row] for row in sorted(kept)]


def used(twins: Twins) -> list[IconRow]:
    """Pictures that have twins."""
    found = {t.row.row: t.row for members in twins.groups.values() for t in members}
    return [found[row] for row in sorted(found)]


def used_or_listed(twins: Twins, cell: CellData) -> list[IconRow]:
    """Pictures that have twins, stand in a query's list or are its negatives."""
    named = (name for draft in cell.drafts for name in (*draft.listed, *draft.negatives))
    listed = {int(name.split(":")[1]) for name in named}
    kept = listed | {row.row for row in used(twins)}
    return [row for row in twins.rows if row.row in kept]
