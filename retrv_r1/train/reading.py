"""What the first stage knows of an item, as a goal for a language model that reads the item."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from retrv_r1.train.initialize import nearest_rotation


class Reading(nn.Module):
    """A linear map from states ``[b, d]`` to first-stage vectors ``[b, e]``.

    It begins with the rotation that comes nearest to ``to_vector``, the map from tower rows to
    first-stage vectors: content tokens begin as its inverse (``initialize.py``), so states that
    learn their item's vector can be compared with them.

    Args:
        to_vector: linear map of :func:`retrv_r1.train.initialize.fit_rows`, ``[e, d]``.
    """

    def __init__(self, to_vector: Tensor) -> None:
        super().__init__()
        self.rotation = nn.Parameter(nearest_rotation(to_vector))

    def loss(self, states: Tensor, vectors: Tensor) -> tuple[Tensor, float]:
        """One minus the mean cosine of states and vectors, and that cosine.

        Args:
            vectors: the first stage's unit vectors; zeros where it has none, which do not count.
        """
        known = vectors.any(-1)
        if not known.any():
            return states.sum() * 0, 0.0
        likeness = cosine_similarity(states[known] @ self.rotation.T, vectors[known]).mean()
        return 1 - likeness, float(likeness.detach())
