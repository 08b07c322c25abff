"""Ranks the lists on an engine: alone and together, with empty caches and full ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from retrv_engine import Engine
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import EngineName, RankRequest
from retrv_r1.verify.comparing import BOUNDS, Comparison, compare
from retrv_r1.verify.golden import MODES, Case, Outcome

BATCHES = 1, 8, 64
"""Lists that are ranked together."""


def compare_engine(
    name: EngineName,
    model: str,
    golden: Mapping[str, Outcome],
    asked: Sequence[Case],
    *,
    batches: Sequence[int] = BATCHES,
    bound: float | None = None,
    device: str | None = None,
    ranked: Callable[[int], None] = lambda count: None,
) -> Iterator[Comparison]:
    """Yields a comparison for each size of batch, first with empty caches, then again.

    Args:
        model: the checkpoint; it is read in float32.
        golden: golden outcomes by the names of their cases.
        batches: lists that are ranked together; the engine runs as many at once.
        bound: largest difference of a score; the engine's own when None.
        device: device of the model.
        ranked: called with a number of lists when they are ranked.
    """
    most, limit = max(batches), BOUNDS[name] if bound is None else bound
    with Reranker.from_pretrained(
        model, engine=name, dtype="float32", device=device, batch_size=most
    ) as reranker:
        for batch in batches:
            forget(reranker)
            for cache in ("cold", "warm"):
                found = rank_together(reranker, asked, batch, ranked)
                yield compare(name, found, golden, cache=cache, batch=batch, bound=limit)


def forget(reranker: Reranker) -> None:
    """Empties the feature cache and the engine's."""
    reranker.encoder.clear()
    if isinstance(reranker.engine, Engine):
        reranker.engine.flush()


def rank_together(
    reranker: Reranker,
    asked: Sequence[Case],
    batch: int,
    ranked: Callable[[int], None] = lambda count: None,
) -> dict[str, Outcome]:
    """Outcomes of lists that are ranked ``batch`` at a time; ``ranked`` hears of each batch."""
    found: dict[str, Outcome] = {}
    for mode in MODES:
        group = [case for case in asked if case.mode == mode]
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            requests = [RankRequest(case.asked.query, case.asked.candidates) for case in part]
            results = reranker.rank_batch(requests, mode=mode)
            ranked(len(part))
            found |= {c.name: Outcome.of(r) for c, r in zip(part, results, strict=True)}
    return found
