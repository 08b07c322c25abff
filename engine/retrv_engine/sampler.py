"""Choosing next tokens, for all rows of a step at once and where their logits are.

A row is sampled by inverse distribution function from one number of its request's own random
stream. So a sampled request follows its seed, whatever runs beside it and on every device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

COLDEST = 1e-5
"""Temperatures below are greedy: dividing by them overflows."""


class Permitted(NamedTuple):
    """Which tokens may be taken.

    Attributes:
        tokens: the only ones, or with ``banned`` all but these.
    """

    tokens: tuple[int, ...] = ()
    banned: bool = True


ALL = Permitted()


class Choice(NamedTuple):
    """How a token is taken from a row of logits.

    Attributes:
        temperature, top_p: as of :class:`retrv_engine.request.Sampling`.
        uniform: a random number in [0, 1), which decides.
        target: the token to take whatever its logit is, or -1.
        labels: tokens whose logits are asked for as well.
    """

    permitted: Permitted = ALL
    temperature: float = 0.0
    top_p: float = 1.0
    uniform: float = 0.0
    target: int = -1
    labels: tuple[int, ...] = ()


class Picked(NamedTuple):
    """What came of a row.

    Attributes:
        logprob: of the token under the :func:`distribution` it was taken from.
        likeliest: the token that would be best if all were permitted.
        labels: logits of the labels that were asked for, float32 ``[k]`` on the CPU, or None.
    """

    token: int
    logprob: float
    likeliest: int
    labels: Tensor | None = None


class Masks:
    """Which tokens may not be taken, as rows of one table on the device; row 0 forbids none.

    Args:
        capacity: rows at most; the least recently used are replaced. No step may need more.
    """

    def __init__(self, capacity: int, vocabulary: int, device: torch.device | str) -> None:
        self.table = torch.zeros(capacity, vocabulary, dtype=torch.bool, device=device)
        self._rows: OrderedDict[Permitted, int] = OrderedDict()

    def row(self, permitted: Permitted) -> int:
        """The row of a choice; it is written if there is none yet."""
        if permitted == ALL:
            return 0
        if (row := self._rows.get(permitted)) is None:
            row = len(self._rows) + 1
            if row == len(self.table):
                _, row = self._rows.popitem(last=False)
            mask = torch.full(self.table.shape[1:], not permitted.banned, dtype=torch.bool)
            mask[list(permitted.tokens)] = permitted.banned
            self.table[row].copy_(mask)
            self._rows[permitted] = row
        self._rows.move_to_end(permitted)
        return row


class Level(NamedTuple):
    """What sampling a step needs: whether any row is drawn, from a nucleus, or given."""

    drawn: bool
    nucleus: bool
    given: bool = False

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> Level:
        """What these need."""
        drawn = [choice for choice in choices if choice.temperature >= COLDEST]
        nucleus = any(choice.top_p < 1 for choice in drawn)
        return cls(bool(drawn), nucleus, any(choice.target >= 0 for choice in choices))


FIRST = 128, 4096
"""Tokens among which a nucleus is looked for first, on a CPU."""
COLUMNS = 5
"""Numbers that :func:`sample` needs of a row, as int64."""


def pick(logits: Tensor, choices: Sequence[Choice], masks: Masks | None = None) -> list[Picked]:
    """Takes a token from each row of ``logits [m, vocabulary]``.

    Args:
        masks: of the logits' device, kept between steps; made for this call if None.
    """
    if masks is None:
        masks = Masks(len(choices) + 1, logits.shape[-1], logits.device)
    logits = logits.float()
    columns = np.empty((COLUMNS, len(choices)), np.int64)
    fill_columns(columns, choices, masks)
    found = sample(
        logits, masks.table, torch.from_numpy(columns).to(logits.device), Level.of(choices)
    )
    return picked(found.tolist(), choices, logits)


def fill_columns(columns: np.ndarray, choices: Sequence[Choice], masks: Masks) -> None:
    """Writes what :func:`sample` needs of each row into ``[5, m]``.

    Mask and target, and as the bits of float64 temperature, top_p and uniform number.
    """
    columns[0] = [masks.row(choice.permitted) for choice in choices]
    columns[1] = [choice.target for choice in choices]
    columns[2:].view(np.float64)[:] = [
        [choice.temperature for choice in choices],
        [choice.top_p for choice in choices],
        [choice.uniform for choice in choices],
    ]


def picked(
    found: Sequence[Sequence[float]], choices: Sequence[Choice], logits: Tensor
) -> list[Picked]:
    """The result of :func:`sample`, and the labels' logits, which are read where they are due."""
    rows = [(i, choice.labels) for i, choice in enumerate(choices) if choice.labels]
    labels = {}
    if rows:
        places = [i * logits.shape[-1] + label for i, own in rows for label in own]
        index = torch.tensor(places, device=logits.device)
        values = logits.flatten()[index].cpu().split([len(own) for _, own in rows])
        labels = {i: part for (i, _), part in zip(rows, values, strict=True)}
    return [
        Picked(int(token), logprob, int(likeliest), labels.get(i))
        for i, (token, logprob, likeliest) in enumerate(zip(*found, strict=True))
    ]


def sample(logits: Tensor, masks: Tensor, columns: Tensor, level: Level) -> Tensor:
    """Takes a token from each row, without waiting for the device.

    Args:
        logits: float32 ``[m, vocabulary]``.
        masks: tokens that may not be taken, ``[rows, vocabulary]``.
        columns: as :func:`fill_columns` writes them, int64 ``[5, m]``.
        level: what the rows need; a greedy row comes out the same whatever it is.
    Returns:
        float64 ``[3, m]``: tokens, their log-probabilities, and the likeliest tokens of all.
    """
    mask, target = columns[:2]
    temperature, top_p, uniform = columns[2:].view(torch.float64)
    scores = logits.masked_fill(masks[mask], -torch.inf)
    token = scores.argmax(-1)  # of logits: their logarithms round more of them to the same
    if level.drawn:
        logprobs = distribution(scores, temperature, top_p, level.nucleus)
        mass = logprobs.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)[:, 0]
        token = torch.where(temperature < COLDEST, token, drawn.clamp(max=logits.shape[-1] - 1))
    else:
        logprobs = scores.log_softmax(-1)
    if level.given:
        token = torch.where(target < 0, token, target)
    chosen = logprobs.gather(1, token[:, None])[:, 0]
    return torch.stack([token.double(), chosen.double(), logits.argmax(-1).double()])


def distribution(scores: Tensor, temperature: Tensor, top_p: Tensor, nucleus: bool) -> Tensor:
    """Log-probabilities ``[m, vocabulary]`` after temperature and nucleus.

    Args:
        scores: float32 logits, minus infinity where a token may not be taken.
        temperature: ``[m]``; rows below ``COLDEST`` are greedy: the constraint alone counts then.
        top_p: ``[m]``.
        nucleus: whether any row is cut.
    """
    cold = temperature < COLDEST
    scale = torch.where(cold, 1.0, temperature).float()
    logprobs = (scores / scale[:, None]).log_softmax(-1)
    if not nucleus:
        return logprobs
    # The least likely that is kept; what is as likely stays, so that no order of equals matters.
    ordered = _likeliest(logprobs, top_p)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    count = (before < top_p[:, None]).sum(-1, keepdim=True)
    least = ordered.gather(1, count - 1)
    cut = logprobs.masked_fill(logprobs < least, -torch.inf).log_softmax(-1)
    return torch.where((cold | (top_p >= 1))[:, None], logprobs, cut)


def _likeliest(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Log-probabilities in falling order, at least as many as a nucleus needs."""
    if logprobs.device.type == "cpu":  # where sorting all takes longer, and looking costs nothing
        for first in FIRST:
            ordered = logprobs.topk(min(first, logprobs.shape[-1])).values
            if bool((ordered.exp().sum(-1) >= top_p).all()):
                return ordered
    return logprobs.sort(descending=True).values
