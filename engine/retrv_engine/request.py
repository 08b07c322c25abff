"""What an engine takes and gives back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor


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


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Consecutive rows of a table that stand in a sequence: a picture's, or compressed tokens.

    Args:
        table: ``[n, d]``, in the dtype of the embeddings.
        first: the first of the rows there.
        length: how many.
        key: hash of what they hold, 63 bits: rows of one key are the same rows. It covers what they
            were made of and the version of the weights that made them.
        width: of the grid, for Qwen-VL's M-RoPE positions; 0 for text positions.
    """

    table: Tensor
    first: int
    length: int
    key: int
    width: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.first <= len(self.table) - self.length:
            raise ValueError(
                f"rows {self.first} to {self.first + self.length} of a table of {len(self.table)}"
            )
        if self.width and self.length % self.width:
            raise ValueError(f"{self.length} rows are no grid of width {self.width}")
        if not 0 <= self.key < 2**63:
            raise ValueError("a key has 63 bits")

    @property
    def rows(self) -> Tensor:
        """``[length, d]``."""
        return self.table[self.first : self.first + self.length]

    @property
    def advance(self) -> int:
        """How far the position moves on behind the rows."""
        return advance_of(self.length, self.width)


Piece: TypeAlias = int | FeatureRows
"""What sequences are made of: a token, or rows that stand where a token's embedding would."""


class FeatureSource(Protocol):
    """Where the full rows of inspected candidates come from."""

    def load(self, names: Sequence[Hashable]) -> Sequence[Sequence[Piece]]:
        """The pieces that each named candidate is spliced in as, encoded together if need be.

        Engines call it once a step with the distinct candidates that any sequence asked for.
        """
        ...


Candidate: TypeAlias = tuple[FeatureSource, Hashable]
"""A candidate that a request inspects: a feature source, and the candidate's name there."""


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
        prompt: all pieces of the prompt; positions start at 0.
        labels: label token of each candidate, in order.
        inspections: name of each candidate at ``source``, for when it is inspected.
        source: gives the candidates' full rows.
        reason: think first, or answer at once (fast mode).
        banned: tokens that have no place in this request's reasoning: what prompts are built of,
            labels that stand for none of its candidates.
    """

    prompt: Sequence[Piece]
    labels: Sequence[int]
    inspections: Sequence[Hashable] = ()
    source: FeatureSource | None = None
    reason: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    banned: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a request needs at least one candidate")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("every candidate needs a label of its own")
        hash(tuple(self.inspections))  # or a step would fail on them
        if self.reason and (len(self.inspections) != len(self.labels) or self.source is None):
            raise ValueError("a reasoning request needs the full rows of every candidate")


@dataclass(frozen=True)
class Output:
    """What came of a request.

    Attributes:
        tokens: every token written, forced ones too; spliced rows are not in it.
        answer: number of the chosen candidate.
        label_logits: logits of the labels where the answer is due, ``[k]``; of some engines less a
            number that is the same for all.
        inspected: candidates looked at, in order.
        inspected_rows: rows spliced in.
        well_formed: the model closed its reasoning itself, and wherever it had a choice, its
            likeliest token was a permitted one. Closing tags behind a label are always forced.
        logprobs: log-probability of each token under the distribution it was taken from; 0.0
            where it was forced.
        prompt_rows: rows of the prompt.
        cached_rows: rows that were found in the cache instead of being computed, at the start and
            again after each preemption.
        computed_rows: rows that went through the model.
        timings: seconds of a phase in which the request took part: ``queue``, ``prefill``,
            ``decode``, ``inspection``.
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


def advance_of(length: int, width: int) -> int:
    """How far the position moves on behind rows, in a grid of some width or, if 0, in a line."""
    return max(width, length // width) if width else length


def positions_of(first: int, length: int, width: int = 0) -> Tensor:
    """M-RoPE positions ``[3, length]`` of rows, in a grid of some width or, if 0, in a line.

    All engines count so. A position depends on what stands before it alone.
    """
    k = torch.arange(length)
    grid = [0 * k, k // width, k % width] if width else [k, k, k]
    return torch.stack(grid) + first


def length_of(pieces: Sequence[Piece]) -> int:
    """Rows of ``pieces``."""
    return sum(1 if isinstance(piece, int) else piece.length for piece in pieces)


def check_pieces(pieces: Sequence[Piece], table: Tensor) -> None:
    """Raises ValueError unless pieces go with a table of embeddings, ``[vocabulary, d]``."""
    words, width = table.shape
    for piece in pieces:
        if isinstance(piece, int):
            if not 0 <= piece < words:
                raise ValueError(f"token {piece} of a vocabulary of {words}")
            continue
        rows = piece.table
        if rows.shape[1:] != (width,) or not rows.is_floating_point():
            shape = f"{list(rows.shape)}, {rows.dtype}"
            raise ValueError(f"feature rows must be floats of width {width}, not {shape}")
        if rows.device != table.device:
            raise ValueError(f"feature rows are on {rows.device}, not {table.device}")


def load_distinct(
    candidates: Sequence[Candidate],
) -> dict[Candidate, Sequence[Piece] | Exception]:
    """Pieces of candidates: each source is called once, with each distinct name once.

    A source that fails is called again name by name, so that only broken candidates fail.
    """
    found: dict[Candidate, Sequence[Piece] | Exception] = {}
    for source in dict.fromkeys(source for source, _ in candidates):
        names = list(dict.fromkeys(name for other, name in candidates if other is source))
        try:
            loaded: Sequence[Sequence[Piece] | Exception] = source.load(names)
            if len(loaded) != len(names):
                raise ValueError(f"a feature source gave {len(loaded)} candidates of {len(names)}")
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
