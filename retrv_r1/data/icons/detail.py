"""Near twins: pictures of one hand that a single detail tells apart, and queries that state it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.detail_words import Detail, details, words_of
from retrv_r1.data.icons.drafts import Draft, concept, did, dids, sample, worded
from retrv_r1.data.icons.english import MODIFIERS
from retrv_r1.data.icons.index import bag, sayable

LISTED = 50
_FILLS = ("filled", "outline")
_FILL_SETS = 20  # pictures with a fill twin that a set needs; else the word means something else
_CLOSE = 5  # close pictures that a listed query needs at least


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
                if detail.value and _askable(detail):
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

    def siblings(self, twin: Twin, rng: np.random.Generator) -> list[IconRow]:
        """Twins of a picture in its own set, then the set's others, nearest first.

        Near are pictures with many words of the name; those without any are in random order.
        """
        own = self._groups[twin.row.set, twin.detail.kind, twin.detail.frame]
        first = {other.row.row: other.row for other in own}
        words = set(twin.row.name.split())
        near = [r for r in self._sets[twin.row.set] if r.row not in first]
        mixed = sample(near, len(near), rng)
        shared = sorted(mixed, key=lambda r: -_overlap(words, r))
        return [*first.values(), *shared]

    def close(self, twin: Twin) -> int:
        """Number of pictures of the same set with a word of a twin's thing, itself left out."""
        words = set(twin.row.code.split())
        alike = {n for w in words for n in self._with_word(twin.row.set, w)}
        return len(alike - {twin.row.row})

    def _with_word(self, prefix: str, word: str) -> Sequence[int]:
        return self._words.get((prefix, word), ())

    @cached_property
    def _words(self) -> Mapping[tuple[str, str], Sequence[int]]:
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row in self.rows:
            for word in row.code.split():
                found[row.set, word].append(row.row)
        return found

    @cached_property
    def _sets(self) -> Mapping[str, Sequence[IconRow]]:
        found: dict[str, list[IconRow]] = defaultdict(list)
        for row in self.rows:
            found[row.set].append(row)
        return found


def _askable(detail: Detail) -> bool:
    """Whether a detail's rest names a thing: "large", of "large plus", does not."""
    if detail.kind in ("character", "clock", "dice", "card"):
        return True
    return sayable(detail.rest) and not set(detail.rest.split()) <= MODIFIERS


def _overlap(words: set[str], row: IconRow) -> float:
    other = set(row.name.split())
    return len(words & other) / len(words | other)


def _fills(rows: Sequence[IconRow]) -> dict[int, list[Detail]]:
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
    count = Counter(row.set for row in rows if row.row in found)
    return {r.row: found[r.row] for r in rows if r.row in found and count[r.set] >= _FILL_SETS}


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
    return worded(text.removeprefix("a ").removeprefix("an ").removeprefix("the "), rng, split)


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
    if listed:
        queues = {k: [t for t in q if twins.close(t) >= _CLOSE] for k, q in queues.items()}
    most = count // 3 if len(queues) > 3 else count
    queues = {kind: queue[:most] for kind, queue in queues.items()}
    chosen: list[Twin] = []
    while len(chosen) < count and any(queues.values()):
        chosen += [queue.pop() for queue in queues.values() if queue]
    drafts = []
    for twin in chosen[:count]:
        text, how = asked(twin, rng, split)
        relevant = twins.relevant(twin)
        right = {row.row for row in relevant}
        near = [row for row in twins.siblings(twin, rng) if row.row not in right] if listed else [
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
