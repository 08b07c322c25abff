"""Chains of thought in the paper's four steps, made from the data's own metadata.

A chain says what the query asks for, names two to four likely candidates, looks at those of them
that a detail decides, and says what they show, with that detail. The wording and its reading are in
``retrv_r1.model.chains``, what is said of details in ``retrv_r1.model.details``. The likely
candidates stand in random order, so that the order does not reveal the answer. The decision is the
answer behind the chain, where scores are read.
"""

from __future__ import annotations

from itertools import chain as chained

import numpy as np

from retrv_r1.model.chains import Chain, words
from retrv_r1.model.details import Shown, are_close, details_of, statement
from retrv_r1.train.corpus import Entry, ListExample

CHAIN_INSPECTIONS = 3
"""Most inspections of a chain, and the default limit of a model that learns from chains."""
_NEAR = 6
"""The candidates named beside the answer are among this many nearest candidates."""


def describe(entry: Entry) -> str:
    """A candidate in a few words: its text, or the name of its picture."""
    if entry.picture is None and entry.text:
        return entry.text
    return entry.meta.get("name") or entry.text or "a picture"


def shown(entry: Entry) -> Shown:
    """What is known of a candidate."""
    return Shown(describe(entry), details_of(entry.meta))


def is_close(one: Entry, other: Entry) -> bool:
    """Whether a detail decides between two candidates: they show similar things."""
    if one.meta.get("base") and one.meta.get("base") == other.meta.get("base"):
        return True
    return are_close(shown(one), shown(other))


def chain_of(example: ListExample, rng: np.random.Generator) -> Chain | None:
    """The reasoning that is given for a list, or one that its metadata make; or None."""
    if example.chain is not None or not example.describable:
        return example.chain
    return chain(example, rng)


def chain(example: ListExample, rng: np.random.Generator) -> Chain | None:
    """The reasoning for one list; None if its ideal has no letters or digits to say."""
    ranked = [int(k) for k in np.argsort(example.closeness)]
    near = [k for k in ranked if k != example.answer][:_NEAR]
    # Without an answer the nearest candidate is what the others are compared with.
    first = near[0] if example.answer is None else example.answer
    ideal = example.ideal or describe(example.candidates[first])
    if not words(ideal):
        return None
    known = {k: shown(example.candidates[k]) for k in {first, *near}}
    others = [k for k in near if k != first]
    close = [k for k in others if is_close(example.candidates[first], example.candidates[k])]
    hard = [k for k in close if _differ(known[first], known[k])]
    easy = [k for k in others if k not in hard]
    count = max(1 + int(rng.integers(2)), min(len(hard), CHAIN_INSPECTIONS - 1))
    twins = [k for k in hard if known[k].words == known[first].words]
    order = (rng.permutation(group).tolist() for group in (twins, hard, easy))
    rivals = list(dict.fromkeys(chained.from_iterable(order)))[:count]
    named = [int(k) for k in rng.permutation([first, *rivals])]
    names = {k: said for k in named if words(said := known[k].name)}
    looked = [k for k in names if hard and (k == first or k in hard)][:CHAIN_INSPECTIONS]
    beside = {k: [known[n] for n in names if n != k] for k in looked}
    seen = tuple((k, statement(known[k], beside[k])) for k in looked)
    return Chain(ideal, tuple(names.items()), seen)


def _differ(one: Shown, other: Shown) -> bool:
    """Whether statements on two candidates tell them apart, so that looking at them decides."""
    return statement(one, [other]) != statement(other, [one])
