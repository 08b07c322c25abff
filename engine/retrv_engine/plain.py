"""The reference engine: straight through transformers, a fixed batch, a contiguous cache.

Every other engine is compared with this one, token for token. Sequences of a batch move in step:
each feeds the rows it has (a token, or an inspected candidate's rows), shorter ones are padded on
the left, and padded columns stay masked for good. Positions are explicit, so padding moves none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as List
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache

from retrv_engine.request import LanguageModel, Output, Request, RowSpan, Vocabulary
from retrv_engine.sequence import Sequence


class PlainEngine:
    """Runs requests to their end, ``batch_size`` at a time.

    Not safe to call from several threads at once.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary, batch_size: int = 16) -> None:
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        self.model, self.vocabulary, self.batch_size = model, vocabulary, batch_size

    @torch.inference_mode()
    def generate(self, requests: List[Request]) -> list[Output]:
        """Outputs of ``requests``, in their order."""
        outputs: list[Output] = []
        for start in range(0, len(requests), self.batch_size):
            outputs += self._batch(requests[start : start + self.batch_size])
        return outputs

    def _batch(self, requests: List[Request]) -> list[Output]:
        sequences = [Sequence(request, self.vocabulary) for request in requests]
        cursors = [0] * len(sequences)
        active = list(range(len(sequences)))
        cache = DynamicCache()
        mask: Tensor | None = None
        started = time.perf_counter()
        first = 0.0
        while active:
            chunks = [self._rows(sequences[i], cursors[i]) for i in active]
            for i, chunk in zip(active, chunks, strict=True):
                cursors[i] += chunk.advance
            embeds, positions, present = _pad_left(chunks)
            mask = present if mask is None else torch.cat([mask, present], 1)
            logits = self.model.decode(embeds, positions, mask, cache)
            first = first or time.perf_counter() - started
            for i, row in zip(active, logits, strict=True):
                sequences[i].advance(row)
            keep = [n for n, i in enumerate(active) if not sequences[i].done]
            if len(keep) < len(active) and keep:
                rows = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(rows)
                mask = mask[rows]
            active = [active[n] for n in keep]
        total = time.perf_counter() - started
        timings = {"prefill": first, "decode": total - first}
        return [replace(s.output(), timings=timings) for s in sequences]

    def _rows(self, sequence: Sequence, cursor: int) -> RowSpan:
        """Everything a sequence wants to feed next, at absolute positions."""
        embeds, positions, start = [], [], cursor
        for piece in sequence.pending:
            if isinstance(piece, int):
                embeds.append(self.model.embed_tokens(torch.tensor([piece])))
                positions.append(torch.full((3, 1), cursor))
                cursor += 1
            else:
                embeds.append(piece.embeds)
                positions.append(piece.positions + cursor)
                cursor += piece.advance
        sequence.pending.clear()
        return RowSpan(torch.cat(embeds), torch.cat(positions, 1), cursor - start)


def _pad_left(chunks: List[RowSpan]) -> tuple[Tensor, Tensor, Tensor]:
    """``embeds [b, l, d]``, ``positions [3, b, l]`` and the mask of real rows ``[b, l]``."""
    longest = max(len(chunk) for chunk in chunks)
    first = chunks[0].embeds
    embeds = first.new_zeros(len(chunks), longest, first.shape[-1])
    positions = torch.zeros(3, len(chunks), longest, dtype=torch.long, device=first.device)
    present = torch.zeros(len(chunks), longest, dtype=torch.long, device=first.device)
    for b, chunk in enumerate(chunks):
        embeds[b, longest - len(chunk) :] = chunk.embeds
        positions[:, b, longest - len(chunk) :] = chunk.positions
        present[b, longest - len(chunk) :] = 1
    return embeds, positions, present
