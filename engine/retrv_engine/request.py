"""What an engine takes and gives back, and the little it needs to know of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class LanguageModel(Protocol):
    """A decoder that takes embeddings: what engines need of a model."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids, ``[..., d]``."""
        ...

    def decode(
        self, embeds: Tensor, positions: Tensor, attention_mask: Tensor, cache: Any
    ) -> Tensor:
        """Logits ``[b, vocabulary]`` of the last row, given new rows.

        Args:
            embeds: ``[b, l, d]``.
            positions: M-RoPE positions, ``[3, b, l]``.
            attention_mask: which columns of the cache and the new rows exist, ``[b, past + l]``.
            cache: a transformers ``Cache``, extended in place.
        """
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the tokens that steer generation."""

    think_start: int
    think_end: int
    answer_start: int
    answer_end: int
    inspect_start: int
    inspect_end: int
    end: int


@dataclass(frozen=True)
class RowSpan:
    """Rows for the language model.

    Attributes:
        embeds: ``[l, d]``.
        positions: ``[3, l]``; for a span that is spliced in, relative to where it starts.
        advance: how far the position moves on behind the span.
    """

    embeds: Tensor
    positions: Tensor
    advance: int

    def __len__(self) -> int:
        return len(self.embeds)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and how long the model may think.

    Args:
        temperature: 0 is greedy, and so is anything below 1e-5.
        top_p: nucleus of the distribution that is sampled from.
        max_reasoning_tokens: after so many, ``</think>`` is forced.
        max_inspections: candidates that may be looked at in full.
        seed: of this request's own random stream.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_reasoning_tokens: int = 192
    max_inspections: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError("temperature must be finite and ≥ 0, and top_p in (0, 1]")
        if self.max_reasoning_tokens < 1 or self.max_inspections < 0:
            raise ValueError("max_reasoning_tokens must be ≥ 1 and max_inspections ≥ 0")


@dataclass(frozen=True)
class Request:
    """One prompt over labelled candidates.

    Args:
        prompt: all rows of the prompt; positions start at 0.
        labels: label token of each candidate, in order.
        inspections: rows of each candidate at full length, spliced in when it is inspected.
        reason: think first, or answer at once (fast mode).
        banned: tokens that have no place in this request's reasoning: what prompts are built of,
            labels that stand for none of its candidates.
    """

    prompt: RowSpan
    labels: Sequence[int]
    inspections: Sequence[RowSpan] = ()
    reason: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    banned: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a request needs at least one candidate")
        if self.reason and len(self.inspections) != len(self.labels):
            raise ValueError("a reasoning request needs the full rows of every candidate")


@dataclass(frozen=True)
class Output:
    """What came of a request.

    Attributes:
        tokens: every token written, forced ones too; spliced rows are not in it.
        answer: number of the chosen candidate.
        label_logits: logits of the labels where the answer is due, ``[k]``.
        inspected: candidates looked at, in order.
        inspected_rows: rows spliced in.
        well_formed: the model closed its reasoning itself, and wherever it had a choice, its
            likeliest token was a permitted one. Closing tags behind a label are always forced.
        logprobs: log-probability of each token under the distribution it was taken from; 0.0
            where it was forced.
    """

    tokens: Sequence[int]
    answer: int
    label_logits: Tensor
    inspected: Sequence[int]
    inspected_rows: int
    well_formed: bool
    logprobs: Sequence[float]
    timings: Mapping[str, float] = field(default_factory=dict)


def generator_for(sampling: Sampling) -> torch.Generator:
    """The random stream of a request."""
    return torch.Generator().manual_seed(sampling.seed)
