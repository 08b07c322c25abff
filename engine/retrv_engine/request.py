"""Requests and outputs of an engine."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from retrv_engine.config import check_whole


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the tokens that structure a generation."""

    think_start: int
    think_end: int
    answer_start: int
    answer_end: int
    inspect_start: int
    inspect_end: int
    end: int


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Consecutive rows of a table that enter the language model: a picture, or compressed tokens.

    Args:
        table: rows ``[n, d]``, in the dtype of the embeddings.
        first: index of the first row in the table.
        length: number of rows.
        key: 63-bit hash of the rows' content; equal keys mean equal rows. It must cover the source
            of the rows and the version of the weights that made them.
        width: width of the picture's grid, for Qwen-VL's M-RoPE positions; 0 for text positions.
    """

    table: Tensor
    first: int
    length: int
    key: int
    width: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.first <= len(self.table) - self.length:
            raise ValueError(
                f"rows {self.first} to {self.first + self.length} are not in a table of "
                f"{len(self.table)} rows"
            )
        if self.width and self.length % self.width:
            raise ValueError(f"{self.length} rows do not fill a grid of width {self.width}")
        if not 0 <= self.key < 2**63:
            raise ValueError(f"a key must be in [0, 2**63), not {self.key}")

    @property
    def rows(self) -> Tensor:
        """The rows, ``[length, d]``."""
        return self.table[self.first : self.first + self.length]

    @property
    def advance(self) -> int:
        """Number of positions that the rows take up."""
        return advance_of(self.length, self.width)


Piece: TypeAlias = int | FeatureRows
"""An element of a prompt: a token id, or rows that stand in the place of token embeddings."""


class FeatureSource(Protocol):
    """Source of the full rows of inspected candidates."""

    def load(self, names: Sequence[Hashable]) -> Sequence[Sequence[Piece]]:
        """Returns the pieces to splice in for each named candidate.

        An engine calls this once a step, with the distinct names that its requests inspect, so that
        a source can encode them together.
        """
        ...


Candidate: TypeAlias = tuple[FeatureSource, Hashable]
"""A candidate that a request inspects: a feature source, and the candidate's name there."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and how long the model may reason.

    Args:
        temperature: temperature of the distribution; below 1e-5, the likeliest token is taken.
        top_p: probability mass of the nucleus that tokens are sampled from.
        max_reasoning_tokens: number of tokens after which ``</think>`` is forced.
        max_inspections: number of candidates that may be inspected.
        seed: seed of this request's own random stream.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_reasoning_tokens: int = 192
    max_inspections: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = isinstance(self.temperature, Real) and isinstance(self.top_p, Real)
        if not (numbers and 0 <= self.temperature < math.inf and 0 < self.top_p <= 1):
            raise ValueError("temperature must be finite and ≥ 0, and top_p in (0, 1]")
        check_whole("max_reasoning_tokens", self.max_reasoning_tokens, 1)
        check_whole("max_inspections", self.max_inspections, 0)
        if not isinstance(self.seed, Integral):
            raise ValueError(f"seed must be a whole number, not {self.seed!r}")


@dataclass(frozen=True)
class Request:
    """One prompt over labelled candidates.

    Args:
        prompt: pieces of the prompt; positions start at 0.
        labels: label token of each candidate, in order.
        inspections: name of each candidate in ``source``.
        source: source of the candidates' full rows.
        reason: whether to reason before the answer; False answers at once (fast mode).
        sampling: limits and randomness of the reasoning.
        banned: tokens that the reasoning must not contain: those that prompts are built of, and
            labels of no candidate of this request.
        none_label: token that stands for "no candidate"; it is never written, only its logit is
            read. None for a model that has no such token.
        label_bias: numbers added to the labels' logits at the answer, ``[k]``: what is known of the
            candidates besides what the model has read. Empty for none.
    """

    prompt: Sequence[Piece]
    labels: Sequence[int]
    inspections: Sequence[Hashable] = ()
    source: FeatureSource | None = None
    reason: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    banned: Sequence[int] = ()
    none_label: int | None = None
    label_bias: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a request needs at least one candidate")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("every candidate needs a label of its own")
        if self.none_label in self.labels:
            raise ValueError(f"none_label {self.none_label} is the label of a candidate")
        if self.label_bias and len(self.label_bias) != len(self.labels):
            raise ValueError(f"{len(self.label_bias)} biases for {len(self.labels)} labels")
        if not all(map(math.isfinite, self.label_bias)):
            raise ValueError("every bias of a label must be a finite number")
        hash(tuple(self.inspections))  # raises here rather than in a step
        if self.reason and (len(self.inspections) != len(self.labels) or self.source is None):
            raise ValueError("a reasoning request needs the full rows of every candidate")

    @property
    def scored(self) -> list[int]:
        """Tokens whose logits are read at the answer: the labels, then ``none_label``."""
        return [*self.labels, *([] if self.none_label is None else [self.none_label])]


@dataclass(frozen=True)
class Output:
    """Result of a request.

    Attributes:
        tokens: all written tokens, forced ones included; spliced rows are not tokens.
        answer: number of the chosen candidate.
        label_logits: logits of the labels at the answer, ``[k]``, with the request's biases; some
            engines give them up to a constant.
        none_logit: logit of the request's ``none_label`` beside them, up to the same constant; None
            without such a label.
        inspected: numbers of the inspected candidates, in order.
        inspected_rows: number of rows spliced in.
        well_formed: whether the model closed its reasoning itself, and its likeliest token was a
            permitted one wherever it had a choice. Closing tags after a label are always forced.
        logprobs: log-probability of each token under the distribution that it was taken from; 0.0
            for a forced token.
        refused: number of places where the likeliest token was to inspect one candidate more than
            permitted; they do not count against ``well_formed``.
        prompt_rows: number of rows of the prompt.
        cached_rows: number of rows found in the cache, at the start and after each preemption.
        computed_rows: number of rows that went through the model.
        timings: seconds that the request spent in each phase: ``queue``, ``prefill``, ``decode``,
            ``inspection``. A step counts in full for every request that took part in it.
    """

    tokens: Sequence[int]
    answer: int
    label_logits: Tensor
    inspected: Sequence[int]
    inspected_rows: int
    well_formed: bool
    logprobs: Sequence[float]
    prompt_rows: int = 0
    cached_rows: int = 0
    computed_rows: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    none_logit: float | None = None
    refused: int = 0


@dataclass(frozen=True)
class Spent:
    """What a request had used when it was given up.

    Attributes:
        tokens: number of written tokens.
        inspected: numbers of the inspected candidates; the last one may not have its rows yet.
        inspected_rows, cached_rows, computed_rows, timings: as in :class:`Output`.
    """

    tokens: int
    inspected: Sequence[int]
    inspected_rows: int
    cached_rows: int
    computed_rows: int
    timings: Mapping[str, float]


def advance_of(length: int, width: int) -> int:
    """Number of positions that rows take up in a grid of ``width``, or in a line if it is 0."""
    return max(width, length // width) if width else length


def positions_of(first: int, length: int, width: int = 0) -> Tensor:
    """M-RoPE positions ``[3, length]`` of rows in a grid of ``width``, or in a line if it is 0.

    All engines use this function. A position depends only on the rows before it.
    """
    k = torch.arange(length)
    grid = [0 * k, k // width, k % width] if width else [k, k, k]
    return torch.stack(grid) + first


def length_of(pieces: Sequence[Piece]) -> int:
    """Number of rows of ``pieces``."""
    return sum(1 if isinstance(piece, int) else piece.length for piece in pieces)


def check_pieces(pieces: Sequence[Piece], table: Tensor) -> None:
    """Raises ValueError unless pieces fit a table of embeddings, ``[vocabulary, d]``."""
    words, width = table.shape
    for piece in pieces:
        if isinstance(piece, int):
            if not 0 <= piece < words:
                raise ValueError(f"token {piece} is not in a vocabulary of {words} tokens")
            continue
        rows = piece.table
        if rows.shape[1:] != (width,) or not rows.is_floating_point():
            shape = f"{list(rows.shape)}, {rows.dtype}"
            raise ValueError(f"feature rows must be floats of width {width}, not {shape}")
        if rows.device != table.device:
            raise ValueError(f"feature rows are on {rows.device}, not {table.device}")


def load_distinct(candidates: Sequence[Candidate]) -> dict[Candidate, Sequence[Piece] | Exception]:
    """Pieces of candidates: each source is called once, with each distinct name once.

    A source that fails is called again name by name, so that only broken candidates fail.
    """
    found: dict[Candidate, Sequence[Piece] | Exception] = {}
    for source in dict.fromkeys(source for source, _ in candidates):
        names = list(dict.fromkeys(name for other, name in candidates if other is source))
        try:
            loaded: Sequence[Sequence[Piece] | Exception] = source.load(names)
            if len(loaded) != len(names):
                raise ValueError(
                    f"a feature source returned {len(loaded)} candidates for {len(names)} names"
                )
        except Exception:
            loaded = [_load_one(source, name) for name in names]
        found |= {(source, name): one for name, one in zip(names, loaded, strict=True)}
    return found


def _load_one(source: FeatureSource, name: Hashable) -> Sequence[Piece] | Exception:
    try:
        (one,) = source.load([name])
        return one
    except Exception as error:  # handed to the request that asked
        return error
