"""One request while it runs: what it may write next, and which rows go in next.

The protocol of a reasoning request:

    <think> … [<inspection-index-start> label <inspection-index-end> rows] … </think>
    <answer> label </answer>

Opening tags and everything that can have only one form are forced and cost no choice; labels are
constrained to the request's candidates; a candidate is inspected at most once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrv_engine.request import Output, Request, RowSpan, Vocabulary, generator_for
from retrv_engine.sampler import choose


@dataclass
class Sequence:
    """State of a running request; ``pending`` are the rows it wants to feed next."""

    request: Request
    vocabulary: Vocabulary
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    inspected: list[int] = field(default_factory=list)
    inspected_rows: int = 0
    well_formed: bool = True
    label_logits: Tensor | None = None
    pending: list[int | RowSpan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = generator_for(self.request.sampling)
        self.pending = [self.request.prompt]
        opening = self.vocabulary.think_start if self.request.reason else None
        self._force(self.vocabulary.answer_start if opening is None else opening)

    @property
    def done(self) -> bool:
        return self.label_logits is not None

    @property
    def last(self) -> int:
        return self.tokens[-1]

    def _take(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pending.append(token)

    def _force(self, token: int) -> None:
        self._take(token, 0.0)

    def advance(self, logits: Tensor) -> None:
        """Takes the next token from ``logits [vocabulary]`` and everything that follows from it."""
        if self.last == self.vocabulary.answer_start:
            self._answer(logits)
        elif self.last == self.vocabulary.inspect_start:
            self._inspect(logits)
        elif self.last == self.vocabulary.think_end:
            self.well_formed &= int(logits.argmax()) == self.vocabulary.answer_start
            self._force(self.vocabulary.answer_start)
        else:
            self._think(logits)

    def _think(self, logits: Tensor) -> None:
        sampling, names = self.request.sampling, self.vocabulary
        if len(self.tokens) >= sampling.max_reasoning_tokens:
            self.well_formed = False
            self._force(names.think_end)
            return
        banned = [names.answer_start, names.answer_end, names.think_start, names.inspect_end]
        banned += [names.end, *self.request.banned]
        self.well_formed &= int(logits.argmax()) not in banned
        spent = len(self.inspected) >= min(sampling.max_inspections, len(self.request.labels))
        if spent:
            banned.append(names.inspect_start)
        self._take(*self._choose(logits, None, banned))

    def _inspect(self, logits: Tensor) -> None:
        labels = self.request.labels
        left = [labels[k] for k in range(len(labels)) if k not in self.inspected]
        self.well_formed &= int(logits.argmax()) in left
        token, logprob = self._choose(logits, left, [])
        self._take(token, logprob)
        self._force(self.vocabulary.inspect_end)
        candidate = list(labels).index(token)
        span = self.request.inspections[candidate]
        self.inspected.append(candidate)
        self.inspected_rows += len(span)
        self.pending.append(span)

    def _answer(self, logits: Tensor) -> None:
        labels = list(self.request.labels)
        self.well_formed &= int(logits.argmax()) in labels
        self._take(*self._choose(logits, labels, []))
        self._force(self.vocabulary.answer_end)
        self.label_logits = logits[torch.as_tensor(labels, device=logits.device)].float().cpu()

    def _choose(
        self, logits: Tensor, allowed: list[int] | None, banned: list[int]
    ) -> tuple[int, float]:
        sampling = self.request.sampling
        return choose(logits, allowed, banned, sampling.temperature, sampling.top_p, self.generator)

    def output(self) -> Output:
        """The result of a finished request."""
        assert self.label_logits is not None
        return Output(
            tokens=tuple(self.tokens),
            answer=list(self.request.labels).index(self.tokens[-2]),
            label_logits=self.label_logits,
            inspected=tuple(self.inspected),
            inspected_rows=self.inspected_rows,
            well_formed=self.well_formed,
            logprobs=tuple(self.logprobs),
        )
