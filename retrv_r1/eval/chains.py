"""How much of what chains of thought say is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from retrv_r1.data import mbeir
from retrv_r1.eval.names import Names
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.model.chains import Chain, content_words, parse
from retrv_r1.model.details import states


@dataclass(frozen=True)
class Count:
    """How many of some statements are right; those that nothing is known of are not counted."""

    right: int = 0
    of: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.of + other.of)

    @classmethod
    def over(cls, judged: Iterable[bool | None]) -> Count:
        """The count of judgements; None is one that cannot be made."""
        known = [one for one in judged if one is not None]
        return cls(sum(known), len(known))

    @property
    def share(self) -> float | None:
        """Share that is right; None if there is nothing to count."""
        return self.right / self.of if self.of else None


@dataclass(frozen=True)
class ChainCounts:
    """What chains of thought say, counted.

    Attributes:
        text_ideals: ideals of queries that are text alone; right are the query's own content words,
            or the name of what it asks for.
        picture_ideals: ideals of other queries; right is a name of the picture, too.
        names: candidates that a chain names; right is a name of that candidate.
        statements: what inspected candidates are said to show; right is a name of the candidate
            with nothing besides but its details. A detail that tells it from another named
            candidate that is close must be said; see :mod:`retrv_r1.model.details`.
        whole: chains that are of the form as a whole.
        unaided: chains in which the engine had to enforce nothing and to refuse no inspection.
        inspections: inspections in all, of so many chains.
    """

    text_ideals: Count = field(default_factory=Count)
    picture_ideals: Count = field(default_factory=Count)
    names: Count = field(default_factory=Count)
    statements: Count = field(default_factory=Count)
    whole: Count = field(default_factory=Count)
    unaided: Count = field(default_factory=Count)
    inspections: Count = field(default_factory=Count)

    def __add__(self, other: ChainCounts) -> ChainCounts:
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return ChainCounts(**pairs)

    def row(self) -> dict[str, Any]:
        """The counts for a report."""
        counts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: {"right": count.right, "of": count.of, "share": count.share}
            for name, count in counts.items()
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Mapping[str, Any]]) -> ChainCounts:
        """The counts of which :meth:`row` was made."""
        return cls(**{name: Count(one["right"], one["of"]) for name, one in row.items()})


def count_chains(task: mbeir.Task, names: Names, outcomes: Sequence[Outcome]) -> ChainCounts:
    """Counts what the chains of a cell's outcomes say."""
    queries = {query.qid: query for query in task.queries}
    total = ChainCounts()
    for outcome in outcomes:
        listed = [task.candidate(did) for did in outcome.listed]
        total += _counted(queries[outcome.qid], listed, outcome, names)
    return total


def _counted(
    query: mbeir.Query, listed: Sequence[mbeir.Candidate], outcome: Outcome, names: Names
) -> ChainCounts:
    chain = parse(outcome.reasoning)
    ideal = Count.over([_ideal(chain, names.of_query(query))])
    nothing = Count()
    return ChainCounts(
        text_ideals=nothing if query.image else ideal,
        picture_ideals=ideal if query.image else nothing,
        names=Count.over(_named(k, name, listed, names) for k, name in chain.near),
        statements=Count.over(_shown(k, said, chain, listed, names) for k, said in chain.seen),
        whole=Count(chain.whole, 1),
        unaided=Count(outcome.well_formed and not outcome.refused, 1),
        inspections=Count(len(outcome.inspected), 1),
    )


def _ideal(chain: Chain, known: frozenset[str]) -> bool | None:
    return content_words(chain.ideal) in known if known else None


def _named(k: int, name: str, listed: Sequence[mbeir.Candidate], names: Names) -> bool | None:
    if not 0 <= k < len(listed):
        return False
    known = names.of_candidate(listed[k])
    return name in known if known else None


def _shown(
    k: int, said: str, chain: Chain, listed: Sequence[mbeir.Candidate], names: Names
) -> bool | None:
    if not 0 <= k < len(listed):
        return False
    if not (known := names.shown(listed[k])):
        return None
    about = {place for place, _ in (*chain.near, *chain.seen)} - {k}
    # By their main names alone, as in the chains that training writes: an alias makes none close.
    others = [one for n in about if 0 <= n < len(listed) for one in names.shown(listed[n])[:1]]
    return any(states(said, one, others) for one in known)
