"""Chains of thought in the paper's four steps, made from the data's own metadata.

A chain says what the query asks for, names two to four likely candidates, looks at those of them
that a detail decides, and says what they show. The wording and its reading are in
``retrv_r1.model.chains``. The likely candidates stand in random order, so that the order does not
reveal the answer. The decision is the answer behind the chain, where scores are read.
"""

from __future__ import annotations

import numpy as np

from retrv_r1.model.chains import Chain, words
from retrv_r1.train.corpus import Entry, ListExample

# Words that two names may share without naming similar things.
_COMMON = {
    *("with", "skin", "tone", "dark", "light", "medium", "medium-dark", "medium-light"),
    *("face", "flag", "sign", "button", "from"),
}
CHAIN_INSPECTIONS = 3
"""Most inspections of a chain, and the default limit of a model that learns from chains."""
_NEAR = 6
"""The candidates named beside the answer are among this many nearest candidates."""


def describe(entry: Entry) -> str:
    """A candidate in a few words: its text, or the name of its picture."""
    if entry.picture is None and entry.text:
        return entry.text
    return entry.meta.get("name") or entry.text or "a picture"


def is_close(one: Entry, other: Entry) -> bool:
    """Whether a detail decides between two candidates: their names share a word of weight."""
    if one.meta.get("base") and one.meta.get("base") == other.meta.get("base"):
        return True
    if one.meta.get("details") and other.meta.get("details"):
        return True
    shared = set(describe(one).lower().split()) & set(describe(other).lower().split())
    return any(len(word) > 3 for word in shared - _COMMON)


def chain(example: ListExample, rng: np.random.Generator) -> Chain | None:
    """The reasoning for one list; None if its ideal has no letters or digits to say."""
    ranked = [int(k) for k in np.argsort(example.closeness)]
    near = [k for k in ranked if k != example.answer][:_NEAR]
    # Without an answer the nearest candidate is what the others are compared with.
    first = near[0] if example.answer is None else example.answer
    ideal = example.ideal or describe(example.candidates[first])
    if not words(ideal):
        return None
    others = [k for k in near if k != first]
    hard = [k for k in others if is_close(example.candidates[first], example.candidates[k])]
    easy = [k for k in others if k not in hard]
    count = max(1 + int(rng.integers(2)), min(len(hard), CHAIN_INSPECTIONS - 1))
    rivals = [*rng.permutation(hard).tolist(), *rng.permutation(easy).tolist()][:count]
    named = [int(k) for k in rng.permutation([first, *rivals])]
    names = {k: said for k in named if words(said := describe(example.candidates[k]))}
    looked = [k for k in names if hard and (k == first or k in hard)][:CHAIN_INSPECTIONS]
    return Chain(ideal, tuple(names.items()), tuple((k, names[k]) for k in looked))
