"""A softmax over names, whose classes lie where the teacher's sentence encoder puts the names.

A contrastive loss compares with the negatives of its step; this one compares with thousands of
names. Because a name's class is a linear map of its sentence embedding, pictures and texts take
places that names never seen have too: an open vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

SCALE = 1 / 0.06
"""Factor of the cosines of content tokens and of states of a language model."""
_ALIKE = 0.8
"""Cosine from which two names are no negatives of one another."""


class Naming(nn.Module):
    """Classes of names, ``[things, e]``: a map of the teacher's vectors, and what is learned.

    Without a teacher only what is learned remains, and the vocabulary is closed.

    Args:
        taught: the teacher's unit vectors of the names, ``[things, 384]``; zeros without a teacher.
        width: width ``e`` of the vectors that are named.
    """

    taught: Tensor

    def __init__(self, taught: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("taught", taught, persistent=False)
        self.has_teacher = bool(taught.any())
        self.project = nn.Linear(taught.shape[1], width, bias=False)
        nn.init.orthogonal_(self.project.weight)
        # What this name means beyond its sentence embedding; sparse use keeps it small.
        self.own = nn.Embedding(len(taught), width)
        if self.has_teacher:
            nn.init.zeros_(self.own.weight)
        else:
            nn.init.normal_(self.own.weight, std=width**-0.5)

    def losses(
        self,
        vectors: Tensor,
        things: Tensor,
        scale: Tensor | float,
        others: Tensor,
        smoothing: float = 0.05,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the names of unit vectors, and the share named rightly.

        With a teacher it is the mean of two: with what is learned of each name, and by the
        sentence embedding alone, for which the share is. Vectors whose name is not known do not
        count.

        Args:
            vectors: unit vectors, ``[b, e]``.
            things: number of the name of each, ``[b]``; -1 where it is not known.
            scale: factor of cosines.
            others: numbers of the names that are negatives of all, ``[k]``.
        """
        vectors, things = vectors[things >= 0], things[things >= 0]
        if not len(things):
            return vectors.sum(), vectors.new_zeros(())
        known, goal = torch.cat([things, others]).unique(return_inverse=True)
        goal = goal[: len(things)]
        taught = self.taught[known]
        alike = taught[goal] @ taught.T > _ALIKE
        alike[torch.arange(len(goal), device=goal.device), goal] = False
        general = self.project(taught)
        total, hits = vectors.new_zeros(()), vectors.new_zeros(())
        parts = (general + self.own(known), general) if self.has_teacher else (self.own(known),)
        for classes in parts:
            logits = scale * vectors @ normalize(classes, dim=-1).T
            logits = logits.masked_fill(alike, -1e4)
            total = total + _smoothed(logits, goal, ~alike, smoothing) / len(parts)
            hits = (logits.argmax(1) == goal).float().mean()
        return total, hits


def _smoothed(logits: Tensor, goal: Tensor, kept: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy smoothed over the classes that are ``kept``, ``[b, c]``."""
    logs = logits.float().log_softmax(-1)
    mean = (logs * kept).sum(1) / kept.sum(1)
    return (1 - smoothing) * cross_entropy(logits.float(), goal) - smoothing * mean.mean()
