"""A running request: which tokens it may write next, and which rows it computes next.

The form of a reasoning request:

    <think> … [<inspection-index-start> label <inspection-index-end> rows] … </think>
    <answer> label </answer>

Tokens that are fully determined (tags) are forced: they are appended without sampling and share a
forward pass with the next choice. Labels are limited to the request's candidates. A candidate is
inspected at most once. The answer is chosen from the labels' logits with the request's biases.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrv_engine.request import Candidate, Output, Piece, Request, Vocabulary, length_of
from retrv_engine.sampler import ALL, COLDEST, Choice, Permitted, Picked, check_numbers, pick


@dataclass
class Generation:
    """State of a running request.

    Attributes:
        tokens, logprobs, inspected, inspected_rows, well_formed, label_logits, none_logit,
            refused: the output so far; see :class:`Output`.
        pending: pieces to compute next.
        due: number of their last rows from whose logits a token is taken.
        inspecting: candidate whose rows must be spliced in before anything else, or None.
    """

    request: Request
    vocabulary: Vocabulary
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    inspected: list[int] = field(default_factory=list)
    inspected_rows: int = 0
    well_formed: bool = True
    label_logits: Tensor | None = None
    none_logit: float | None = None
    refused: int = 0
    pending: list[Piece] = field(default_factory=list)
    due: int = 1
    inspecting: Candidate | None = None

    def __post_init__(self) -> None:
        names, request = self.vocabulary, self.request
        self._random = random.Random(request.sampling.seed)
        self._choice = Choice()  # how the last label is taken
        self.pending = list(request.prompt)
        self._never = [names.answer_start, names.answer_end, names.think_start, names.inspect_end]
        self._never += [names.end, *request.banned]
        self._force(names.think_start if request.reason else names.answer_start)

    @property
    def done(self) -> bool:
        return self.label_logits is not None

    def _take(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pending.append(token)

    def _force(self, token: int) -> None:
        self._take(token, 0.0)

    def take_pending(self) -> list[Piece]:
        """Returns the pieces to compute next, and empties ``pending``."""
        pieces, self.pending = self.pending, []
        return pieces

    @property
    def answering(self) -> bool:
        """Whether the answer's label is written next."""
        return self.tokens[-1] == self.vocabulary.answer_start

    @property
    def choices(self) -> list[int] | None:
        """Labels of which one must be written next; None while the model reasons."""
        labels = self.request.labels
        if self.answering:
            return list(labels)
        if self.tokens[-1] == self.vocabulary.inspect_start:
            return [labels[k] for k in range(len(labels)) if k not in self.inspected]
        return None

    @property
    def banned(self) -> list[int]:
        """Tokens that may not be written while the model reasons."""
        return [*self._never, self.vocabulary.inspect_start] if self._spent else self._never

    @property
    def _spent(self) -> bool:
        """Whether no more candidates may be inspected."""
        limit = min(self.request.sampling.max_inspections, len(self.request.labels))
        return len(self.inspected) >= limit

    @property
    def room(self) -> int:
        """Number of reasoning tokens that may still be written before ``</think>`` is forced."""
        return max(0, self.request.sampling.max_reasoning_tokens - len(self.tokens))

    def choice(self, number: int) -> Choice:
        """How a token is taken from row ``number`` of those that are due.

        To be called once for each row, when it is computed: it draws a random number.
        """
        if number < self.due - 1:
            return Choice()  # only the likeliest token is read, for ``well_formed``
        if (choices := self.choices) is not None:
            scored = tuple(self.request.scored) if self.answering else ()
            self._choice = self._choose(Permitted(tuple(choices), False), scored)
            return self._choice
        return self._choose(Permitted(tuple(self.banned))) if self.room else Choice()

    def advance(self, picks: Sequence[Picked]) -> Candidate | None:
        """Takes the next token and everything that follows from it; returns ``inspecting``.

        Args:
            picks: tokens taken from the rows that were due.
        Raises:
            FloatingPointError: the model's logits are NaN.
        """
        check_numbers(picks)
        if self.due == 2:  # after </think>, where <answer> was forced
            self.well_formed &= picks[0].likeliest == self.vocabulary.answer_start
        self.due = 1
        last = picks[-1]
        if (choices := self.choices) is not None:
            fitting = self.request.scored if self.answering else choices
            self.well_formed &= last.likeliest in fitting
            self._label(last)
        elif self.room:
            self.think(last.token, last.logprob, last.likeliest)
        else:
            self.cut()
        return self.inspecting

    def think(self, token: int, logprob: float, likeliest: int) -> None:
        """Takes a token of reasoning; ``likeliest`` is the best one if all were permitted."""
        self.well_formed &= likeliest not in self._never
        self.refused += self._spent and likeliest == self.vocabulary.inspect_start
        self._take(token, logprob)
        if token == self.vocabulary.think_end:
            self._conclude()

    def cut(self) -> None:
        """Ends the reasoning, for which there is no room left."""
        self.well_formed = False
        self._force(self.vocabulary.think_end)
        self._conclude()

    def splice(self, pieces: Sequence[Piece]) -> None:
        """Takes the rows of the inspected candidate."""
        self.inspecting = None
        self.inspected_rows += length_of(pieces)
        self.pending += pieces

    def _conclude(self) -> None:
        self._force(self.vocabulary.answer_start)
        self.due = 2

    def _label(self, picked: Picked) -> None:
        """Takes a label: the answer, or the candidate to inspect."""
        if self.tokens[-1] != self.vocabulary.inspect_start:
            self._answer(picked)
            return
        self._take(picked.token, picked.logprob)
        self._force(self.vocabulary.inspect_end)
        candidate = list(self.request.labels).index(picked.token)
        self.inspected.append(candidate)
        assert self.request.source is not None
        self.inspecting = self.request.source, self.request.inspections[candidate]

    def _answer(self, picked: Picked) -> None:
        assert picked.labels is not None
        labels, bias = self.request.labels, self.request.label_bias
        logits = self.label_logits = picked.labels[: len(labels)]
        if self.request.none_label is not None:
            self.none_logit = float(picked.labels[len(labels)])
        if bias:
            logits = self.label_logits = logits + torch.tensor(bias)
            # In the vocabulary's order, as without biases.
            order = sorted(range(len(labels)), key=labels.__getitem__)
            names, given = [labels[k] for k in order], self._choice.target
            target = names.index(given) if given >= 0 else -1
            choice = self._choice._replace(permitted=ALL, labels=(), target=target)
            (chosen,) = pick(logits[order][None], [choice])
            picked = Picked(names[chosen.token], chosen.logprob, picked.likeliest)
        self._take(picked.token, picked.logprob)
        self._force(self.vocabulary.answer_end)

    def _choose(self, permitted: Permitted, labels: tuple[int, ...] = ()) -> Choice:
        sampling = self.request.sampling
        drawn = sampling.temperature >= COLDEST
        uniform = self._random.random() if drawn else 0.0
        return Choice(permitted, sampling.temperature, sampling.top_p, uniform, labels=labels)

    def output(self) -> Output:
        """Result of a finished request."""
        assert self.label_logits is not None
        return Output(
            tokens=tuple(self.tokens),
            answer=list(self.request.labels).index(self.tokens[-2]),
            label_logits=self.label_logits,
            none_logit=self.none_logit,
            refused=self.refused,
            inspected=tuple(self.inspected),
            inspected_rows=self.inspected_rows,
            well_formed=self.well_formed,
            logprobs=tuple(self.logprobs),
            prompt_rows=length_of(self.request.prompt),
        )
