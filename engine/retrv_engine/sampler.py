"""Takes the next tokens of all rows of a step at once, on the device that holds their logits.

A row is sampled by its inverse distribution function from one number of its request's own random
stream. So its token depends on its logits and its seed, and not on the rows beside it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

COLDEST = 1e-5
"""Lowest temperature that is sampled; lower ones are greedy, since dividing by them overflows."""


class Permitted(NamedTuple):
    """Which tokens may be taken.

    Attributes:
        tokens: tokens of the set.
        banned: whether all tokens but these are permitted; else only these are.
    """

    tokens: tuple[int, ...] = ()
    banned: bool = True


ALL = Permitted()


class Choice(NamedTuple):
    """How a token is taken from a row of logits.

    Attributes:
        permitted: tokens that may be taken.
        temperature, top_p: see :class:`retrv_engine.request.Sampling`.
        uniform: random number in [0, 1) that decides.
        target: token that is taken whatever its logit is, or -1.
        labels: tokens whose logits are returned as well.
    """

    permitted: Permitted = ALL
    temperature: float = 0.0
    top_p: float = 1.0
    uniform: float = 0.0
    target: int = -1
    labels: tuple[int, ...] = ()


class Picked(NamedTuple):
    """The token taken from a row.

    Attributes:
        logprob: log-probability of the token under the :func:`distribution` it was taken from.
        likeliest: token that would be the best if all were permitted.
        labels: logits of ``Choice.labels``, float32 ``[k]`` on the CPU, or None.
    """

    token: int
    logprob: float
    likeliest: int
    labels: Tensor | None = None


def check_numbers(picks: Sequence[Picked]) -> None:
    """Raises FloatingPointError if logits were NaN: float16 overflows in some models."""
    if any(math.isnan(pick.logprob) for pick in picks):
        raise FloatingPointError(
            "the model's logits are NaN: load the model in bfloat16 or float32, or other weights"
        )


class Masks:
    """Masks that are added to logits: minus infinity for tokens that may not be taken.

    They are rows of one table on the device. Row 0 forbids nothing.

    Args:
        capacity: number of rows; the least recently used are replaced. No step may need more.
    """

    def __init__(self, capacity: int, vocabulary: int, device: torch.device | str) -> None:
        self.table = torch.zeros(capacity, vocabulary, dtype=torch.float32, device=device)
        self._rows: OrderedDict[Permitted, int] = OrderedDict()

    def row(self, permitted: Permitted) -> int:
        """Number of the row for a set of tokens; the row is written if there is none yet."""
        if permitted == ALL:
            return 0
        if (row := self._rows.get(permitted)) is None:
            row = len(self._rows) + 1
            if row == len(self.table):
                _, row = self._rows.popitem(last=False)
            # Few numbers are copied to the device, from pinned memory, so nothing waits for them.
            pinned = self.table.is_cuda
            tokens = torch.tensor(permitted.tokens, dtype=torch.long, pin_memory=pinned)
            tokens = tokens.to(self.table.device, non_blocking=True)
            mask = self.table[row].fill_(0 if permitted.banned else -torch.inf)
            mask.index_fill_(0, tokens, -torch.inf if permitted.banned else 0)
            self._rows[permitted] = row
        self._rows.move_to_end(permitted)
        return row


class Level(NamedTuple):
    """What a step needs of the sampler: whether any row is drawn, from a nucleus, or given."""

    drawn: bool
    nucleus: bool
    given: bool = False

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> Level:
        """The level that these choices need."""
        drawn = [choice for choice in choices if choice.temperature >= COLDEST]
        nucleus = any(choice.top_p < 1 for choice in drawn)
        return cls(bool(drawn), nucleus, any(choice.target >= 0 for choice in choices))


FIRST = 128, 4096
"""Numbers of likeliest tokens that are searched for the nucleus first, on a CPU."""
COLUMNS = 5
"""Number of values that :func:`sample` needs for a row, as int64."""


def pick(logits: Tensor, choices: Sequence[Choice], masks: Masks | None = None) -> list[Picked]:
    """Takes a token from each row of ``logits [m, vocabulary]``.

    Args:
        masks: masks on the logits' device, kept between steps; made for this call if None.
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
    """Writes what :func:`sample` needs for each row into ``[5, m]``.

    Mask and target, then temperature, top_p and uniform number as the bits of float64.
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
    """Picks from the result of :func:`sample`, with the labels' logits where they are due."""
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
    """Takes a token from each row; on a GPU without waiting for the device.

    Args:
        logits: logits in float32, ``[m, vocabulary]``.
        masks: table of masks, ``[rows, vocabulary]``.
        columns: values from :func:`fill_columns`, int64 ``[5, m]``.
        level: level that the rows need; the result of a greedy row does not depend on it.
    Returns:
        float64 ``[3, m]``: tokens, their log-probabilities, and the likeliest of all tokens.
    """
    mask, target = columns[:2]
    temperature, top_p, uniform = columns[2:].view(torch.float64)
    here = logits.device.type == "cpu"  # where reading a value costs nothing
    alike = here and bool((mask == mask[0]).all())
    scores = logits + (masks[int(mask[0])] if alike else masks[mask])
    given = target if level.given else None
    numbers = temperature, top_p, uniform
    drawn = temperature >= COLDEST
    if not level.drawn:
        token, chosen = _best(scores, given)
    elif here and bool(drawn.all()):
        token, chosen = _draw(scores, *numbers, given, level.nucleus)
    elif here:  # only the rows that are drawn cost a draw
        rows = drawn.nonzero()[:, 0]
        token, chosen = _best(scores, given)
        own = None if given is None else given[rows]
        own_numbers = temperature[rows], top_p[rows], uniform[rows]
        found = _draw(scores[rows], *own_numbers, own, level.nucleus)
        token, chosen = token.index_copy(0, rows, found[0]), chosen.index_copy(0, rows, found[1])
    else:
        token, chosen = _best(scores, given)
        warm = torch.where(drawn, temperature, 1.0)
        found = _draw(scores, warm, top_p, uniform, given, level.nucleus)
        token = torch.where(drawn, found[0], token)
        chosen = torch.where(drawn, found[1], chosen)
    return torch.stack([token.double(), chosen.double(), _argmax(logits).double()])


def _best(scores: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Greedy tokens ``[m]``, or the given ones, and their log-probabilities."""
    # The argmax is of logits, since log_softmax rounds more of them to equal values.
    return _scored(scores.log_softmax(-1), _argmax(scores), given)


def _argmax(scores: Tensor) -> Tensor:
    """``[m]``; on a CPU by NumPy, in a tenth of PyTorch's time."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def _draw(
    scores: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    uniform: Tensor,
    given: Tensor | None,
    nucleus: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens ``[m]`` by inverse distribution function, or the given ones, and log-probabilities.

    The token is the first at which the cumulative mass exceeds ``uniform`` of all mass.
    """
    logprobs = distribution(scores, temperature, top_p, nucleus)
    mass = logprobs.exp().cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:].contiguous()
    token = torch.searchsorted(mass, uniform[:, None] * total, right=True)
    # Not beyond the last token that has mass: the product may be rounded up to the total.
    token = token.minimum(torch.searchsorted(mass, total))[:, 0]
    token = token.clamp(max=scores.shape[-1] - 1)  # where all are NaN, which the caller checks
    return _scored(logprobs, token, given)


def _scored(logprobs: Tensor, token: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens, or the given ones, and their log-probabilities."""
    if given is not None:
        token = torch.where(given < 0, token, given)
    return token, logprobs.gather(1, token[:, None])[:, 0]


def distribution(
    scores: Tensor,
    temperature: Tensor,
    top_p: Tensor,
    nucleus: bool,
    given: Tensor | None = None,
) -> Tensor:
    """Log-probabilities ``[m, vocabulary]`` after temperature and nucleus; differentiable.

    Args:
        scores: float32 logits, minus infinity where a token may not be taken.
        temperature: temperatures ``[m]``, ``COLDEST`` or more.
        top_p: masses of the nuclei, ``[m]``.
        nucleus: whether any row has a nucleus.
        given: tokens ``[m]`` that stay in their nuclei, even if other weights than those that
            sampled them put them outside.
    """
    logprobs = (scores / temperature.float()[:, None]).log_softmax(-1)
    if not nucleus:
        return logprobs
    if scores.device.type != "cpu":
        return torch.where((top_p >= 1)[:, None], logprobs, _cut(logprobs, top_p, given))
    rows = (top_p < 1).nonzero()[:, 0]
    cut = _cut(logprobs[rows], top_p[rows], None if given is None else given[rows])
    if logprobs.requires_grad:  # log_softmax needs its result for the gradient
        return logprobs.index_copy(0, rows, cut)
    return logprobs.index_copy_(0, rows, cut)


def _cut(logprobs: Tensor, top_p: Tensor, given: Tensor | None = None) -> Tensor:
    """Keeps the smallest set whose mass reaches top_p, and all tokens as likely as its last.

    So the order of equally likely tokens does not matter. Tokens ``given [m]`` are kept as well.
    """
    ordered = _likeliest(logprobs.detach(), top_p)
    mass = ordered.exp().cumsum(-1, dtype=torch.float64)
    count = (mass < top_p[:, None]).sum(-1, keepdim=True)
    least = ordered.gather(1, count.clamp(max=ordered.shape[-1] - 1))
    outside = logprobs < least
    if given is not None:
        outside = outside.scatter(1, given[:, None], False)
    return logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)


def _likeliest(logprobs: Tensor, top_p: Tensor) -> Tensor:
    """Log-probabilities in descending order, at least as many as a nucleus needs."""
    if logprobs.device.type == "cpu":  # where sorting all takes longer
        for first in FIRST:
            ordered = logprobs.topk(min(first, logprobs.shape[-1])).values
            if bool((ordered.exp().sum(-1, dtype=torch.float64) >= top_p).all()):
                return ordered
    return logprobs.sort(descending=True).values
