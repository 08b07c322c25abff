"""From label logits to a ranking: the score policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_labels(logits: Tensor, answer: int, temperature: float) -> list[tuple[int, float]]:
    """Candidates with scores, best first.

    Scores are ``softmax(logits / temperature)`` over the labels. The answer comes first whatever
    its logit is (sampling may choose another one than the likeliest), with the largest score, so
    that scores never rise down the ranking.

    Args:
        logits: of the labels where the answer is due, ``[k]``.
        answer: the chosen candidate.
    """
    scores = torch.softmax(logits.double() / temperature, -1)
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    order.remove(answer)
    best = float(scores.max())
    return [(answer, best), *((k, float(scores[k])) for k in order)]


def merge_windows(
    head: Sequence[tuple[int, float]], tail: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """A window's ranking, then candidates that earlier windows placed lower, capped below it."""
    floor = head[-1][1] if head else 1.0
    merged = list(head)
    for candidate, score in tail:
        floor = min(floor, score)
        merged.append((candidate, floor))
    return merged
