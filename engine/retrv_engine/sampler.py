"""Choosing the next token: greedy or nucleus sampling, with or without a constraint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLDEST = 1e-5
"""Temperatures below are greedy: dividing by them overflows."""


def choose(
    logits: Tensor,
    allowed: Sequence[int] | None,
    banned: Sequence[int],
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> tuple[int, float]:
    """Takes a token from ``logits [vocabulary]``.

    Returns:
        The token and its log-probability under the :func:`distribution` it was taken from.
    """
    logprobs = distribution(logits, allowed, banned, temperature, top_p)
    if temperature < COLDEST:  # of logits: their logarithms round more of them to the same
        token = int(_permitted(logits, allowed, banned).argmax())
    else:
        token = int(torch.multinomial(logprobs.exp().cpu(), 1, generator=generator))
    return token, float(logprobs[token])


def distribution(
    logits: Tensor,
    allowed: Sequence[int] | None,
    banned: Sequence[int],
    temperature: float,
    top_p: float,
) -> Tensor:
    """Log-probabilities ``[vocabulary]`` after constraint, temperature and nucleus.

    Args:
        allowed: the only tokens that may be taken, or None for all.
        banned: tokens that may not be taken.
        temperature: greedy below ``COLDEST``: the constraint alone counts then.
    """
    scores = _permitted(logits, allowed, banned)
    if temperature < COLDEST:
        return torch.log_softmax(scores, -1)
    logprobs = torch.log_softmax(scores / temperature, -1)
    if top_p < 1:
        ordered, order = logprobs.sort(descending=True)
        # Keep the smallest set whose mass reaches top_p: drop what starts beyond it.
        beyond = ordered.exp().cumsum(-1) - ordered.exp() >= top_p
        logprobs = logprobs.index_fill(0, order[beyond], -torch.inf).log_softmax(-1)
    return logprobs


def _permitted(logits: Tensor, allowed: Sequence[int] | None, banned: Sequence[int]) -> Tensor:
    """Logits with those of other tokens at minus infinity."""
    scores = logits.float()
    if allowed is not None:
        index = torch.as_tensor(allowed, device=scores.device)
        scores = torch.full_like(scores, -torch.inf).index_copy(0, index, scores[index])
    if banned:
        scores = scores.index_fill(0, torch.as_tensor(banned, device=scores.device), -torch.inf)
    return scores
