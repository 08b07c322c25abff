"""The split of every picture: by its hand, by its concept, and by what it copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from retrv_r1.data.icons.copies import (
    ANY_NAME,
    RESEMBLES,
    SAME_NAME,
    SHARED_CONCEPTS,
    SIMPLE,
    nearest,
)
from retrv_r1.data.icons.corpus import IconRow, Split
from retrv_r1.data.icons.families import hand_split
from retrv_r1.data.icons.names import group_key
from retrv_r1.data.icons.store import Kept

_WHOLE = 1 / 3  # share of copies above which a set is held out whole
_ORDER: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Copies:
    """Pictures that repeat a held-out drawing.

    Args:
        split: split of the copied hand, by row.
        of: numbers of copies by set and copied family.
        whole: family that a whole set copies, by set.
    """

    split: Mapping[int, Split]
    of: Mapping[str, Mapping[str, int]]
    whole: Mapping[str, str]


def find_copies(kept: Sequence[Kept]) -> Copies:
    """Finds pictures, and whole sets, of training hands that copy a held-out hand's drawings.

    A drawing of the same name may differ in weight or colour. One of another name must be nearly
    the same and not simple, since everybody draws a plus alike.
    """
    found: dict[int, int] = {}
    alike: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for what in ("shape", "colours", "edges"):
        for other, of in _compare(kept, what, alike).items():
            found.setdefault(other, of)
    split: dict[int, Split] = {}
    of_set: dict[str, Counter[str]] = defaultdict(Counter)
    for other, of in sorted(found.items()):
        family = kept[of].icon.family
        split[other] = hand_split(family)
        of_set[kept[other].icon.set][family] += 1
    sizes = Counter(k.icon.set for k in kept)
    whole = {
        prefix: family
        for (prefix, family, what), scores in sorted(alike.items())
        if len(scores) >= SHARED_CONCEPTS and median(scores) >= RESEMBLES[what]
    }
    whole |= {
        prefix: family
        for prefix, count in sorted(of_set.items())
        for family, copies in count.items()
        if copies > _WHOLE * sizes[prefix]
    }
    return Copies(split, {p: dict(sorted(of_set[p].items())) for p in sorted(of_set)}, whole)


def _compare(
    kept: Sequence[Kept], what: str, alike: dict[tuple[str, str, str], list[float]]
) -> dict[int, int]:
    """Copies by one kind of map: row of the copy → row of the held-out drawing.

    Notes in `alike`, by set and family, how alike drawings of one concept are. Edges compare
    glyphs with pictures in colours only.
    """
    held: list[int] = []
    others: list[int] = []
    for i, k in enumerate(kept):
        if what in k.maps:
            (others if hand_split(k.icon.family) == "train" else held).append(i)
    if not held or not others:
        return {}
    table = np.stack([kept[i].maps[what] for i in held])
    maps = np.stack([kept[i].maps[what] for i in others])
    pairs = {}
    if what != "edges":
        best = nearest(table, maps)
        for n, i in enumerate(others):
            of = held[best.index[n]]
            if best.score[n] >= ANY_NAME and not _simple(kept[of]):
                pairs[i] = of
    by_name: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, i in enumerate(held):
        by_name[_depicted(kept[i])].append(row)
    for n, i in enumerate(others):
        rows = by_name.get(_depicted(kept[i]), [])
        if what == "edges":
            rows = [row for row in rows if kept[held[row]].glyph != kept[i].glyph]
        if not rows:
            continue
        scores = table[rows].astype(np.float32) @ maps[n].astype(np.float32)
        for family in {kept[held[row]].icon.family for row in rows}:
            of_family = [kept[held[row]].icon.family == family for row in rows]
            alike[kept[i].icon.set, family, what].append(float(scores[of_family].max()))
        top = int(scores.argmax())
        of = held[rows[top]]
        if scores[top] >= (ANY_NAME if _simple(kept[of]) else SAME_NAME[what]):
            pairs.setdefault(i, of)
    return pairs


def _depicted(kept: Kept) -> tuple[str, str, str]:
    """What a picture shows, whatever the order and number of the words."""
    name = kept.icon.name
    return group_key(kept.icon.code.split()), name.skin, name.gender


def _simple(kept: Kept) -> bool:
    return kept.glyph and kept.variation < SIMPLE


def hardest(*splits: Split) -> Split:
    """Test before val before train."""
    return max(splits, key=_ORDER.index)


def rows_of(kept: Sequence[Kept], held: Mapping[str, Split], copies: Copies) -> list[IconRow]:
    """The corpus's rows, with their splits."""
    rows = []
    for i, k in enumerate(kept):
        icon, name = k.icon, k.icon.name
        family = copies.whole.get(icon.set, icon.family)
        hand, concept = hand_split(family), held.get(icon.code, "train")
        copied = copies.split.get(i, "train")
        split = hardest(hand, concept, copied)
        reasons = (("hands", hand), ("concepts", concept), ("copies", copied))
        rows.append(
            IconRow(
                row=i,
                img_path=f"icons/{icon.set}/{icon.drawing.name}.png",
                code=icon.code,
                name=" ".join(name.shown),
                icon=icon.drawing.name,
                set=icon.set,
                family=family,
                styles=name.styles,
                colour=not k.glyph,
                split=split,
                why=tuple(why for why, part in reasons if part != "train"),
                hand_split=hand,
                concept_split=concept,
                group=icon.drawing.group,
                skin=name.skin,
                gender=name.gender,
                size=name.size,
            )
        )
    return rows
