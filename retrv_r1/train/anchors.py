"""Anchors: one direction for each concept, towards which everything that shows it is trained.

A contrastive loss compares with the negatives of its step. A softmax over anchors compares with
every concept at once, and aligns a picture, a foreign name and a definition even if no pair of them
was ever drawn. Entries whose concept the data does not name are trained by the contrastive losses
alone. If the compressor has a memory, its prototypes are the anchors; otherwise anchors are not
used at inference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retrv_r1.model.icm import InformationCompressor
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Corpus, Key


class Concepts:
    """Numbers of the concepts that entries show.

    A candidate's concept is the ``code`` in its metadata; a query's concepts are those of all
    candidates that are relevant to it ("the flag, in red" is the red flag).

    Attributes:
        of: concept numbers by what the model sees of an entry, where the data names them.
        count: number of concepts.
    """

    def __init__(self, corpus: Corpus) -> None:
        found: dict[Key, set[str]] = defaultdict(set)
        for cell in corpus.cells.values():
            codes = [entry.meta.get("code") for entry in cell.pool]
            for entry, code in zip(cell.pool, codes, strict=True):
                if code:
                    found[entry.key].add(code)
            for query, known in zip(cell.queries, cell.positives, strict=True):
                if shown := {code for n in known if (code := codes[n])}:
                    found[query.key] |= shown
        numbers = {code: n for n, code in enumerate(sorted(set().union(*found.values())))}
        self.of = {
            key: tuple(sorted(numbers[code] for code in codes)) for key, codes in found.items()
        }
        self.count = len(numbers)

    def goals(self, keys: Sequence[Key]) -> Tensor:
        """Concept numbers of entries ``[n, most]``, padded with -1."""
        known = [self.of.get(key, ()) for key in keys]
        most = max([1, *map(len, known)])
        return torch.tensor([[*k, *[-1] * (most - len(k))] for k in known]).reshape(-1, most)


class Anchors(nn.Module):
    """Anchors ``[concepts, d]``, and a softmax over their cosines with states."""

    def __init__(self, weight: nn.Parameter, temperature: float = 0.06) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    @classmethod
    def of(cls, model: RetrvR1ForConditionalGeneration, count: int) -> Anchors:
        """Anchors for ``count`` concepts: the prototypes of the model's memory, if it has one.

        Raises:
            ConfigError: the memory has another number of prototypes.
        """
        memory = model.icm.memory
        if memory is None or not count:
            start = torch.randn(count, model.config.hidden_size)
            return cls(nn.Parameter(start.to(model.icm.pool.embedding.device)))
        if len(memory.prototypes) != count:
            raise ConfigError(
                f"the compressor's memory has {len(memory.prototypes)} prototypes, the data names "
                f"{count} concepts; set model.icm.memory_size to {count} and train from scratch"
            )
        return cls(memory.prototypes, memory.temperature)

    @torch.no_grad()
    def initialize(self, icm: InformationCompressor, rows: Tensor, goals: Tensor) -> None:
        """Sets each anchor to the mean direction of the pooled tokens of its concept's pictures.

        Their norm is √d; cosines do not depend on it, and optimizer steps turn them less.

        Args:
            rows: tower rows of pictures, ``[n, r, d]``.
            goals: concepts of the pictures, ``[n, g]``, padded with -1.
        """
        offsets = torch.arange(len(rows) + 1, device=rows.device) * rows.shape[1]
        content = icm.pooled(rows.flatten(0, 1), offsets)
        goals = goals.to(rows.device)
        row, place = (goals >= 0).nonzero(as_tuple=True)
        concept = goals[row, place]
        directions = nn.functional.normalize(content, dim=-1)[row]
        sums = torch.zeros_like(self.weight).index_add(0, concept, directions)
        self.weight[concept] = nn.functional.rms_norm(sums, sums.shape[-1:])[concept]

    def loss(self, states: Tensor, goals: Tensor, smoothing: float = 0.1) -> tuple[Tensor, float]:
        """Cross-entropy of the concepts of states, and the share whose nearest anchor is right.

        Args:
            states: states of entries, ``[n, d]``.
            goals: concepts of the entries, ``[n, g]``, padded with -1; entries without any are
                ignored.
        """
        known = goals >= 0
        kept = known.any(1)
        if not kept.any():
            return states.new_zeros(()), 0.0
        states, goals, known = states[kept], goals[kept], known[kept]
        normalize = nn.functional.normalize
        logits = normalize(states, dim=-1) @ normalize(self.weight, dim=-1).T / self.temperature
        logs = logits.float().log_softmax(-1)
        # Several concepts share the target equally.
        right = (logs.gather(1, goals.clamp(min=0)) * known).sum(1) / known.sum(1)
        loss = -(1 - smoothing) * right - smoothing * logs.mean(1)
        hits = ((logits.argmax(1)[:, None] == goals) & known).any(1)
        return loss.mean(), float(hits.float().mean())
