"""Replays a rollout: the rows that the policy saw, and the choice that it had at each token.

An engine's own state machine (:class:`retrv_engine.generation.Generation`) writes the given tokens
once more. So which tokens were sampled, which were permitted then, and where a candidate's rows
were spliced in, is the same for the trainer as for the engine, whatever the rules are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from retrv_engine import Request, Vocabulary
from retrv_engine.generation import Generation
from retrv_engine.sampler import Choice, Picked
from retrv_r1.model.processing import EncodedItem
from retrv_r1.model.prompts import Prompt, PromptBuilder


@dataclass(frozen=True)
class Replay:
    """Prompt and completion of a rollout.

    Items are numbered from the query, 0, over the candidates; pair k is candidate k with the query.

    Attributes:
        prompt: all rows, those of the completion included.
        start: first row of the completion.
        sampled: rows of the tokens that the policy chose; the others are the prompt's, forced, or
            of inspected candidates.
        choices: how each of them was taken.
        numbers: number of each sampled token among the written ones.
        closed: whether the policy ended its reasoning itself.
    """

    prompt: Prompt
    start: int
    sampled: Sequence[int]
    choices: Sequence[Choice]
    numbers: Sequence[int]
    closed: bool

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the prompt's rows; those of slots are placeholders."""
        return self.prompt.ids[: self.start]

    @property
    def completion_ids(self) -> list[int]:
        """Token ids of the completion's rows; those of inspected pictures are placeholders."""
        return self.prompt.ids[self.start :]

    @property
    def mask(self) -> list[int]:
        """1 for the rows of the completion that the policy chose, 0 for the others."""
        mask = [0] * len(self.completion_ids)
        for row in self.sampled:
            mask[row - self.start] = 1
        return mask

    def placed(self, values: Sequence[float]) -> list[float]:
        """Values of the written tokens at the completion's rows; 0.0 where none was chosen."""
        placed = [0.0] * len(self.completion_ids)
        for row, number in zip(self.sampled, self.numbers, strict=True):
            placed[row - self.start] = values[number]
        return placed

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        request: Request,
        vocabulary: Vocabulary,
        builder: PromptBuilder,
        items: Sequence[EncodedItem],
        instruction: str | None = None,
    ) -> Replay:
        """Replays what an engine wrote.

        Args:
            tokens: all tokens that the engine wrote.
            request: the request that it wrote them for; its prompt is not used.
            items: the query, then the candidates.
            instruction: wording of the prompt.
        Raises:
            ValueError: the request cannot have written these tokens.
        """
        prompt = builder.listwise(items, 0, range(1, len(items)), instruction=instruction)
        start = len(prompt)
        # Biases would choose another answer than the one that was written.
        state = Generation(replace(request, prompt=(), label_bias=()), vocabulary)
        sampled, choices, numbers, placed, closed = [], [], [], 0, False
        while not state.done:
            number = len(state.tokens)
            if number >= len(tokens):
                raise ValueError(f"{number} tokens are no whole rollout: it goes on")
            choice = [state.choice(row) for row in range(state.due)][-1]
            own = state.choices is not None or state.room > 0
            token = tokens[number]
            if own and (token in choice.permitted.tokens) == choice.permitted.banned:
                raise ValueError(f"token {number}, {token}, was not permitted there")
            labels = torch.zeros(len(choice.labels)) if choice.labels else None
            state.advance([Picked(token, 0.0, token, labels)] * state.due)
            prompt.add(state.tokens[placed : number + 1])
            if own:
                sampled.append(len(prompt) - 1)
                choices.append(choice)
                numbers.append(number)
                closed |= token == vocabulary.think_end
            prompt.add(state.tokens[number + 1 :])
            placed = len(state.tokens)
            if state.inspecting is not None:
                builder.full_item(prompt, items, 1 + state.inspected[-1])
                state.splice(())
        if state.tokens != list(tokens):
            raise ValueError("the request cannot have written these tokens")
        if closed or not request.reason:
            prompt.add([vocabulary.end])
        return cls(prompt, start, sampled, choices, numbers, closed)
