"""Whether a teacher's chain is taken: of the form, about real candidates, and right."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from retrv_r1.model.chains import Chain, parse
from retrv_r1.teaching.prompt import Question

Why = Literal["refused", "cut off", "not of the form", "no such candidate", "wrong answer"]
"""Reasons for which a reply is not taken."""
REASONS: tuple[str, ...] = get_args(Why)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
MOST_INSPECTIONS = 3
"""Inspections of a chain that is taken; a model learns to stay below a limit of as many."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a reply: a chain, or the reason why it is not taken."""

    chain: str | None = None
    rejected: Why | None = None


def judge(reply: str, question: Question) -> Verdict:
    """Reads a reply; its labels become places in the list, and its decision is left to the answer.

    What a reasoning teacher thinks before it answers is passed over.
    """
    said = " ".join(_THOUGHTS.sub("", reply).split()).strip("`* ")
    chain = parse(said)
    seen = [k for k, _ in chain.seen]
    named = [k for k, _ in chain.near]
    empty = not all(what for _, what in (*chain.near, *chain.seen))
    if not chain.whole or not named or empty or chain.best is None:
        return Verdict(rejected="not of the form")
    if any(not 0 <= k < len(question.order) for k in (*named, *seen, chain.best)):
        return Verdict(rejected="no such candidate")
    twice = len(set(named)) < len(named) or len(set(seen)) < len(seen)
    if twice or len(seen) > MOST_INSPECTIONS or not {*seen, chain.best} <= set(named):
        return Verdict(rejected="not of the form")
    asked = question.asked
    if asked.candidates[question.order[chain.best]] != asked.answer:
        return Verdict(rejected="wrong answer")
    return Verdict(chain=_in_list_order(chain, question).text())


def _in_list_order(chain: Chain, question: Question) -> Chain:
    place = question.order
    return replace(
        chain,
        near=tuple((place[k], name) for k, name in chain.near),
        seen=tuple((place[k], what) for k, what in chain.seen),
        best=None,
    )
