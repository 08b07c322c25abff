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

    Args:
        allowed: the only tokens that may be taken, or None for all.
        banned: tokens that may not be taken.
        temperature: greedy below ``COLDEST``.
    Returns:
        The token and its log-probability under the distribution it was taken from (after
        constraint, temperature and nucleus; for greedy, after the constraint).
    """
    scores = logits.float()
    if allowed is not None:
        index = torch.as_tensor(allowed, device=scores.device)
        scores = torch.full_like(scores, -torch.inf).index_copy(0, index, scores[index])
    if banned:
        scores = scores.index_fill(0, torch.as_tensor(banned, device=scores.device), -torch.inf)
    if temperature < COLDEST:
        token = int(scores.argmax())
        return token, float(torch.log_softmax(scores, -1)[token])
    logprobs = torch.log_softmax(scores / temperature, -1)
    if top_p < 1:
        ordered, order = logprobs.sort(descending=True)
        # Keep the smallest set whose mass reaches top_p: drop what starts beyond it.
        beyond = ordered.exp().cumsum(-1) - ordered.exp() >= top_p
        logprobs = logprobs.index_fill(0, order[beyond], -torch.inf).log_softmax(-1)
    token = int(torch.multinomial(logprobs.exp().cpu(), 1, generator=generator))
    return token, float(logprobs[token])
