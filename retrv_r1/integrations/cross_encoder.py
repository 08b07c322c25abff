"""The reranker in the form of sentence-transformers' ``CrossEncoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrv_r1.integrations.core import Ranker
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import ItemLike, ModeChoice


class CrossEncoder:
    """Scores pairs and ranks documents, by the names and with the results of ``CrossEncoder``.

    Queries and documents are texts, PIL pictures, ``{"text": …, "image": …}``, or anything else
    that makes an item. Scores are probabilities among the documents of a query; there is no
    activation to choose, and the engine chooses the batch.

    Args:
        model: a reranker, ``"tiny"``, a directory, or a hub id.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
    """

    def __init__(self, model: str | Reranker = "tiny", *, mode: ModeChoice = "fast") -> None:
        self.ranker = Ranker.of(model, mode)

    def predict(
        self,
        inputs: Sequence[Any],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Any,
    ) -> np.ndarray[Any, np.dtype[np.float32]] | np.float32 | Tensor | list[Tensor]:
        """Scores of (query, document) pairs ``[n]``, in their order; of one pair, its score.

        All pairs of a query belong into one call: see :meth:`Ranker.score_pairs`.

        Args:
            prompt: wording of the task; the checkpoint's own when None.
            batch_size: without effect, for callers that pass it.
            show_progress_bar: without effect, for callers that pass it.
            convert_to_numpy: False for a list of tensors.
            convert_to_tensor: True for one tensor.
            options: other options of ``CrossEncoder``, as long as they ask for nothing.
        Raises:
            ItemError: a document or query cannot be used; the message names the pair.
            ValueError: an option that a listwise model does not have, such as ``activation_fn``.
        """
        _refuse(prompt_name=prompt_name, **options)
        single = len(inputs) == 2 and not isinstance(inputs[0], tuple | list)
        pairs = [tuple(inputs)] if single else inputs
        scores = torch.tensor(self.ranker.score_pairs(pairs, instruction=prompt))
        if convert_to_tensor:
            return scores[0] if single else scores
        if convert_to_numpy:
            return scores.numpy()[0] if single else scores.numpy()
        return scores[0] if single else list(scores)

    def rank(
        self,
        query: ItemLike,
        documents: Sequence[ItemLike],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Documents by relevance: ``corpus_id``, ``score`` and, if asked for, the document.

        Args:
            top_k: number of documents to return; all when None.
            return_documents: whether a result has its document, as it was given, under ``text``.
            prompt: wording of the task; the checkpoint's own when None.
            batch_size: without effect, for callers that pass it.
            show_progress_bar: without effect, for callers that pass it.
            options: other options of ``CrossEncoder``, as long as they ask for nothing.
        Raises:
            ItemError: a document or the query cannot be used; the message names it.
            ValueError: an option that a listwise model does not have, such as ``activation_fn``.
        """
        _refuse(prompt_name=prompt_name, **options)
        ranking = self.ranker.rank(query, documents, top_k=top_k, instruction=prompt)
        return [
            {"corpus_id": row.index, "score": row.score}
            | ({"text": documents[row.index]} if return_documents else {})
            for row in ranking
        ]


def _refuse(**options: Any) -> None:
    """Refuses options that would change scores; None, False and 0 ask for nothing."""
    for name, value in options.items():
        if value is not None and value is not False and value != 0:
            raise ValueError(
                f"a listwise reranker has no {name}: leave it out (wording of the task: prompt)"
            )
