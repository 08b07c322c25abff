"""Near twins: pictures of one hand that a single detail tells apart, and queries that state it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.detail_words import Detail, details, words_of
from retrv_r1.data.icons.drafts import Draft, concept, did, dids, sample, worded
from retrv_r1.data.icons.index import bag, sayable

LISTED = 50
_FILLS = ("filled", "outline")


@dataclass(frozen=True)
class Twin:
    """A picture with the detail that tells it from its twins."""

    row: IconRow
    detail: Detail


class Twins:
    """Near twins among the pictures of a pool.

    Args:
        rows: pictures.
        kinds: kinds of details that count; all if empty.
    """

    def __init__(self, rows: Iterable[IconRow], kinds: Sequence[str] = ()) -> None:
        self.rows = tuple(rows)
        self._groups: dict[tuple[str, str, str], list[Twin]] = defaultdict(list)
        self._of: dict[int, list[Detail]] = defaultdict(list)
        fills = _fills(self.rows)
        for row in self.rows:
            found = [*details(row), *fills.get(row.row, ())]
            for detail in found:
                if not kinds or detail.kind in kinds:
                    self._groups[row.set, detail.kind, detail.frame].append(Twin(row, detail))
        self._groups = {
            key: twins
            for key, twins in self._groups.items()
            if len({twin.detail.value for twin in twins}) > 1
        }
        self._alike: dict[tuple[str, str], list[Twin]] = defaultdict(list)
        for (_, kind, frame), twins in self._groups.items():
            self._alike[kind, frame] += twins
            for twin in twins:
                self._of[twin.row.row].append(twin.detail)

    @property
    def groups(self) -> Mapping[tuple[str, str, str], Sequence[Twin]]:
        """Twins by set, kind of detail and frame; each group has two values or more."""
        return self._groups

    def details_of(self, row: IconRow) -> dict[str, str]:
        """Values of a picture's details by kind."""
        return {detail.kind: detail.value for detail in self._of.get(row.row, ()) if detail.value}

    def askable(self) -> list[Twin]:
        """One picture for each thing with a detail that a query can ask for."""
        found: dict[tuple[str, ...], list[Twin]] = defaultdict(list)
        for twins in self._groups.values():
            for twin in twins:
                detail, row = twin.detail, twin.row
                key = (row.set, detail.kind, detail.frame, detail.value, row.gender)
                if detail.value and (sayable(detail.rest) or detail.kind == "character"):
                    found[key].append(twin)
        return [twins[0] for twins in found.values()]

    def relevant(self, twin: Twin) -> list[IconRow]:
        """All pictures of the pool that show a thing with its detail, by any hand."""
        wanted, row = twin.detail, twin.row
        return [
            other.row
            for other in self._alike[wanted.kind, wanted.frame]
            if other.detail.value == wanted.value
            and (wanted.kind != "skin" or row.gender in ("", other.row.gender))
        ]

    def siblings(self, twin: Twin) -> list[IconRow]:
        """Twins of a picture in its own set, then the others in random order, nearest first.

        Near are pictures with many words of the thing's name.
        """
        own = self._groups[twin.row.set, twin.detail.kind, twin.detail.frame]
        first = {other.row.row: other.row for other in own}
        words = set(twin.row.code.split())
        near = [r for r in self._of_set(twin.row.set) if r.row not in first]
        shared = sorted(near, key=lambda r: -_overlap(words, r))
        return [*first.values(), *shared]

    def _of_set(self, prefix: str) -> list[IconRow]:
        if not hasattr(self, "_by_set"):
            self._by_set: dict[str, list[IconRow]] = defaultdict(list)
            for row in self.rows:
                self._by_set[row.set].append(row)
        return self._by_set[prefix]


def _overlap(words: set[str], row: IconRow) -> float:
    other = set(row.code.split())
    return len(words & other) / len(words | other)


def _fills(rows: Iterable[IconRow]) -> dict[int, list[Detail]]:
    """Filled against outline, where a set has both of one drawing.

    A drawing whose name says neither is what its twin is not; of three it is left out.
    """
    alike: dict[tuple[str, ...], list[IconRow]] = defaultdict(list)
    for row in rows:
        if not row.colour and not row.skin:
            others = sorted(set(row.styles) - set(_FILLS))
            alike[row.set, row.code, row.name, *others].append(row)
    found: dict[int, list[Detail]] = {}
    for twins in alike.values():
        stated = {s: [r for r in twins if s in r.styles] for s in _FILLS}
        plain = [r for r in twins if not set(r.styles) & set(_FILLS)]
        both = all(stated.values())
        if not both and plain and any(stated.values()):
            other = next(s for s in _FILLS if not stated[s])
            stated[other] = plain
        if all(stated.values()):
            for style, of in stated.items():
                for row in of:
                    found[row.row] = [Detail("fill", style, bag(row.code), row.code)]
    return found


def named(twin: Twin) -> str:
    """Name of a twin without its detail: "user", "woman running", "arrow"."""
    if twin.detail.kind == "skin":
        return twin.row.name.replace(f" {twin.row.skin} skin tone", "")
    return twin.detail.rest


def asked(twin: Twin, rng: np.random.Generator, split: str) -> tuple[str, str]:
    """A query that states a twin's detail, and the kind of its wording."""
    text = words_of(twin.detail, named(twin), int(rng.integers(12)))
    if split == "train":
        return text, "bare"
    if rng.random() < 0.5:  # the sentence itself is what is tested; frames would only lengthen it
        return text, "bare"
    return worded(text, rng, split)


def detail_queries(
    twins: Twins, count: int, rng: np.random.Generator, split: str, *, listed: bool
) -> list[Draft]:
    """Queries for near twins, as many of each kind as there are, while they last.

    Args:
        listed: whether to give each query the list of its siblings.
    """
    rows: dict[str, list[Twin]] = defaultdict(list)
    for twin in twins.askable():
        rows[twin.detail.kind].append(twin)
    queues = {kind: sample(rows[kind], len(rows[kind]), rng) for kind in sorted(rows)}
    chosen: list[Twin] = []
    while len(chosen) < count and any(queues.values()):
        chosen += [queue.pop() for queue in queues.values() if queue]
    drafts = []
    for twin in chosen[:count]:
        text, how = asked(twin, rng, split)
        relevant = twins.relevant(twin)
        right = {row.row for row in relevant}
        near = [row for row in twins.siblings(twin) if row.row not in right] if listed else [
            other.row
            for other in twins.groups[twin.row.set, twin.detail.kind, twin.detail.frame]
            if other.row.row not in right
        ]  # fmt: skip
        own = [row for row in relevant if row.set == twin.row.set]
        detail = {"kind": twin.detail.kind, "value": twin.detail.value}
        drafts.append(
            Draft(
                text=text,
                image=None,
                target=concept(twin.row),
                kind=twin.detail.kind,
                positives=dids([twin.row, *(r for r in relevant if r.row != twin.row.row)]),
                negatives=dids(near[:30]),
                details={"detail": detail, "wording": how, "thing": named(twin)},
                listed=_list(twin.row, own, near, rng) if listed else (),
            )
        )
    return drafts


def _list(
    answer: IconRow, own: Sequence[IconRow], near: Sequence[IconRow], rng: np.random.Generator
) -> tuple[str, ...]:
    """Up to fifty pictures of one set: those that fit, then their siblings, nearest first."""
    right = [answer, *(row for row in own if row.row != answer.row)][: LISTED // 5]
    wrong = list(near[: LISTED - len(right)])
    # A first stage takes the right one for one of its twins.
    place = int(rng.integers(min(5, len(wrong) + 1)))
    return tuple(did(row) for row in [*wrong[:place], *right, *wrong[place:]])
