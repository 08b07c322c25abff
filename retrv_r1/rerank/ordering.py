"""From outputs to a ranking: candidates in order with scores, and the reasoning as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retrv_engine import Output
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.events import Reasoning
from retrv_r1.rerank.narration import Narrator


class Ballot(NamedTuple):
    """Logits at the place of the answer.

    Attributes:
        labels: logits of the labels, ``[k]``.
        none: logit of the label for no candidate; None for a model that has none.
    """

    labels: Tensor
    none: float | None = None

    @classmethod
    def of(cls, output: Output) -> Ballot:
        """The logits of one output."""
        return cls(output.label_logits, output.none_logit)

    def joined(self) -> Tensor:
        """All logits as one float64 tensor, none's last."""
        none = [] if self.none is None else [self.none]
        return torch.cat([self.labels.double(), self.labels.new_tensor(none).double()])

    def scores(self, calibration: ModeCalibration) -> tuple[Tensor, float | None]:
        """Calibrated scores of the labels, float64 ``[k]``, and the share of no candidate."""
        none = None if self.none is None else torch.tensor(self.none, dtype=torch.float64)
        scores = calibration.log_scores(self.labels, none).exp()
        _check_numbers(scores)
        count = len(self.labels)
        return scores[:count], None if self.none is None else float(scores[count])


def rank_labels(
    logits: Tensor, scores: Tensor, answer: int, places: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """Candidates with scores, best first.

    The answer comes first, even where sampling did not choose the likeliest label. Then it takes
    the largest score, and those before it the next: scores never increase down the ranking, and
    their sum stays.

    Args:
        logits: logits of the labels at the place of the answer, ``[k]``.
        scores: their scores, ``[k]``.
        answer: number of the chosen candidate.
        places: order among candidates of equal logits, ``[k]``, which also decides the answer if
            several have the largest one; None for the order of the labels behind the answer.
    """
    order = _descending(logits, places)
    if places is None or logits[answer] < logits.max():
        order.remove(answer)
        order.insert(0, answer)
    return list(zip(order, scores.sort(descending=True).values.tolist(), strict=True))


def _descending(values: Tensor, places: Sequence[int] | None) -> list[int]:
    """Numbers of the values, largest first; equal ones in the order of their places."""
    if places is None:
        return torch.argsort(values, descending=True, stable=True).tolist()
    numbers = torch.argsort(torch.tensor(places))
    return numbers[torch.argsort(values[numbers], descending=True, stable=True)].tolist()


def vote(outputs: Sequence[Output]) -> tuple[Output, Ballot]:
    """The winner among several samples of one request, and label logits of all of them.

    Most outputs give the winner's answer; of answers given equally often, it has the largest mean
    probability. The winner is the first output with that answer.

    Returns:
        The winner, and the logarithms of the labels' mean probabilities; for a single output, its
        own logits.
    """
    ballots = [Ballot.of(output) for output in outputs]
    if len(outputs) == 1:
        return outputs[0], ballots[0]
    chances = torch.stack([ballot.joined().softmax(-1) for ballot in ballots]).mean(0)
    said = Counter(output.answer for output in outputs)
    answer = max(said, key=lambda label: (said[label], float(chances[label])))
    winner = next(output for output in outputs if output.answer == answer)
    count = len(ballots[0].labels)
    none = None if ballots[0].none is None else float(chances[count].log())
    return winner, Ballot(chances[:count].log(), none)


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
