"""Fits the parameters that make logits of labels probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.reliability import auroc, calibration_error
from retrv_r1.model.calibration import ModeCalibration, log_scores

LOWEST, HIGHEST = 0.02, 50.0
_POINTS, _ROUNDS = 41, 5
_WEIGHTS = "likeness", "recall"
_FARTHEST = {"length_power": 3.0, "none_bias": 500.0, "likeness": 1e4, "recall": 1e3}


@dataclass(frozen=True)
class Measures:
    """What one calibration gives on the lists.

    Attributes:
        nll: mean negative log-likelihood in nats per list: of the relevant candidates, or of none
            of these in a list without them.
        confidence: mean best score, which should be near the accuracy.
        ece: expected calibration error of the best score.
        auroc: chance that none of these is likelier in a list without a relevant candidate than in
            one with it; None where the model does not say it.
    """

    nll: float
    confidence: float
    ece: float
    auroc: float | None


@dataclass(frozen=True)
class Lists:
    """Lists padded to one length.

    Attributes:
        logits: ``[n, k]``, minus infinity where there is no candidate.
        relevant: whether each is relevant, ``[n, k]``.
        none: logits of the label for no candidate, ``[n]``; None without one.
        resemblance: what content tokens say of each candidate, ``[n, k, 2]``; None where it is not
            known (``retrv_r1.model.prior``).
    """

    logits: Tensor
    relevant: Tensor
    none: Tensor | None = None
    resemblance: Tensor | None = None

    @classmethod
    def of(
        cls,
        label_logits: Sequence[Tensor],
        answers: Sequence[Sequence[int]],
        none: Sequence[float] | None = None,
        resemblance: Sequence[Tensor] | None = None,
    ) -> Lists:
        """Lists with the places of their relevant candidates, and logits without biases.

        Raises:
            EvalError: no list, no candidate in any, or a list without a relevant candidate where
                there is no ``none``; or a logit that is NaN or infinite.
        """
        whole = none is not None or all(map(len, answers))
        if not label_logits or len(label_logits) != len(answers) or not whole:
            raise EvalError(
                "a calibration needs at least one list, and a relevant candidate in each list "
                "unless the model has a label for none of these: give more queries, or a larger k"
            )
        if not any(map(len, label_logits)):
            raise EvalError("no list has a candidate: a calibration needs some to choose from")
        rows = [logits.double() for logits in label_logits]
        read = [*rows, torch.tensor(none or (), dtype=torch.float64)]
        if not all(bool(logits.isfinite().all()) for logits in read):
            raise EvalError(
                "a score is NaN or infinite: the weights are damaged, or the dtype is too small"
            )
        padded = pad_sequence(rows, batch_first=True, padding_value=-math.inf)
        relevant = torch.zeros_like(padded, dtype=torch.bool)
        for row, known in zip(relevant, answers, strict=True):
            row[list(known)] = True
        last = None if none is None else torch.tensor(none, dtype=torch.float64)
        if resemblance is None:
            return cls(padded, relevant, last)
        return cls(
            padded, relevant, last, pad_sequence(list(resemblance), batch_first=True).double()
        )

    @property
    def answered(self) -> Tensor:
        """Whether a list has a relevant candidate, ``[n]``."""
        return self.relevant.any(-1)

    def loss(self, scores: Tensor) -> Tensor:
        """Mean of ``-log p`` of what is right, from logarithms of scores."""
        right = self.relevant
        if self.none is not None:
            right = torch.cat([right, ~self.answered[:, None]], -1)
        return -scores.masked_fill(~right, -math.inf).logsumexp(-1).mean()

    def biased(self, weights: Tensor) -> Tensor:
        """Logits with the biases that weights ``[2]`` of likeness and recall give."""
        return self.logits if self.resemblance is None else self.logits + self.resemblance @ weights

    def scores(self, calibration: ModeCalibration) -> Tensor:
        """Logarithms of scores, ``[n, k]``, or ``[n, k + 1]`` with none's share last."""
        weights = torch.tensor([calibration.likeness, calibration.recall], dtype=torch.float64)
        return calibration.log_scores(self.biased(weights), self.none)

    def nll(self, calibration: ModeCalibration) -> float:
        """The loss under a calibration."""
        return float(self.loss(self.scores(calibration)))

    def accuracy(self, calibration: ModeCalibration) -> float:
        """Share of relevant candidates among those with the best score, mean over lists."""
        scores = self.scores(calibration)[:, : self.logits.shape[1]]
        best = scores == scores.amax(-1, keepdim=True)
        return float(((best & self.relevant).sum(-1) / best.sum(-1)).double().mean())

    def measures(self, calibration: ModeCalibration) -> Measures:
        """What a calibration gives."""
        scores = self.scores(calibration).exp()
        labels = scores[:, : self.logits.shape[1]]
        best, place = labels.max(-1)
        right = self.relevant.gather(1, place[:, None])[:, 0]
        return Measures(
            self.nll(calibration),
            float(best.mean()),
            calibration_error(best.numpy(), right.numpy()),
            None if self.none is None else auroc(scores[:, -1].numpy(), (~self.answered).numpy()),
        )


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
    return _temperature(Lists.of(label_logits, answers))


def _temperature(lists: Lists) -> float:
    low, high = bounds = math.log(LOWEST), math.log(HIGHEST)
    best = low
    for _ in range(_ROUNDS):
        step = (high - low) / (_POINTS - 1)
        grid = [low + i * step for i in range(_POINTS - 1)] + [high]
        losses = [lists.nll(ModeCalibration(math.exp(point))) for point in grid]
        at = min(range(_POINTS), key=losses.__getitem__)
        best = grid[at]
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, _POINTS - 1)]
    if best in bounds:
        raise EvalError(
            f"there is no best temperature between {LOWEST} and {HIGHEST}: the "
            f"{len(lists.logits)} lists are too few, or the model is not trained"
        )
    return math.exp(best)


def fit(lists: Lists) -> tuple[ModeCalibration, dict[str, float]]:
    """The calibration with the least negative log-likelihood, of the simplest form that pays.

    Each parameter beside the temperature must pay half a ``log n`` nats over all n lists (the
    Bayesian information criterion), so that a few lists do not decide it.

    Returns:
        The calibration, and the nll of each form by its parameters; forms without a best value in
        bounds, as where the data can be told apart by one parameter alone, are left out.
    Raises:
        EvalError: see :func:`fit_temperature`.
    """
    start, count = ModeCalibration(_temperature(lists)), len(lists.logits)
    optional: list[tuple[str, ...]] = [("length_power",)]
    optional += [("none_bias",)] if lists.none is not None else []
    if lists.resemblance is not None:
        optional.append(tuple(n for k, n in enumerate(_WEIGHTS) if lists.resemblance[..., k].any()))
    chosen = (some for n in range(len(optional) + 1) for some in combinations(optional, n))
    forms = [tuple(chain.from_iterable(some)) for some in chosen]
    found = {form: start if not form else _descend(lists, start, form) for form in forms}
    inside = {
        form: one
        for form, one in found.items()
        if one is not None
        and all(abs(getattr(one, name)) < _FARTHEST[name] for name in form)
        and LOWEST < one.temperature < HIGHEST
    }
    tried = {form: lists.nll(one) for form, one in inside.items()}
    best = min(tried, key=lambda form: tried[form] + len(form) * math.log(count) / 2 / count)
    names = {" + ".join(("temperature", *form)): nll for form, nll in tried.items()}
    return inside[best], names


def _descend(lists: Lists, start: ModeCalibration, form: Sequence[str]) -> ModeCalibration | None:
    """Fits the temperature and the parameters of a form, from the best temperature alone.

    Returns:
        None if the descent leaves the numbers, or ends where it is no better than it began: its
        loss may have no minimum.
    """
    scale = torch.tensor(math.log(start.temperature), dtype=torch.float64, requires_grad=True)
    values = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in form}
    optimizer = torch.optim.LBFGS(
        [scale, *values.values()], max_iter=200, line_search_fn="strong_wolfe"
    )
    zero = torch.zeros((), dtype=torch.float64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        more = [values.get(name, zero) for name in ("length_power", "none_bias")]
        logits = lists.biased(torch.stack([values.get(name, zero) for name in _WEIGHTS]))
        value = lists.loss(log_scores(logits, lists.none, scale.exp(), *more))
        value.backward()
        return value

    optimizer.step(loss)
    numbers = {name: value.item() for name, value in values.items()}
    if not all(map(math.isfinite, (scale.item(), *numbers.values()))):
        return None
    temperature = math.exp(min(max(scale.item(), math.log(LOWEST)), math.log(HIGHEST)))
    found = ModeCalibration(temperature, **numbers)
    return found if lists.nll(found) <= lists.nll(start) else None
