"""Score calibration: the temperatures that make scores probabilities, one for each mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.ranking import CellRun
from retrv_r1.eval.validation import rank_validation, write_value
from retrv_r1.types import Mode

LOWEST, HIGHEST = 0.02, 50.0
_POINTS, _ROUNDS = 41, 5
_FIELDS: dict[Mode, str] = {"fast": "score_temperature", "reason": "reason_temperature"}


@dataclass(frozen=True)
class Calibration:
    """Result of fitting a temperature; ``…_before`` is the same with the earlier temperature.

    Attributes:
        temperature, before: fitted temperature, and the checkpoint's earlier one.
        lists: number of validation lists with a relevant candidate.
        nll, nll_before: mean negative log-likelihood of the relevant candidates, nats per list.
        accuracy: share of lists in which a relevant candidate has the best score; where several
            candidates share it, their relevant share.
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


@dataclass(frozen=True)
class _Lists:
    """Lists padded to one length: logits ``[n, k]`` and whether each is relevant ``[n, k]``."""

    logits: Tensor
    relevant: Tensor

    @classmethod
    def of(cls, label_logits: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> _Lists:
        if not label_logits or len(label_logits) != len(answers) or not all(map(len, answers)):
            raise EvalError(
                "a temperature needs at least one list, and a relevant candidate in each list: "
                "give more queries, or a larger k"
            )
        rows = [logits.double() for logits in label_logits]
        padded = pad_sequence(rows, batch_first=True, padding_value=-math.inf)
        relevant = torch.zeros_like(padded, dtype=torch.bool)
        for row, known in zip(relevant, answers, strict=True):
            row[list(known)] = True
        return cls(padded, relevant)

    def nll(self, temperature: float) -> float:
        """Mean of ``-log p(a relevant candidate)`` under ``softmax(logits / temperature)``."""
        log_p = (self.logits / temperature).log_softmax(-1)
        return -float(log_p.masked_fill(~self.relevant, -math.inf).logsumexp(-1).mean())

    def accuracy(self) -> float:
        """Share of relevant candidates among those with the best logit, mean over lists."""
        best = self.logits == self.logits.amax(-1, keepdim=True)
        return float(((best & self.relevant).sum(-1) / best.sum(-1)).double().mean())

    def confidence(self, temperature: float) -> float:
        """Mean best score."""
        return float((self.logits / temperature).softmax(-1).amax(-1).mean())


def fit_temperature(label_logits: Sequence[Tensor], answers: Sequence[Sequence[int]]) -> float:
    """The temperature with the least negative log-likelihood of the relevant candidates.

    Searches grids in the temperature's logarithm, each finer than the one before.

    Args:
        label_logits: logits ``[k]`` of each list; lengths may differ.
        answers: indices of each list's relevant candidates, at least one.
    Raises:
        EvalError: no list, a list without a relevant candidate, or no minimum between ``LOWEST``
            and ``HIGHEST`` (all lists are right, or answers are random).
    """
    return _fit(_Lists.of(label_logits, answers))


def _fit(lists: _Lists) -> float:
    low, high = bounds = math.log(LOWEST), math.log(HIGHEST)
    best = low
    for _ in range(_ROUNDS):
        step = (high - low) / (_POINTS - 1)
        grid = [low + i * step for i in range(_POINTS - 1)] + [high]
        losses = [lists.nll(math.exp(point)) for point in grid]
        at = min(range(_POINTS), key=losses.__getitem__)
        best = grid[at]
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, _POINTS - 1)]
    if best in bounds:
        raise EvalError(
            f"there is no best temperature between {LOWEST} and {HIGHEST}: the "
            f"{len(lists.logits)} lists are too few, or the model is not trained"
        )
    return math.exp(best)


def calibrate(
    model_dir: str | Path,
    dataset: str | Path,
    *,
    modes: Sequence[Mode] = ("fast", "reason"),
    k: int = 50,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> dict[Mode, Calibration]:
    """Fits a temperature for each mode on the val split, and writes them to the config.

    Answers of reason mode are greedy, with one chain of thought for each list.

    Args:
        model_dir: directory of a checkpoint; its ``config.json`` is changed.
        dataset: directory in M-BEIR's layout with a val split.
        modes: modes to calibrate, in this order; one that fails leaves those before it written.
        k: number of candidates per list, at most the reranker's window: there the scores of a
            list are one softmax.
        limit, batch_size, seed, device: see :class:`retrv_r1.eval.settings.EvalSettings`.
    Raises:
        CheckpointError: no such directory, or no first stage in it.
        EvalError: no val split, or no lists to fit on.
    """
    models, runs = rank_validation(
        model_dir,
        dataset,
        k=(k,),
        modes=tuple(modes),
        full_tokens=False,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    config = Path(model_dir) / "config.json"
    found: dict[Mode, Calibration] = {}
    for mode in modes:
        before = models.reranker.model.config.temperature_of(mode)
        lists = _lists(runs, mode, before)
        try:
            temperature = _fit(lists)
        except EvalError as error:
            raise EvalError(f"{mode} mode: {error}") from error
        write_value(config, _FIELDS[mode], temperature)
        found[mode] = Calibration(
            temperature=temperature,
            before=before,
            lists=len(lists.logits),
            nll=lists.nll(temperature),
            nll_before=lists.nll(before),
            accuracy=lists.accuracy(),
            confidence=lists.confidence(temperature),
            confidence_before=lists.confidence(before),
        )
    return found


def _lists(runs: Sequence[CellRun], mode: Mode, before: float) -> _Lists:
    """The lists of a mode with a relevant candidate.

    Scores are ``softmax(logits / before)``, so ``before · log(score)`` are logits up to a constant.
    """
    logits, answers = [], []
    for run in runs:
        for (system, _), outcomes in run.reranked.items():
            for outcome in outcomes if system.mode == mode else ():
                known = run.positives[outcome.qid]
                relevant = [i for i, did in enumerate(outcome.ranking) if did in known]
                if relevant:
                    scores = torch.tensor(outcome.scores, dtype=torch.double)
                    logits.append(before * scores.clamp(min=1e-300).log())
                    answers.append(relevant)
    return _Lists.of(logits, answers)
