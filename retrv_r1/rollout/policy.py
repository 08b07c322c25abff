"""The policy's log-probabilities of rollouts: the trainer's half of the contract with the engine.

A batch of rollouts is one row table and, over it, one sequence for each rollout: the same rows at
the same positions that the engine computed, with gradients into language model and compressor. Each
sampled token is scored under the distribution that it was taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retrv_engine.head import logits_of
from retrv_engine.sampler import Choice, Masks, distribution
from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.prompts import Prompt, Slot, TableLayout
from retrv_r1.rerank.feature_encoder import Features
from retrv_r1.rollout.task import Group, Rollout

ROWS = 256
"""Tokens that are scored at once: for a vocabulary of 152,000, 156 MB of logits."""


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts as the policy reads them; ``b`` sequences with ``s`` sampled tokens in all.

    Attributes:
        items: the distinct items, with the rows of their pictures.
        pair_candidate, pair_query: item numbers of each pair, ``[c]``.
        input_ids, row_refs: token ids and rows of the table, padded on the right, ``[b, l]``.
        position_ids: M-RoPE positions, ``[3, b, l]``.
        sequences, rows: sequence and row of each sampled token, ``[s]``.
        places: place of each sampled token in its completion, ``[s]``.
        choices: how each of them was taken.
    """

    items: PackedItems
    pair_candidate: Tensor
    pair_query: Tensor
    input_ids: Tensor
    row_refs: Tensor
    position_ids: Tensor
    sequences: Tensor
    rows: Tensor
    places: Tensor
    choices: Sequence[Choice]

    @classmethod
    def of(
        cls, rollouts: Sequence[Rollout], processor: RetrvR1Processor, device: torch.device
    ) -> PolicyBatch:
        """A batch of rollouts; empty ones are sequences of padding.

        Raises:
            ValueError: all rollouts are empty.
        """
        table = _Table()
        prompts = [
            Prompt([processor.tokens.pad]) if one.replay is None else table.prompt(one)
            for one in rollouts
        ]
        if not table.features:
            raise ValueError("all rollouts are empty: there is nothing to read")
        layout = TableLayout([one.item for one in table.features])
        shape = (len(prompts), max(map(len, prompts)))
        ids, refs = torch.full(shape, processor.tokens.pad), torch.full(shape, -1)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for b, prompt in enumerate(prompts):
            length = len(prompt)
            ids[b, :length] = torch.tensor(prompt.ids)
            refs[b, :length] = torch.tensor(prompt.refs(layout))
            positions[:, b, :length] = prompt.positions()
        chosen = [
            (b, row, row - replay.start)
            for b, one in enumerate(rollouts)
            if (replay := one.replay) is not None
            for row in replay.sampled
        ]
        sequences, rows, places = torch.tensor(chosen, dtype=torch.long).view(-1, 3).T
        candidates, queries = torch.tensor(table.pairs).T
        return cls(
            items=table.packed(processor).to(device),
            pair_candidate=candidates,
            pair_query=queries,
            input_ids=ids.to(device),
            row_refs=refs.to(device),
            position_ids=positions.to(device),
            sequences=sequences.to(device),
            rows=rows.to(device),
            places=places.to(device),
            choices=[x for one in rollouts if one.replay is not None for x in one.replay.choices],
        )


class _Table:
    """The items and pairs of a batch, each once.

    Attributes:
        features: features of the items.
        pairs: item numbers of the candidate and of the query of each pair.
    """

    def __init__(self) -> None:
        self.features: list[Features] = []
        self.pairs: list[tuple[int, int]] = []
        self._numbers: dict[str, int] = {}
        self._groups: dict[Group, tuple[list[int], int]] = {}

    def prompt(self, rollout: Rollout) -> Prompt:
        """A rollout's rows, its items and pairs numbered as in this batch."""
        replay = rollout.replay
        assert replay is not None
        group = rollout.group
        if group not in self._groups:
            items = [self._number(one) for one in group.features]
            self._groups[group] = items, len(self.pairs)
            self.pairs += [(candidate, items[0]) for candidate in items[1:]]
        items, first_pair = self._groups[group]

        def moved(slot: Slot) -> Slot:
            pair = slot.kind == "relation"
            number = first_pair + slot.number if pair else items[slot.number]
            return slot._replace(number=number)

        return Prompt(replay.prompt.ids, [moved(slot) for slot in replay.prompt.slots])

    def packed(self, processor: RetrvR1Processor) -> PackedItems:
        """The items, with the rows that the tower made for the rollouts."""
        pictures = [one.rows[: one.item.picture_rows] for one in self.features]
        shown = [rows for rows in pictures if len(rows)]
        packed = processor.pack([one.item for one in self.features])
        # A copy: rows that were made in inference mode cannot be read for a gradient.
        return replace(packed, vision_rows=torch.cat(shown).detach() if shown else None)

    def _number(self, features: Features) -> int:
        if features.key not in self._numbers:
            self._numbers[features.key] = len(self.features)
            self.features.append(features)
        return self._numbers[features.key]


def log_probabilities(
    model: RetrvR1ForConditionalGeneration, batch: PolicyBatch
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the sampled tokens, and entropies of their distributions, ``[s]``.

    Both in nats and float32, and both differentiable.
    """
    # Never in mixed precision: that moves compressed rows far from those that the engine has.
    with torch.autocast(batch.input_ids.device.type, enabled=False):
        table = model.row_table(batch.items, batch.pair_candidate, batch.pair_query)
    embeds = model.embed(batch.input_ids, batch.row_refs, table)
    hidden = model.language_model(
        inputs_embeds=embeds, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    due = hidden[batch.sequences, batch.rows - 1]
    taken = batch.input_ids[batch.sequences, batch.rows]
    scorer = _Scorer(model, batch.choices, due.device)
    parts = []
    for first in range(0, len(due), ROWS):
        rows = slice(first, first + ROWS)
        # Logits of all tokens would be several times larger than the rest: they are made again.
        parts.append(checkpoint(scorer, due[rows], taken[rows], rows, use_reentrant=False))
    if not parts:
        return due.sum(-1), due.sum(-1)
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _Scorer:
    """Scores tokens under the distributions that they were taken from."""

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        choices: Sequence[Choice],
        device: torch.device,
    ) -> None:
        self.head = model.get_output_embeddings()
        table: Any = model.get_input_embeddings()
        words = getattr(self.head, "out_features", len(table.weight))
        distinct = len({choice.permitted for choice in choices})
        masks = Masks(distinct + 2, words, device)
        self.rows = torch.tensor([masks.row(choice.permitted) for choice in choices], device=device)
        self.masks = masks.table
        numbers = np.array([(choice.temperature, choice.top_p) for choice in choices])
        self.temperature, self.top_p = torch.from_numpy(numbers.reshape(-1, 2).T).to(device)

    def __call__(self, hidden: Tensor, taken: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Of hidden rows ``[n, d]`` and the tokens taken behind them ``[n]``."""
        scores = logits_of(self.head, hidden) + self.masks[self.rows[part]]
        top_p = self.top_p[part]
        nucleus = bool((top_p < 1).any())
        logprobs = distribution(scores, self.temperature[part], top_p, nucleus, taken)
        finite = logprobs.masked_fill(logprobs.isneginf(), 0.0)
        entropies = -(logprobs.exp() * finite).sum(-1)
        return logprobs.gather(1, taken[:, None])[:, 0], entropies


def spread(values: Tensor, batch: PolicyBatch, width: int) -> Tensor:
    """Values of the sampled tokens ``[s]`` at their places in completions: ``[b, width]``.

    The other places are 0.
    """
    out = values.new_zeros(len(batch.input_ids), width)
    return out.index_put((batch.sequences, batch.places), values)
