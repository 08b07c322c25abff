"""What happens while a ranking runs, for those who want to watch it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from retrv_r1.types import RankedResults


@dataclass(frozen=True)
class Reasoning:
    """A piece of reasoning as it is written; the pieces of a vote make its reasoning text.

    Args:
        text: the piece, in the form of :attr:`RankedResults.reasoning`.
        index: index of the candidate in the caller's list that the piece is the mark of, as in
            ``" [3]"`` for index 2; None for ordinary text.
        vote: number of the chain of thought, from 0.
    """

    text: str
    index: int | None = None
    vote: int = 0


@dataclass(frozen=True)
class Inspection:
    """The model looks at a candidate in full.

    Args:
        index: index of the candidate in the caller's list.
        vote: number of the chain of thought, from 0.
    """

    index: int
    vote: int = 0


@dataclass(frozen=True)
class Draft:
    """The fast answer, while reasoning goes on (``mode="auto"``, or with a budget).

    Args:
        results: the ranking so far.
    """

    results: RankedResults


Event: TypeAlias = Reasoning | Inspection | Draft
