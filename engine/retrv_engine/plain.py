"""The reference engine: plain transformers, a fixed batch, a contiguous cache.

Every other engine is compared with this one, token for token. All requests of a batch take each
step together: each computes the rows it has (a token, or the rows of an inspected candidate). Fewer
rows are padded on the left, and padded columns stay masked. Positions are given explicitly, so
padding does not shift them.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from retrv_engine.base import Stats
from retrv_engine.generation import Generation
from retrv_engine.head import logits_of
from retrv_engine.model import LanguageModel, load_weights
from retrv_engine.request import (
    Output,
    Piece,
    Request,
    Sampling,
    Vocabulary,
    load_distinct,
    positions_of,
)
from retrv_engine.sampler import Masks, pick


class PlainEngine:
    """Runs requests to their end, ``batch_size`` at a time; not thread-safe.

    Args:
        generation_type: class of the running requests, as for :class:`LocalEngine`.
    """

    def __init__(
        self,
        model: LanguageModel,
        vocabulary: Vocabulary,
        batch_size: int = 16,
        *,
        generation_type: type[Generation] = Generation,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.model, self.vocabulary, self.batch_size = model, vocabulary, batch_size
        self.generation_type = generation_type
        self._masks: Masks | None = None
        self._counts: Counter[str] = Counter()

    @property
    def alive(self) -> bool:
        """Whether it takes requests: it always does."""
        return True

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Returns the outputs of ``requests``, in order."""
        outputs: list[Output] = []
        for start in range(0, len(requests), self.batch_size):
            outputs += self._batch(requests[start : start + self.batch_size])
        return outputs

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`retrv_engine.base.Engine.load_weights`; there is no cache to evict."""
        load_weights(self.model, weights)

    def warm(self, samplings: Sequence[Sampling] = (Sampling(),)) -> None:
        """Does nothing: nothing is compiled or captured."""

    def stats(self) -> Stats:
        """Counts since the engine was made; it has no pages and no cache to find rows in."""
        return Stats(**self._counts, seconds={})  # type: ignore[arg-type]

    def close(self) -> None:
        """Does nothing: there is no thread and no process to end."""

    def _batch(self, requests: Sequence[Request]) -> list[Output]:
        generations = [self.generation_type(request, self.vocabulary) for request in requests]
        cursors, computed = [0] * len(generations), [0] * len(generations)
        active = list(range(len(generations)))
        cache = DynamicCache()
        mask: Tensor | None = None
        started = time.perf_counter()
        first = 0.0
        while active:
            chunks = []
            for i in active:
                pieces = generations[i].take_pending()
                embeds, positions, cursors[i] = embed_pieces(self.model, pieces, cursors[i])
                chunks.append((embeds, positions))
                computed[i] += len(embeds)
            embeds, positions, present = _pad_left(chunks)
            mask = present if mask is None else torch.cat([mask, present], 1)
            due = [generations[i].due for i in active]
            logits = decode(self.model, embeds, positions, mask, cache, max(due))
            due_logits = torch.cat([rows[-n:] for rows, n in zip(logits, due, strict=True)])
            counted = [(generations[i], n) for i, n in zip(active, due, strict=True)]
            if self._masks is None:
                rows = 2 * self.batch_size + 2
                self._masks = Masks(rows, due_logits.shape[-1], due_logits.device)
            choices = [one.choice(k) for one, n in counted for k in range(n)]
            picks = iter(pick(due_logits, choices, self._masks))
            first = first or time.perf_counter() - started
            self._counts["steps"] += 1
            for one, n in counted:
                one.advance(list(itertools.islice(picks, n)))
            _splice([generations[i] for i in active])
            keep = [n for n, i in enumerate(active) if not generations[i].done]
            if len(keep) < len(active) and keep:
                left = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(left)
                mask = mask[left]
            active = [active[n] for n in keep]
        total = time.perf_counter() - started
        timings = {"prefill": first, "decode": total - first}
        self._counts["finished"] += len(generations)
        self._counts["computed_rows"] += sum(computed)
        self._counts["written_tokens"] += sum(len(one.tokens) for one in generations)
        self._counts["inspections"] += sum(len(one.inspected) for one in generations)
        return [
            replace(generation.output(), timings=timings, computed_rows=rows)
            for generation, rows in zip(generations, computed, strict=True)
        ]


def decode(
    model: LanguageModel,
    embeds: Tensor,
    positions: Tensor,
    attention_mask: Tensor,
    cache: Cache,
    last: int,
) -> Tensor:
    """Computes new rows; returns float32 logits ``[b, last, vocabulary]`` of the last of them.

    Args:
        embeds: embeddings of the new rows, ``[b, l, d]``.
        positions: M-RoPE positions, ``[3, b, l]``.
        attention_mask: 1 for columns of the cache and new rows that exist, ``[b, past + l]``.
        cache: keys and values; the new ones are appended.
    """
    out = model.language_model(
        inputs_embeds=embeds,
        position_ids=positions.to(embeds.device),
        attention_mask=attention_mask.to(embeds.device),
        past_key_values=cache,
        use_cache=True,
    )
    hidden = out.last_hidden_state[:, -last:]
    logits = logits_of(model.get_output_embeddings(), hidden.flatten(0, 1))
    return logits.unflatten(0, hidden.shape[:2])


def embed_pieces(
    model: LanguageModel, pieces: Sequence[Piece], cursor: int
) -> tuple[Tensor, Tensor, int]:
    """Rows of pieces, the first at position ``cursor``.

    Returns:
        Embeddings ``[l, d]``, absolute positions ``[3, l]``, and the position after them.
    """
    table: Any = model.get_input_embeddings()
    embeds, positions = [], []
    for words, group in itertools.groupby(pieces, lambda piece: isinstance(piece, int)):
        if words:
            ids = torch.tensor(list(group))
            embeds.append(table(ids.to(table.weight.device)))
            positions.append(positions_of(cursor, len(ids)))
            cursor += len(ids)
            continue
        for piece in group:
            assert not isinstance(piece, int)
            embeds.append(piece.rows)
            positions.append(positions_of(cursor, piece.length, piece.width))
            cursor += piece.advance
    return torch.cat(embeds), torch.cat(positions, 1), cursor


def _splice(generations: Sequence[Generation]) -> None:
    pieces = load_distinct([one.inspecting for one in generations if one.inspecting is not None])
    for generation in generations:
        if generation.inspecting is not None:
            found = pieces[generation.inspecting]
            if isinstance(found, Exception):
                raise found
            generation.splice(found)


def _pad_left(chunks: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """``embeds [b, l, d]``, ``positions [3, b, l]``, and 1 for rows that are real, ``[b, l]``."""
    longest = max(len(embeds) for embeds, _ in chunks)
    first = chunks[0][0]
    embeds = first.new_zeros(len(chunks), longest, first.shape[-1])
    positions = torch.zeros(3, len(chunks), longest, dtype=torch.long, device=first.device)
    present = torch.zeros(len(chunks), longest, dtype=torch.long, device=first.device)
    for b, (rows, places) in enumerate(chunks):
        embeds[b, longest - len(rows) :] = rows
        positions[:, b, longest - len(rows) :] = places
        present[b, longest - len(rows) :] = 1
    return embeds, positions, present
