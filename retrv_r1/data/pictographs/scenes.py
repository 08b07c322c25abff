"""Scenes: training and the four evaluations, each with its concepts, pool and styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.concepts import Concept
from retrv_r1.data.pictographs.splits import hashed

# Squares and diamonds that differ from another one in size only, which cropping removes.
SAME_SHAPE = frozenset({"25AA", "25AB", "25FB", "25FC", "25FD", "25FE", "1F538", "1F539"})


@dataclass(frozen=True)
class Scene:
    """Training, or one evaluation.

    Args:
        name: `train`, `val`, `test`, `composition` or `unseen`.
        targets: codes that may be asked for, in code-point order.
        pool: codes that candidates may show or name.
        query_styles: styles of query pictures.
        source_styles: styles of query pictures whose answer is a picture in another style.
        pool_styles: styles of candidate pictures.
    """

    name: str
    targets: Sequence[str]
    pool: Sequence[str]
    query_styles: Sequence[str]
    source_styles: Sequence[str]
    pool_styles: Sequence[str]

    @property
    def split(self) -> str:
        """M-BEIR split: `train`, `val` or `test`."""
        return self.name if self.name in ("train", "val") else "test"

    @property
    def training(self) -> bool:
        """Whether it is the training scene."""
        return self.name == "train"


def _is_val(catalog: Catalog, code: str) -> bool:
    return int(hashed(catalog.seed, "val or test", catalog.base(code))[:8], 16) % 3 == 0


def _parts(concept: Concept) -> tuple[str, str]:
    return concept.gender, concept.tone


def scenes(catalog: Catalog) -> list[Scene]:
    """Training, then the evaluations."""
    roles, concepts = catalog.roles, catalog.concepts
    usable = [c.code for c in concepts.values() if c.tone != "mixed" and c.code not in SAME_SHAPE]
    known = [c for c in usable if catalog.side(c) == "known"]
    held = [c for c in usable if catalog.side(c) == "composition"]
    unseen = [c for c in usable if catalog.side(c) == "unseen"]
    reference = roles.reference

    def drawn(codes: Sequence[str], styles: Sequence[str]) -> list[str]:
        return [c for c in codes if any(c in catalog.pictures[s] for s in styles)]

    others = [s for s in roles.train if s != reference] or [reference]
    found = [
        Scene(
            "train",
            drawn(known, roles.train),
            drawn(known, roles.train),
            roles.train,
            roles.train,
            roles.train,
        )
    ]
    for name, styles in (("val", roles.val), ("test", roles.test)):
        shown = drawn(known, styles[:1])
        asked = shown
        if set(roles.val) & set(roles.test):  # a style in common: val gets a third of the bases
            asked = [c for c in shown if _is_val(catalog, c) == (name == "val")]
        found.append(Scene(name, asked, shown, styles, roles.train, styles[:1]))
    # Duplicates are dropped, so a few styles may lack a part of a combination.
    seen = {(concepts[c].base, part) for c in found[0].targets for part in _parts(concepts[c])}
    held = [c for c in held if {(concepts[c].base, p) for p in _parts(concepts[c])} <= seen]
    composed = [c for c in usable if concepts[c].base in catalog.splits.combination_bases]
    plain = [c for c in known if not concepts[c].tones]
    for name, targets, pool in (
        ("composition", held, composed),
        ("unseen", unseen, sorted([*plain, *unseen], key=list(concepts).index)),
    ):
        found.append(
            Scene(
                name,
                drawn(targets, [reference]),
                drawn(pool, [reference]),
                (reference,),
                others,
                (reference,),
            )
        )
    return found
