"""Chains of thought in the paper's four steps, made from the data's own metadata.

A chain guesses the ideal result, rules out the easy negatives, examines the hard candidates, and
answers with a label. It names the answer and one near candidate, in random order, so that the order
does not reveal the answer. If the two are truly close, it inspects the first of them, says what it
shows, and decides at the end. There is only one inspection, because after more of them a small
greedy model asked for the first again (docs/LOG.md); a semicolon, which occurs nowhere else, marks
its end. Wording varies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrv_r1.model.chains import ChainPart
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
"""Most inspections of a chain, and the default limit of a model that learns from chains."""
_NEAR = 6
"""The candidate named beside the answer is one of this many nearest candidates."""


def describe(entry: Entry) -> str:
    """A candidate in a few words: its text, or the name of its picture."""
    if entry.picture is None and entry.text:
        return entry.text
    return entry.meta.get("name") or entry.text or "a picture"


def is_close(answer: Entry, other: Entry) -> bool:
    """Whether compressed tokens may not distinguish two candidates: same base, word or subgroup."""
    if answer.meta.get("base") and answer.meta.get("base") == other.meta.get("base"):
        return True
    shared = set(describe(answer).lower().split()) & set(describe(other).lower().split())
    if any(len(word) > 3 for word in shared - _COMMON):
        return True
    subgroup = answer.meta.get("subgroup")
    return bool(subgroup) and subgroup == other.meta.get("subgroup")


def chain(example: ListExample, rng: np.random.Generator) -> list[ChainPart]:
    """The reasoning for one list, without the surrounding tags."""

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))]

    answer = example.candidates[example.answer]
    ranked = np.argsort(example.closeness)  # the answer itself first, then the closest
    near = [int(k) for k in ranked[1 : 1 + _NEAR]]
    hard = [k for k in near if is_close(answer, example.candidates[k])]
    rivals = hard or near
    rival = [rivals[int(rng.integers(len(rivals)))]] if rivals else []
    examined = [int(k) for k in rng.permutation([example.answer, *rival])]

    parts = [ChainPart("text", one_of(_IDEAL).format(describe(answer)))]
    if len(example.candidates) > len(examined) and (easy := one_of(_EASY)):
        parts.append(ChainPart("text", easy))
    parts.append(ChainPart("text", one_of(_HARD)))
    parts += [ChainPart("label", candidate=k) for k in examined]
    parts.append(ChainPart("text", "."))
    for k in examined[:CHAIN_INSPECTIONS] if hard else ():
        parts.append(ChainPart("inspect", candidate=k))
        parts.append(ChainPart("text", one_of(_SHOWN).format(describe(example.candidates[k]))))
    parts += [ChainPart("text", one_of(_DONE)), ChainPart("label", candidate=example.answer)]
    return parts


def phrases() -> list[str]:
    """All fixed phrases, for training a tokenizer."""
    return [p.format("") for p in (*_IDEAL, *_EASY, *_HARD, *_SHOWN, *_DONE)]
