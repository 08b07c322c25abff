"""A request as calls of the server: what each call asks for, and what its answer means.

The server can ban tokens, stop at given tokens, and return log-probabilities of labels. So one call
writes a chain of thought up to the next ``<inspection-index-start>`` or ``</think>``, and one call
of a single token chooses a label. Each call sends the whole prompt so far: the server finds its
rows in the cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from retrv_engine.generation import Generation
from retrv_engine.request import Sampling
from retrv_engine.sampler import ALL, COLDEST, Picked, check_numbers, pick
from retrv_engine.sglang.wire_format import LIKELIEST, WirePrompt

BAN = -1000.0
"""Added to the logits of banned tokens: large enough to ban, and small enough that the server's
sampler can subtract it again to find the likeliest token before bans."""
ONE_TOKEN = {"temperature": 0.0, "max_new_tokens": 1}
HOW_TO_SERVE = "start the server with python -m retrv_engine.sglang.worker.server"


@dataclass(frozen=True)
class Chunk:
    """One part of a streamed answer: what the server has written since the last chunk.

    Attributes:
        tokens, logprobs: written tokens and their log-probabilities.
        likeliest: likeliest token before bans, for each written token.
        labels: log-probabilities of the requested labels, in the place of the last token.
        prompt_logprobs, prompt_likeliest: log-probability of each of the last tokens of the prompt,
            as many as requested, and the likeliest token in its place.
        prompt_rows, cached_rows: rows of the prompt, and how many of them were found in the cache.
        version: version of the server's weights.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    likeliest: Sequence[int]
    labels: Mapping[int, float]
    prompt_logprobs: Sequence[float]
    prompt_likeliest: Sequence[int]
    prompt_rows: int
    cached_rows: int
    version: str

    @classmethod
    def from_answer(cls, values: Mapping[str, Any]) -> Chunk:
        """Reads a part of the server's answer.

        Raises:
            ValueError: the server aborted the request; the message is the server's.
        """
        meta = values["meta_info"]
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise ValueError(
                reason.get("message") or "the server aborted the request: its log may say why"
            )
        labels = meta.get("output_token_ids_logprobs") or [()]
        # The first entry of each list is empty: nothing precedes it.
        prompt_logprobs = meta.get("input_token_logprobs") or [()]
        prompt_likeliest = meta.get("input_top_logprobs") or [()]
        return cls(
            tokens=values["output_ids"],
            logprobs=_numbers(meta.get("output_token_logprobs") or ()),
            likeliest=meta.get(LIKELIEST) or (),
            labels=dict(
                zip((token for _, token, _ in labels[-1]), _numbers(labels[-1]), strict=True)
            ),
            prompt_logprobs=_numbers(prompt_logprobs[1:]),
            prompt_likeliest=[top[0][1] for top in prompt_likeliest[1:]],
            prompt_rows=meta["prompt_tokens"],
            cached_rows=meta["cached_tokens"],
            version=meta["weight_version"],
        )


def reasoning_call(
    generation: Generation, prompt: WirePrompt, interval: int, max_rows: int
) -> dict[str, Any]:
    """Asks for a chain of thought, up to a label or its end.

    Args:
        interval: number of tokens of a chunk.
        max_rows: number of rows that the server takes. It refuses a call that could write more,
            even if it would not; so it is asked for one row more at most, and the next call, if
            there is one, is too large.
    """
    vocabulary = generation.vocabulary
    sampling = {
        **_sampling(generation.request.sampling),
        "max_new_tokens": min(generation.room, max_rows + 1 - len(prompt.ids)),
        "stop_token_ids": [vocabulary.inspect_start, vocabulary.think_end],
        "logit_bias": {str(token): BAN for token in generation.banned},
        "stream_interval": interval,
    }
    return _call(prompt, sampling)


def take_reasoning(generation: Generation, chunk: Chunk) -> None:
    """Appends the written tokens to a generation.

    Raises:
        RuntimeError: the server does not sample by our rules.
        FloatingPointError: the model's logits are NaN.
    """
    if len(chunk.likeliest) != len(chunk.tokens):
        raise RuntimeError(f"the server does not use our sampler: {HOW_TO_SERVE}")
    for token, logprob, likeliest in zip(
        chunk.tokens, chunk.logprobs, chunk.likeliest, strict=True
    ):
        if generation.choices is not None or token in generation.banned:
            raise RuntimeError(f"the server wrote token {token}, which is banned: {HOW_TO_SERVE}")
        check_numbers([Picked(token, logprob, likeliest)])
        generation.think(token, logprob, likeliest)


def label_call(generation: Generation, prompt: WirePrompt) -> dict[str, Any]:
    """Asks for the likeliest token and the log-probabilities of the permitted labels.

    At the answer also for that of the label for no candidate, if the request has one.

    If two rows are due, also for the likeliest token in the place of the last one.
    """
    labels = generation.request.scored if generation.answering else generation.choices
    call = _call(prompt, ONE_TOKEN) | {"token_ids_logprob": labels}
    if generation.due > 1:
        call |= {"logprob_start_len": len(prompt.ids) - generation.due, "top_logprobs_num": 1}
    return call


def take_label(generation: Generation, chunk: Chunk) -> None:
    """Chooses a label by its log-probability, and appends it to a generation."""
    choice = generation.choice(generation.due - 1)
    labels = sorted(choice.permitted.tokens)  # in the vocabulary's order, as other engines sample
    logits = torch.tensor([[chunk.labels[label] for label in labels]])
    (chosen,) = pick(logits, [choice._replace(permitted=ALL, labels=())])
    scored = torch.tensor([chunk.labels[label] for label in choice.labels])
    picks = [Picked(labels[chosen.token], chosen.logprob, chunk.tokens[-1], scored)]
    if generation.due > 1:
        likeliest = chunk.prompt_likeliest[-1]
        picks.insert(0, Picked(likeliest, 0.0, likeliest))
    generation.advance(picks)


def score_call(prompt: WirePrompt, tokens: int) -> dict[str, Any]:
    """Asks for the log-probabilities of the prompt's last tokens."""
    return _call(prompt, ONE_TOKEN) | {"logprob_start_len": len(prompt.ids) - tokens - 1}


def _numbers(entries: Sequence[Sequence[Any]]) -> list[float]:
    """The log-probabilities of the server's triples; JSON has null for NaN."""
    return [math.nan if logprob is None else logprob for logprob, _, _ in entries]


def _call(prompt: WirePrompt, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """A call as JSON values, but for its items, which are JSON already."""
    return {
        "input_ids": prompt.ids,
        "image_data": prompt.encoded,
        "sampling_params": sampling,
        "return_logprob": True,
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    greedy = sampling.temperature < COLDEST
    return {
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        # The server takes 32 bits; drawn as in the other engines, for which any number is a seed.
        "sampling_seed": random.Random(sampling.seed).getrandbits(32),
    }
