"""From outputs to a ranking: candidates in order with scores, and the reasoning as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from retrv_engine import Output
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.events import Reasoning
from retrv_r1.rerank.narration import Narrator


def rank_labels(
    logits: Tensor, answer: int, temperature: float, places: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """Candidates with scores, best first.

    Scores are ``softmax(logits / temperature)`` over the labels. The answer comes first, with the
    largest score, even where sampling did not choose the likeliest label; so scores never increase
    down the ranking.

    Args:
        logits: logits of the labels at the place of the answer, ``[k]``.
        answer: number of the chosen candidate.
        temperature: the checkpoint's calibrated temperature.
        places: order among candidates of equal logits, ``[k]``, which also decides the answer if
            several have the largest one; None for the order of the labels behind the answer.
    Raises:
        FloatingPointError: a score is NaN.
    """
    scores = torch.softmax(logits.double() / temperature, -1)
    _check_numbers(scores)
    order = _descending(logits, places)
    if places is None or logits[answer] < logits.max():
        order.remove(answer)
        order.insert(0, answer)
    best = float(scores.max())
    return [(order[0], best), *((k, float(scores[k])) for k in order[1:])]


def _descending(values: Tensor, places: Sequence[int] | None) -> list[int]:
    """Numbers of the values, largest first; equal ones in the order of their places."""
    if places is None:
        return torch.argsort(values, descending=True, stable=True).tolist()
    numbers = torch.argsort(torch.tensor(places))
    return numbers[torch.argsort(values[numbers], descending=True, stable=True)].tolist()


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


def rank_verdicts(
    logits: Sequence[Tensor], places: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """Candidates with scores, best first, by the probability of "yes" against "no".

    Args:
        logits: logits of "yes" and "no" of each candidate, ``[2]``.
        places: order among candidates of equal probability; None for the candidates' own.
    Raises:
        FloatingPointError: a score is NaN.
    """
    margins = torch.stack([yes_no[0] - yes_no[1] for yes_no in logits]).double()
    _check_numbers(margins)
    return [(k, float(margins[k].sigmoid())) for k in _descending(margins, places)]


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


def reasoning_text(
    processor: RetrvR1Processor, written: Sequence[int], numbers: Sequence[int]
) -> str:
    """The text between the think tags, where ``[index + 1]`` stands for a label.

    Args:
        written: tokens of an output.
        numbers: index in the caller's list, for each label of the prompt.
    """
    if processor.tokens.think_end not in written:
        return ""
    events = Narrator(processor, numbers).read(written)
    return "".join(event.text for event in events if isinstance(event, Reasoning))
