"""Chains of thought in the paper's four steps, made from the data's own metadata.

Guess the ideal result, rule out the easy negatives, examine the hard candidates, answer with the
label. The answer and one near candidate are named; where the two are truly close the first of them
is inspected, what it shows is said, and which is better is decided at the end. One inspection, so
that a small greedy model can tell when it is done: after more it asked for the first again
(docs/LOG.md); a semicolon, which nothing else has, says that it is. Wording varies; the named come
in random order, so that neither their order nor the prompt's says which one is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrv_r1.train.corpus import Entry, ListExample

_IDEAL = ("ideal: {}.", "the ideal result: {}.", "looking for {}.", "wanted: {}.")
_EASY = (" most are far off.", " the others clearly differ.", " easy to rule out the rest.", "")
_HARD = (" close:", " candidates:", " hard ones:", " worth a look:")
_SHOWN = (" {};", " shows {};", " that is {};")
_DONE = (" so", " best:", " answer:")
# Words that two names may share without naming similar things.
_COMMON = {
    *("with", "skin", "tone", "dark", "light", "medium", "medium-dark", "medium-light"),
    *("face", "flag", "sign", "button", "from"),
}
CHAIN_INSPECTIONS = 1
"""Most inspections of a chain, which a model that learns from them is held to by default."""
_NEAR = 6
"""The candidate that is named beside the answer is one of so many nearest."""


@dataclass(frozen=True)
class ChainPart:
    """A piece of a chain: words, a candidate's label, or an inspection of a candidate."""

    kind: Literal["text", "label", "inspect"]
    text: str = ""
    candidate: int = -1


def describe(entry: Entry) -> str:
    """What a candidate shows, in a few words: its text, or the name of its picture."""
    if entry.picture is None and entry.text:
        return entry.text
    return entry.meta.get("name") or entry.text or "a picture"


def is_close(answer: Entry, other: Entry) -> bool:
    """Whether two compressed tokens may not tell the candidates apart: one base, one subgroup."""
    if answer.meta.get("base") and answer.meta.get("base") == other.meta.get("base"):
        return True
    shared = set(describe(answer).lower().split()) & set(describe(other).lower().split())
    if any(len(word) > 3 for word in shared - _COMMON):
        return True
    subgroup = answer.meta.get("subgroup")
    return bool(subgroup) and subgroup == other.meta.get("subgroup")


def chain(example: ListExample, rng: np.random.Generator) -> list[ChainPart]:
    """The reasoning of one list, without the surrounding tags."""

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    answer = example.candidates[example.answer]
    ranked = np.argsort(example.closeness)  # the answer itself first, then the closest
    near = [int(k) for k in ranked[1 : 1 + _NEAR]]
    hard = [k for k in near if is_close(answer, example.candidates[k])]
    rivals = hard or near
    rival = [rivals[int(rng.integers(len(rivals)))]] if rivals else []
    examined = [int(k) for k in rng.permutation([example.answer, *rival])]

    pieces = [ChainPart("text", one_of(_IDEAL).format(describe(answer)))]
    if len(example.candidates) > len(examined) and (easy := one_of(_EASY)):
        pieces.append(ChainPart("text", easy))
    pieces.append(ChainPart("text", one_of(_HARD)))
    pieces += [ChainPart("label", candidate=k) for k in examined]
    pieces.append(ChainPart("text", "."))
    for k in examined[:CHAIN_INSPECTIONS] if hard else ():
        pieces.append(ChainPart("inspect", candidate=k))
        pieces.append(ChainPart("text", one_of(_SHOWN).format(describe(example.candidates[k]))))
    pieces += [ChainPart("text", one_of(_DONE)), ChainPart("label", candidate=example.answer)]
    return pieces


def phrases() -> list[str]:
    """Every fixed phrase, for the tokenizer."""
    return [p.format("") for p in (*_IDEAL, *_EASY, *_HARD, *_SHOWN, *_DONE)]
