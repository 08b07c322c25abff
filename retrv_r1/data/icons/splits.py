"""The split of every picture: by its hand, by its concept, and by what it copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retrv_r1.data.icons.copies import ANY_NAME, SAME_NAME, SIMPLE, best_of_name, nearest
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
    whole: Mapping[str, str] = field(default_factory=dict)


def find_copies(kept: Sequence[Kept]) -> Copies:
    """Finds pictures of training hands that copy a held-out hand's drawing.

    A drawing of the same name may differ in weight; one of another name must be nearly the same
    and not simple, since everybody draws a plus alike.
    """
    families = [k.icon.family for k in kept]
    held = [i for i, family in enumerate(families) if hand_split(family) != "train"]
    others = [i for i, family in enumerate(families) if hand_split(family) == "train"]
    found: dict[int, int] = {}
    for what in ("shape", "colours", "edges"):
        pairs = _pairs(kept, held, others, what)
        for other, of in pairs.items():
            found.setdefault(other, of)
    split, of_set = {}, defaultdict(Counter)
    for other, of in found.items():
        split[other] = hand_split(families[of])
        of_set[kept[other].icon.set][families[of]] += 1
    sizes = Counter(k.icon.set for k in kept)
    whole = {
        prefix: family
        for prefix, count in of_set.items()
        for family, copies in count.items()
        if copies > _WHOLE * sizes[prefix]
    }
    return Copies(split, {p: dict(of_set[p]) for p in sorted(of_set)}, whole)


def _pairs(
    kept: Sequence[Kept], held: Sequence[int], others: Sequence[int], what: str
) -> dict[int, int]:
    """Copies by one kind of map: row of the copy → row of the held-out drawing."""
    cross = what == "edges"
    left = [i for i in held if what in kept[i].maps]
    right = [i for i in others if what in kept[i].maps]
    if not left or not right:
        return {}
    table = np.stack([kept[i].maps[what] for i in left])
    maps = np.stack([kept[i].maps[what] for i in right])
    pairs = {}
    if not cross:
        best = nearest(table, maps)
        for n, i in enumerate(right):
            of = left[best.index[n]]
            if best.score[n] >= ANY_NAME and not _simple(kept[of]):
                pairs[i] = of
    names = [group_key(kept[i].icon.code.split()) for i in left]
    wanted = [group_key(kept[i].icon.code.split()) for i in right]
    score, index = best_of_name(table, names, maps, wanted)
    for n, i in enumerate(right):
        if score[n] >= SAME_NAME and (not cross or kept[i].glyph != kept[left[index[n]]].glyph):
            pairs[i] = left[index[n]]
    return pairs


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
