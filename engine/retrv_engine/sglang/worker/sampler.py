"""Sampling in the server, by the rules of :func:`retrv_engine.sampler.sample`.

SGLang's own sampler leaves the nucleus out of its log-probabilities, takes seeds in its
deterministic mode only, and does not report the likeliest token before bans.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler as Base
from sglang.srt.layers.sampler import multinomial_with_seed
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from torch import Tensor

from retrv_engine.sglang.wire_format import LIKELIEST


class Sampler(Base):
    """Samples greedily, or with a seed within a nucleus.

    It supports no ``min_p``, and no ``top_k`` but 1. An answer's ``meta_info`` names, for each
    token, the likeliest one before bans.
    """

    def forward(
        self,
        logits_output: Any,
        sampling_info: SamplingBatchInfo,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: Tensor,
    ) -> Tensor:
        """Tokens ``[b]`` from logits ``[b, vocabulary]``, to which bans are added already."""
        logits = self._preprocess_logits(logits_output.next_token_logits, sampling_info).float()
        bias = sampling_info.logit_bias
        likeliest = (logits if bias is None else logits - bias).argmax(-1)
        tokens = logits.argmax(-1)
        logprobs = (logits / sampling_info.temperatures).log_softmax(-1)
        if not sampling_info.is_all_greedy:
            sampled = sampling_info.top_ks > 1
            if sampling_info.need_top_p_sampling:
                logprobs = apply_top_p(logprobs, sampling_info.top_ps)
            drawn = draw(logprobs, sampling_info.sampling_seed, positions)
            tokens = torch.where(sampled, drawn, tokens)
        if return_logprob:
            self.output_logprob_processor.compute_logprobs(
                logprobs, top_logprobs_nums, token_ids_logprobs, tokens
            ).write_output_to(logits_output)
            values = logits_output.next_token_token_ids_logprobs_val
            # Where one request asks for labels and another does not, SGLang 0.5.20 puts an empty
            # list here, which ends its scheduler.
            logits_output.next_token_token_ids_logprobs_val = values and [
                torch.empty(0) if isinstance(one, list) else one for one in values
            ]
        self._sync_token_ids_across_tp(tokens, sampling_info)
        logits_output.customized_info = {LIKELIEST: _LazyList(likeliest)}
        return tokens


class _LazyList:
    """Numbers that are copied from the device when the first one is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._numbers: list[int] | None = None

    def __getitem__(self, index: int) -> int:
        if self._numbers is None:
            self._numbers = self._tensor.tolist()
        return self._numbers[index]


def apply_top_p(logprobs: Tensor, top_ps: Tensor) -> Tensor:
    """Limits ``logprobs [b, vocabulary]`` to the smallest sets with a mass of ``top_ps [b]``."""
    ordered, order = logprobs.sort(-1, descending=True)
    chances = ordered.exp()
    beyond = chances.cumsum(-1) - chances >= top_ps[:, None]
    outside = torch.zeros_like(beyond).scatter(-1, order, beyond)
    inside = logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
    return torch.where((top_ps < 1)[:, None], inside, logprobs)


def draw(logprobs: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Samples a token from each row of log-probabilities, by its seed (32 bits) and position."""
    if logprobs.is_cuda:
        return multinomial_with_seed(logprobs, seeds, positions).view(-1)
    tokens = []
    for row, seed, position in zip(logprobs, seeds.tolist(), positions.tolist(), strict=True):
        generator = torch.Generator().manual_seed((seed << 32) + position)
        tokens.append(torch.multinomial(row.exp(), 1, generator=generator))
    return torch.cat(tokens)


def pass_seeds() -> None:
    """Passes the requests' seeds to the sampler, through a hook of SGLang's."""

    def keep(info: SamplingBatchInfo, batch: Any, vocabulary: int) -> None:
        # A larger seed would raise in ``draw``, which ends the scheduler and all requests.
        seeds = [(request.sampling_params.sampling_seed or 0) % 2**32 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds).to(info.device, non_blocking=True)

    SamplingBatchInfo.adjusted_from_schedule_batch = keep
