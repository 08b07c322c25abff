"""The reranker as a ranker component of Haystack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retrv_r1.integrations.core import Ranker, library
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import ModeChoice

with library("haystack", "haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict


@component
class RetrvRanker:
    """Ranks documents for a query and sets their scores.

    A document's picture is its ``blob`` (of a picture's MIME type, or of none) or what its
    metadata has under ``image_key``.

    Args:
        model: ``"tiny"``, a directory, a hub id, or a reranker, with which a pipeline cannot be
            saved.
        top_k: number of documents to return; all when None.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
        instruction: wording of the task; the checkpoint's own when None.
        image_key: key of a document's metadata: a path, bytes or a ``data:`` URI.
    """

    def __init__(
        self,
        model: str | Reranker = "tiny",
        top_k: int | None = None,
        mode: ModeChoice = "fast",
        instruction: str | None = None,
        image_key: str = "image",
    ) -> None:
        self.model, self.top_k, self.mode = model, top_k, mode
        self.instruction, self.image_key = instruction, image_key
        self._ranker: Ranker | None = None

    def warm_up(self) -> None:
        """Loads the model; Haystack calls it before a pipeline runs."""
        if self._ranker is None:
            self._ranker = Ranker.of(self.model, self.mode, self.instruction)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The best documents, best first.

        Raises:
            ItemError: a document is empty or its picture cannot be read; the message names it.
        """
        self.warm_up()
        assert self._ranker is not None
        items = [self._item(document) for document in documents]
        ranking = self._ranker.rank(query, items, top_k=self.top_k if top_k is None else top_k)
        return {"documents": [replace(documents[row.index], score=row.score) for row in ranking]}

    def to_dict(self) -> dict[str, Any]:
        """The component as a pipeline is saved.

        Raises:
            ValueError: it was made with a reranker instead of a checkpoint's name.
        """
        if not isinstance(self.model, str):
            raise ValueError("a ranker with a reranker of its own cannot be saved: name its model")
        return default_to_dict(
            self,
            model=self.model,
            top_k=self.top_k,
            mode=self.mode,
            instruction=self.instruction,
            image_key=self.image_key,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RetrvRanker:
        """The component of a saved pipeline."""
        loaded: RetrvRanker = default_from_dict(cls, data)
        return loaded

    def _item(self, document: Document) -> dict[str, Any]:
        image = document.meta.get(self.image_key)
        blob = document.blob
        if image is None and blob and (blob.mime_type or "image/").startswith("image/"):
            image = blob.data
        return {"text": document.content, "image": image, "id": document.id}
