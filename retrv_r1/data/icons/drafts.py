"""Queries before they have numbers, and what is known about their candidates."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.phrases import PICTURES_ID, Dataset
from retrv_r1.data.icons.wording import word

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """A query without a number.

    Args:
        text: what is typed; None for a picture alone.
        image: the query's picture; None for a text alone.
        target: what is asked for: fields of the query's metadata.
        kind: kind of query: `name`, `terms`, `picture`, or the kind of a detail.
        positives: dids of all relevant candidates of the pool.
        negatives: dids of near twins.
        details: further fields of the metadata.
        listed: dids of the list that a reranker is given, best first; empty for none.
    """

    text: str | None
    image: IconRow | None
    target: Mapping[str, Any]
    kind: str
    positives: Sequence[str]
    negatives: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    listed: Sequence[str] = ()


@dataclass(frozen=True)
class CellData:
    """A cell: its queries, and the candidates of its pool.

    Args:
        pictures: pictures of the pool.
        texts: texts of the pool: did → (text, concept key).
    """

    dataset: Dataset
    split: str
    drafts: Sequence[Draft]
    pictures: Sequence[IconRow] = ()
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def did(row: IconRow) -> str:
    """Did of a picture, the same in every pool."""
    return f"{PICTURES_ID}:{row.row}"


def dids(rows: Iterable[IconRow]) -> tuple[str, ...]:
    """Dids of pictures, in order."""
    return tuple(did(row) for row in rows)


def generator(seed: int, *key: str) -> np.random.Generator:
    """A generator that depends on the seed and the key alone."""
    return np.random.default_rng([seed, zlib.crc32("\n".join(key).encode())])


def sample(things: Collection[T], count: int, rng: np.random.Generator) -> list[T]:
    """Up to ``count`` different things, in random order."""
    listed = list(things)
    return [listed[i] for i in rng.permutation(len(listed))[:count].tolist()]


def concept(row: IconRow) -> dict[str, Any]:
    """What is asked for when a picture is the answer: fields of the query's metadata."""
    return {
        "code": row.code,
        "name": row.name,
        "skin_tone": row.skin or None,
        "gender": row.gender or None,
        "split": row.split,
    }


def worded(
    name: str, rng: np.random.Generator, split: str, language: str = "en"
) -> tuple[str, str]:
    """What is typed for a name, and the kind of its wording: `bare`, `train` or `test`.

    Training keeps the bare name, because a trainer draws wordings anew each time. Validation has
    half of the names bare and half in wordings of training. A test has half in wordings that
    training never sees, and a quarter each of the other two.
    """
    draw = rng.random()
    if split == "train" or draw < (0.5 if split == "val" else 0.25):
        return name, "bare"
    if split == "val" or draw < 0.5:
        return word(name, rng, forms="train", language=language), "train"
    return word(name, rng, forms="test", language=language), "test"
