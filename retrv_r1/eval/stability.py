"""How much an answer depends on how a query is worded, and on the order of the candidates."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrv_r1.eval.cells import EvalError, choose
from retrv_r1.eval.models import Models
from retrv_r1.eval.names import Names
from retrv_r1.eval.plan import read_cells
from retrv_r1.eval.progress import bar
from retrv_r1.eval.retrieval import Retriever
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import Item, Mode, RankedResults, RankRequest

_AT_ONCE = 64
"""Lists that are ranked in one call; what is in memory of them is little."""


@dataclass(frozen=True)
class NamedList:
    """A thing by its bare name, and candidates.

    Attributes:
        right: indices of the candidates that show it.
    """

    name: str
    candidates: Sequence[Item]
    right: frozenset[int]


@dataclass(frozen=True)
class Wording:
    """Answers to one wording of every list's name.

    Attributes:
        wording: its frame, such as ``a picture of {a}``.
        recall: share of lists whose answer is right (R@1).
        score: mean score of the first place.
        differs: share of lists whose answer is not that of the first wording.
    """

    wording: str
    recall: float
    score: float
    differs: float


@dataclass(frozen=True)
class Stability:
    """Stability of one mode over lists.

    Attributes:
        wordings: answers by wording.
        reworded: share of lists to which not all wordings get the same answer; None if there is
            one wording.
        shuffles: number of shuffles of each list.
        reordered: share of the answers to shuffled lists that are not the answer to the list in its
            own order; None without shuffles.
        reordered_lists: share of lists with such an answer.
    """

    mode: Mode
    lists: int
    wordings: Sequence[Wording]
    reworded: float | None
    shuffles: int
    reordered: float | None
    reordered_lists: float | None


def measure_stability(
    reranker: Reranker,
    lists: Sequence[NamedList],
    *,
    frames: Sequence[str],
    reword: Callable[[str], Sequence[str]],
    modes: Sequence[Mode] = ("fast", "reason"),
    shuffles: int = 20,
    seed: int = 0,
) -> list[Stability]:
    """Ranks every list in each wording, then its bare name in shuffled orders.

    Args:
        frames: names of the wordings.
        reword: function that gives a name in each of them; the first is the bare name.
        shuffles: number of shuffled orders of each list.
        seed: seed of the orders.
    Raises:
        EvalError: there is no list.
    """
    if not lists:
        raise EvalError("there is no list whose query has a name: choose another cell or folder")
    return [_of_mode(reranker, lists, frames, reword, mode, shuffles, seed) for mode in modes]


def _of_mode(
    reranker: Reranker,
    lists: Sequence[NamedList],
    frames: Sequence[str],
    reword: Callable[[str], Sequence[str]],
    mode: Mode,
    shuffles: int,
    seed: int,
) -> Stability:
    said = [reword(one.name) for one in lists]
    answers: list[list[int]] = []
    wordings = []
    for place, frame in enumerate(frames):
        asked = [RankRequest(s[place], o.candidates) for s, o in zip(said, lists, strict=True)]
        results = list(_ranked(reranker, asked, mode, f"wording {place + 1} of {len(frames)}"))
        answers.append([_answer(result) for result in results])
        pairs = zip(answers[-1], lists, strict=True)
        wordings.append(
            Wording(
                frame,
                _mean(answer in one.right for answer, one in pairs),
                _mean(result[0].score for result in results),
                _mean(a != b for a, b in zip(answers[-1], answers[0], strict=True)),
            )
        )
    moved = _moved(reranker, lists, [s[0] for s in said], answers[0], mode, shuffles, seed)
    return Stability(
        mode=mode,
        lists=len(lists),
        wordings=wordings,
        reworded=_mean(len(set(own)) > 1 for own in zip(*answers, strict=True))
        if len(frames) > 1
        else None,
        shuffles=shuffles,
        reordered=_mean(count / shuffles for count in moved) if shuffles else None,
        reordered_lists=_mean(count > 0 for count in moved) if shuffles else None,
    )


def _moved(
    reranker: Reranker,
    lists: Sequence[NamedList],
    queries: Sequence[str],
    answers: Sequence[int],
    mode: Mode,
    shuffles: int,
    seed: int,
) -> list[int]:
    """Number of shuffles of each list that get another answer."""
    orders, asked = [], []
    for number, (one, query) in enumerate(zip(lists, queries, strict=True)):
        draw = random.Random(f"order {seed} {number}")
        for _ in range(shuffles):
            order = list(range(len(one.candidates)))
            draw.shuffle(order)
            orders.append((number, order))
            asked.append(RankRequest(query, [one.candidates[k] for k in order]))
    changed: Counter[int] = Counter()
    results = _ranked(reranker, asked, mode, f"{shuffles} shuffles")
    for (number, order), result in zip(orders, results, strict=True):
        changed[number] += order[_answer(result)] != answers[number]
    return [changed[number] for number in range(len(lists))]


def _ranked(
    reranker: Reranker, asked: Sequence[RankRequest], mode: Mode, what: str
) -> Iterable[RankedResults]:
    starts = range(0, len(asked), _AT_ONCE)
    for start in bar(starts, f"ranking {len(asked)} lists, {mode}, {what}", len(starts)):
        yield from reranker.rank_batch(asked[start : start + _AT_ONCE], mode=mode)


def _answer(result: RankedResults) -> int:
    assert result.answer is not None, "every list has a candidate"
    return result.answer


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def lists_of_pictures(items: Sequence[Item]) -> list[NamedList]:
    """A list for each name among pictures that are named by their files, all of them candidates.

    ``alarm-clock.png`` shows an alarm clock.
    """
    names = [_named(item) for item in items]
    return [
        NamedList(name, items, frozenset(k for k, other in enumerate(names) if other == name))
        for name in dict.fromkeys(names)
    ]


def _named(item: Item) -> str:
    if not isinstance(item.image, str | Path):
        raise EvalError("pictures that are named by their files are needed, and no other candidate")
    return " ".join(Path(item.image).stem.replace("-", " ").replace("_", " ").split())


def lists_of_cells(
    dataset: Path, models: Models, settings: EvalSettings, split: str, cells: Sequence[str]
) -> list[NamedList]:
    """The first stage's best candidates of every text query that asks for a thing with a name.

    Raises:
        EvalError: no such split or cell, or one that cannot be read.
    """
    plan, names = read_cells(dataset, choose(dataset, split, cells), settings, None), Names(dataset)
    if plan.bad:
        raise EvalError(f"{plan.bad[0].name}: {plan.bad[0].error}")
    retriever, lists = Retriever(models, settings, None), []
    for work in plan.works:
        if all(query.image for query in work.queries):
            continue
        for query, found in zip(work.queries, retriever.nearest(work), strict=True):
            dids = found.ranking[: max(settings.k)]
            name = None if query.image else names.wanted(query)
            if name and not set(dids).isdisjoint(query.positives):
                right = frozenset(k for k, did in enumerate(dids) if did in query.positives)
                items = [work.task.item(work.task.candidate(did)) for did in dids]
                lists.append(NamedList(name, items, right))
    return lists


def to_json(model: str, source: str, found: Sequence[Stability]) -> dict[str, Any]:
    """The result as JSON values."""
    return {"model": model, "source": source, "modes": [asdict(one) for one in found]}
