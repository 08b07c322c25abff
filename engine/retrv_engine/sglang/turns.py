"""A request in turns: what a server is asked next, and what its answers mean.

A server can be told which tokens it may not write and where to stop, and it can be asked for the
log-probabilities of labels. So a chain of thought is a turn as far as the next
``<inspection-index-start>`` or ``</think>``, a label is a turn of one token, and all that was
written so far is sent again with each: the server finds its rows in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retrv_engine.generation import Generation
from retrv_engine.request import Sampling
from retrv_engine.sampler import COLDEST, pick
from retrv_engine.sglang.wire import Prompt

BAN = -1000.0
"""Added to the logits of tokens that may not be written: much, and little enough to be taken off
again where the likeliest token of all is looked for."""


@dataclass(frozen=True)
class Part:
    """What a server has said since the part before.

    Attributes:
        tokens, logprobs, wishes: of what it wrote; a wish is the likeliest token before any ban.
        labels: log-probabilities that were asked for, where the last token stands.
        forced: of the prompt's last tokens, as far as asked for; ``likeliest`` in their place.
        cached, prompt: rows of the prompt that were found, and all.
        version: of the weights.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    wishes: Sequence[int]
    labels: Mapping[int, float]
    forced: Sequence[float]
    likeliest: Sequence[int]
    cached: int
    prompt: int
    version: str

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Part:
        """Reads a server's answer; ValueError with its words where it gave the request up."""
        meta = values["meta_info"]
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise ValueError(reason.get("message") or "the server gave the request up")
        labels = meta.get("output_token_ids_logprobs") or [()]
        # The first has nothing before it that was looked at.
        forced = meta.get("input_token_logprobs") or [()]
        likeliest = meta.get("input_top_logprobs") or [()]
        return cls(
            tokens=values["output_ids"],
            logprobs=[logprob for logprob, _, _ in meta.get("output_token_logprobs") or ()],
            wishes=meta.get("wish") or (),
            labels={token: logprob for logprob, token, _ in labels[-1]},
            forced=[logprob for logprob, _, _ in forced[1:]],
            likeliest=[top[0][1] for top in likeliest[1:]],
            cached=meta["cached_tokens"],
            prompt=meta["prompt_tokens"],
            version=meta["weight_version"],
        )


def ask_reasoning(generation: Generation, prompt: Prompt, interval: int) -> dict[str, Any]:
    """A chain of thought, as far as it goes without anything of ours."""
    names = generation.vocabulary
    sampling = {
        **_sampling(generation.request.sampling),
        "max_new_tokens": generation.room,
        "stop_token_ids": [names.inspect_start, names.think_end],
        "logit_bias": {str(token): BAN for token in generation.banned},
        "stream_interval": interval,
    }
    return _asked(prompt, sampling)


def take_reasoning(generation: Generation, part: Part) -> None:
    """Lets a sequence take what was written.

    Raises:
        RuntimeError: the server wrote what it was told not to: it is not one of ours.
    """
    if len(part.wishes) != len(part.tokens):
        raise RuntimeError(
            "the server has another sampler: start retrv_engine.sglang.worker.server"
        )
    for token, logprob, wish in zip(part.tokens, part.logprobs, part.wishes, strict=True):
        if generation.choices is not None or token in generation.banned:
            raise RuntimeError(f"the server wrote {token}, which it was told not to")
        generation.think(token, logprob, wish)


def ask_label(generation: Generation, prompt: Prompt) -> dict[str, Any]:
    """Log-probabilities of the labels that may be written; if due, what was likeliest before."""
    asked = _asked(prompt, _ONE) | {"token_ids_logprob": generation.choices}
    if generation.due > 1:
        asked |= {"logprob_start_len": len(prompt.ids) - generation.due, "top_logprobs_num": 1}
    return asked


def take_label(generation: Generation, part: Part, vocabulary: int) -> None:
    """Lets a sequence take a label, from logits as far as the server told them."""
    logits = torch.full((generation.due, vocabulary), -torch.inf)
    logits[-1, part.tokens[-1]] = part.logprobs[-1]
    logits[-1, list(part.labels)] = torch.tensor([*part.labels.values()])
    if generation.due > 1:
        logits[0, part.likeliest[-1]] = 0.0
    generation.advance(
        pick(logits, [generation.choice(number) for number in range(generation.due)])
    )


def ask_scores(prompt: Prompt, tokens: int) -> dict[str, Any]:
    """Log-probabilities of the prompt's last tokens."""
    return _asked(prompt, _ONE) | {"logprob_start_len": len(prompt.ids) - tokens - 1}


_ONE = {"temperature": 0.0, "max_new_tokens": 1}


def _asked(prompt: Prompt, sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_ids": prompt.ids,
        "image_data": prompt.items or None,
        "sampling_params": sampling,
        "return_logprob": True,
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    greedy = sampling.temperature < COLDEST
    return {
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "sampling_seed": sampling.seed,
    }
