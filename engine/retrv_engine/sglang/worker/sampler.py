"""Sampling in the server, by the rules of :func:`retrv_engine.sampler.choose`.

SGLang's own has a nucleus that its log-probabilities know nothing of, seeds in its deterministic
mode only, and does not say what the model would have liked best.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler as Base
from sglang.srt.layers.sampler import multinomial_with_seed
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from torch import Tensor

WISH = "wish"


class Sampler(Base):
    """Greedy, or seeded within a nucleus; ``top_k`` other than 1 and ``min_p`` are not known.

    A response's ``meta_info`` says for each token which one was the likeliest before any ban.
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
        """Tokens ``[b]``, of logits ``[b, vocabulary]`` from which bans are taken off already."""
        logits = self._preprocess_logits(logits_output.next_token_logits, sampling_info).float()
        bias = sampling_info.logit_bias
        wish = (logits if bias is None else logits - bias).argmax(-1)
        tokens = logits.argmax(-1)
        logprobs = (logits / sampling_info.temperatures).log_softmax(-1)
        if not sampling_info.is_all_greedy:
            sampled = sampling_info.top_ks > 1
            if sampling_info.need_top_p_sampling:
                logprobs = nucleus(logprobs, sampling_info.top_ps)
            drawn = draw(logprobs, sampling_info.sampling_seed, positions)
            tokens = torch.where(sampled, drawn, tokens)
        if return_logprob:
            self.output_logprob_processor.compute_logprobs(
                logprobs, top_logprobs_nums, token_ids_logprobs, tokens
            ).write_output_to(logits_output)
            values = logits_output.next_token_token_ids_logprobs_val
            # SGLang 0.5.20 dies of what it puts where a request beside another asks for none.
            logits_output.next_token_token_ids_logprobs_val = values and [
                torch.empty(0) if isinstance(one, list) else one for one in values
            ]
        self._sync_token_ids_across_tp(tokens, sampling_info)
        logits_output.customized_info = {WISH: _Later(wish)}
        return tokens


class _Later:
    """Numbers that are fetched from the device when the first is asked for."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._numbers: list[int] | None = None

    def __getitem__(self, index: int) -> int:
        if self._numbers is None:
            self._numbers = self._tensor.tolist()
        return self._numbers[index]


def nucleus(logprobs: Tensor, top_ps: Tensor) -> Tensor:
    """``logprobs [b, vocabulary]`` within the smallest sets whose mass reaches ``top_ps [b]``."""
    ordered, order = logprobs.sort(-1, descending=True)
    chances = ordered.exp()
    beyond = chances.cumsum(-1) - chances >= top_ps[:, None]
    outside = torch.zeros_like(beyond).scatter(-1, order, beyond)
    inside = logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)
    return torch.where((top_ps < 1)[:, None], inside, logprobs)


def draw(logprobs: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """A token for each row, by its seed and where it stands."""
    if logprobs.is_cuda:
        return multinomial_with_seed(logprobs, seeds, positions).view(-1)
    tokens = []
    for row, seed, position in zip(logprobs, seeds.tolist(), positions.tolist(), strict=True):
        generator = torch.Generator().manual_seed((seed << 32) + position)
        tokens.append(torch.multinomial(row.exp(), 1, generator=generator))
    return torch.cat(tokens)


def use_seeds() -> None:
    """Lets seeds reach the sampler, in a place that SGLang leaves for such things."""

    def keep(info: SamplingBatchInfo, batch: Any, vocabulary: int) -> None:
        seeds = [request.sampling_params.sampling_seed or 0 for request in batch.reqs]
        info.sampling_seed = torch.tensor(seeds).to(info.device, non_blocking=True)

    SamplingBatchInfo.adjusted_from_schedule_batch = keep
