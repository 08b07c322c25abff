"""Written tokens become text and events, as they come."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.events import Inspection, Reasoning

KEPT = 8
"""Tokens that are decoded again with the next one: a character has at most four bytes."""


class Narrator:
    """Reads a chain of thought token by token; the texts of its events make the reasoning text.

    Special tokens do not appear in the text, ``[index + 1]`` stands for a label, runs of spaces are
    one space, and there is no space at the start or the end.

    Args:
        numbers: index in the caller's list, for each label of the prompt.
        vote: number of the chain of thought.
    """

    def __init__(self, processor: RetrvR1Processor, numbers: Sequence[int], vote: int = 0) -> None:
        self._decode, self._tokens = processor.tokenizer.decode, processor.tokens
        self._number = dict(zip(processor.tokens.labels, numbers, strict=False))
        self._vote = vote
        self._run: list[int] = []  # the last ordinary tokens since the last mark
        self._told = 0  # characters of their text that are in events
        self._space = ""  # that ends the text so far; at the end of the reasoning it is dropped
        self._inspects = self._started = self._ended = self._spoken = False

    def read(self, tokens: Sequence[int]) -> list[Reasoning | Inspection]:
        """The events of the next tokens; nothing outside of the think tags makes one."""
        events: list[Reasoning | Inspection] = []
        for token in tokens:
            if not self._started:
                self._started, self._ended = True, token != self._tokens.think_start
            elif not self._ended:
                self._one(token, events)
        return [event for event in events if isinstance(event, Inspection) or event.text]

    def _one(self, token: int, events: list[Reasoning | Inspection]) -> None:
        names, number = self._tokens, self._number.get(token)
        if number is None and token not in (
            names.think_end,
            names.inspect_start,
            names.inspect_end,
        ):
            events.append(self._piece(self._more(token)))
            return
        events.append(self._piece(self._decode(self._run)[self._told :]))
        self._run, self._told = [], 0
        self._ended = token == names.think_end
        if token == names.inspect_start:
            events.append(self._piece(" inspect"))
        elif number is not None:
            events.append(self._piece(f" [{number + 1}]", number))
            if self._inspects:
                events.append(Inspection(number, self._vote))
        self._inspects = token == names.inspect_start

    def _more(self, token: int) -> str:
        """What a token adds to the text, without half a character that it may end with."""
        self._run.append(token)
        text = self._decode(self._run)
        whole = text.removesuffix("\ufffd")
        more, self._told = whole[self._told :], len(whole)
        if len(self._run) == 2 * KEPT:  # else each token would cost as much as all before it
            self._run = self._run[-KEPT:]
            self._told += len(self._decode(self._run)) - len(text)
        return more

    def _piece(self, text: str, index: int | None = None) -> Reasoning:
        text = re.sub(r" {2,}", " ", self._space + text)
        if not self._spoken:
            text = text.lstrip()
        body = text.rstrip()
        self._space = text[len(body) :]
        self._spoken |= bool(body)
        return Reasoning(body, index, self._vote)
