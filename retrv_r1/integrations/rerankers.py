"""The reranker as a backend of the library rerankers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrv_r1.integrations.core import Ranker, library
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import ItemLike, ModeChoice

with library("rerankers", "rerankers"):
    from rerankers.documents import Document
    from rerankers.models.ranker import BaseRanker
    from rerankers.results import RankedResults, Result
    from rerankers.utils import prep_docs


class RetrvRanker(BaseRanker):
    """Ranks texts and documents of rerankers, whose pictures are base64 or paths.

    Args:
        model_name_or_path: ``"tiny"``, a directory, a hub id, or a reranker.
        verbose: without effect, for callers that pass it.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
        instruction: wording of the task; the checkpoint's own when None.
    """

    def __init__(
        self,
        model_name_or_path: str | Reranker = "tiny",
        verbose: int = 0,
        mode: ModeChoice = "fast",
        instruction: str | None = None,
    ) -> None:
        self.ranker = Ranker.of(model_name_or_path, mode, instruction)
        self.ranking_type = "listwise"

    def score(self, query: ItemLike, doc: str) -> float:
        """Score of a text on its own. A listwise model says more about a list: use :meth:`rank`."""
        return self.ranker.rank(query, [doc])[0].score

    def rank(
        self,
        query: ItemLike,
        docs: str | list[str] | Document | list[Document],
        doc_ids: list[str] | list[int] | None = None,
        metadata: list[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Ranks documents, best first.

        Raises:
            ItemError: a document is empty or its picture cannot be read; the message names it.
        """
        if isinstance(docs, list) and not docs:
            return RankedResults(results=[], query=query, has_scores=True)
        documents = prep_docs(docs, doc_ids, metadata)
        ranking = self.ranker.rank(query, [_item(document) for document in documents])
        results = [
            Result(document=documents[row.index], score=row.score, rank=rank)
            for rank, row in enumerate(ranking, start=1)
        ]
        return RankedResults(results=results, query=query, has_scores=True)


def _item(document: Document) -> dict[str, Any]:
    image: str | Path | None = None
    if document.base64:
        image = f"data:image/*;base64,{document.base64.rpartition(',')[2]}"
    elif document.image_path:
        image = Path(document.image_path)
    return {"text": document.text or None, "image": image, "id": document.doc_id}
