"""Score calibration: the temperature that makes scores probabilities."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retrv_r1.eval.cells import EvalError, choose
from retrv_r1.eval.ranking import CellRun, CellRunner, Models
from retrv_r1.eval.settings import Settings
from retrv_r1.types import CheckpointError

LOWEST, HIGHEST = 0.02, 50.0
_POINTS, _ROUNDS = 41, 5


@dataclass(frozen=True)
class Calibration:
    """What fitting a temperature did.

    Attributes:
        temperature: the fitted one; ``before`` the one that the checkpoint had.
        lists: validation lists in which a relevant candidate was present.
        nll, nll_before: mean negative log-likelihood of the relevant candidates, nats a list.
        accuracy: share of lists whose best score is a relevant candidate's.
        confidence, confidence_before: mean best score, which should be near the accuracy.
    """

    temperature: float
    before: float
    lists: int
    nll: float
    nll_before: float
    accuracy: float
    confidence: float
    confidence_before: float


def mean_nll(
    label_logits: Sequence[Tensor], answers: Sequence[Sequence[int]], temperature: float
) -> float:
    """Mean of ``-log p(a relevant candidate)`` under ``softmax(logits / temperature)``.

    Args:
        label_logits: one ``[k]`` per list; lengths may differ.
        answers: numbers of each list's relevant candidates, at least one.
    """
    total = 0.0
    for logits, relevant in zip(label_logits, answers, strict=True):
        scaled = logits.double() / temperature
        total += float(scaled.logsumexp(-1) - scaled[list(relevant)].logsumexp(-1))
    return total / len(label_logits)


def fit_temperature(label_logits: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> float:
    """The temperature of least :func:`mean_nll`, by a grid in its logarithm, ever finer.

    Raises:
        EvalError: no list, a list without a relevant candidate, or no least value between
            ``LOWEST`` and ``HIGHEST`` (all lists right or all at random).
    """
    if not label_logits or len(label_logits) != len(answers) or not all(map(len, answers)):
        raise EvalError("a temperature is fitted on lists with a relevant candidate in each")
    low, high = torch.tensor([LOWEST, HIGHEST], dtype=torch.double).log().tolist()
    bounds = (low, high)
    best = low
    for _ in range(_ROUNDS):
        grid = torch.linspace(low, high, _POINTS, dtype=torch.double)
        losses = [mean_nll(label_logits, answers, float(point.exp())) for point in grid]
        at = min(range(_POINTS), key=losses.__getitem__)
        best = float(grid[at])
        low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, _POINTS - 1)])
    if best in bounds:
        raise EvalError(
            f"the best temperature is not between {LOWEST} and {HIGHEST}; are the "
            f"{len(answers)} lists too few, or the model untrained?"
        )
    return float(torch.tensor(best).exp())


def calibrate(
    model_dir: str | Path,
    dataset: str | Path,
    *,
    k: int = 50,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> Calibration:
    """Fits ``score_temperature`` on the val split, in fast mode, and writes it to the config.

    Args:
        model_dir: a checkpoint's directory; its ``config.json`` is changed.
        k: candidates per list; the reranker's window at most, where scores are one softmax.
    Raises:
        CheckpointError: no such directory, or no first stage in it.
        EvalError: no val split, or nothing to fit on.
    """
    folder = Path(model_dir)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint's directory: it has no config.json")
    settings = Settings(
        k=(k,),
        modes=("fast",),
        full_tokens=False,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    models = Models(folder, settings)
    if k > models.reranker.window:
        raise EvalError(f"k must be at most the window of {models.reranker.window}, got {k}")
    runner = CellRunner(Path(dataset), models, settings, None)
    before = models.reranker.model.config.score_temperature
    runs = [runner.run(cell) for cell in choose(Path(dataset), "val")]
    logits, answers = _lists(runs, before)
    fitted = _summary(logits, answers, fit_temperature(logits, answers), before)
    values = json.loads(config.read_text(encoding="utf-8"))
    values["score_temperature"] = fitted.temperature
    partial = config.with_suffix(".partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, config)
    return fitted


def _lists(runs: Sequence[CellRun], before: float) -> tuple[list[Tensor], list[list[int]]]:
    """Label logits, up to a constant, and relevant numbers of the lists that have any.

    Scores are ``softmax(logits / before)``, so ``before · log(score)`` will do.
    """
    logits, answers = [], []
    for run in runs:
        for outcomes in run.reranked.values():
            for outcome in outcomes:
                known = run.positives[outcome.qid]
                relevant = [i for i, did in enumerate(outcome.ranking) if did in known]
                if relevant:
                    scores = torch.tensor(outcome.scores, dtype=torch.double)
                    logits.append(before * scores.clamp(min=1e-300).log())
                    answers.append(relevant)
    return logits, answers


def _summary(
    logits: Sequence[Tensor], answers: Sequence[Sequence[int]], temperature: float, before: float
) -> Calibration:
    def confidence(t: float) -> float:
        return sum(float((row / t).softmax(-1).max()) for row in logits) / len(logits)

    right = [int(row.argmax()) in known for row, known in zip(logits, answers, strict=True)]
    return Calibration(
        temperature=temperature,
        before=before,
        lists=len(logits),
        nll=mean_nll(logits, answers, temperature),
        nll_before=mean_nll(logits, answers, before),
        accuracy=sum(right) / len(right),
        confidence=confidence(temperature),
        confidence_before=confidence(before),
    )
