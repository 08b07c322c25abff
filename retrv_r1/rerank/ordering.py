"""From label logits to candidates in order, with scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from retrv_engine import Output


def rank_labels(logits: Tensor, answer: int, temperature: float) -> list[tuple[int, float]]:
    """Candidates with scores, best first.

    Scores are ``softmax(logits / temperature)`` over the labels. The answer comes first, with the
    largest score, even where sampling did not choose the likeliest label; so scores never increase
    down the ranking.

    Args:
        logits: logits of the labels at the place of the answer, ``[k]``.
        answer: number of the chosen candidate.
        temperature: the checkpoint's calibrated temperature.
    Raises:
        FloatingPointError: a score is NaN.
    """
    scores = torch.softmax(logits.double() / temperature, -1)
    _check_numbers(scores)
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    order.remove(answer)
    best = float(scores.max())
    return [(answer, best), *((k, float(scores[k])) for k in order)]


def vote(outputs: Sequence[Output]) -> tuple[Output, Tensor]:
    """The winner among several samples of one request, and label logits of all of them.

    Most outputs give the winner's answer; of answers given equally often, it has the largest mean
    probability. The winner is the first output with that answer.

    Returns:
        The winner, and the logarithms of the labels' mean probabilities ``[k]``; for a single
        output, its own logits.
    """
    if len(outputs) == 1:
        return outputs[0], outputs[0].label_logits
    chances = torch.stack([output.label_logits.double().softmax(-1) for output in outputs]).mean(0)
    said = Counter(output.answer for output in outputs)
    answer = max(said, key=lambda label: (said[label], float(chances[label])))
    winner = next(output for output in outputs if output.answer == answer)
    return winner, chances.log()


def rank_verdicts(logits: Sequence[Tensor]) -> list[tuple[int, float]]:
    """Candidates with scores, best first, by the probability of "yes" against "no".

    Args:
        logits: logits of "yes" and "no" of each candidate, ``[2]``.
    Raises:
        FloatingPointError: a score is NaN.
    """
    margins = torch.stack([yes_no[0] - yes_no[1] for yes_no in logits]).double()
    _check_numbers(margins)
    order = torch.argsort(margins, descending=True, stable=True).tolist()
    return [(k, float(margins[k].sigmoid())) for k in order]


def _check_numbers(values: Tensor) -> None:
    """Refuses NaN, which infinite logits give as well, whatever the engine let through."""
    if bool(values.isnan().any()):
        raise FloatingPointError(
            "scores are NaN, because the model's logits overflow or its weights are damaged: load "
            "it in bfloat16 or float32, or other weights"
        )


def merge_windows(
    head: Sequence[tuple[int, float]], tail: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """A window's ranking, then the candidates of earlier windows, with scores capped by it."""
    floor = head[-1][1] if head else 1.0
    merged = list(head)
    for candidate, score in tail:
        floor = min(floor, score)
        merged.append((candidate, floor))
    return merged
