"""The reranker as a document compressor of LangChain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrv_r1.integrations.core import Ranker, library
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import ModeChoice

with library("langchain", "langchain_core"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict, PrivateAttr


class RetrvCompressor(BaseDocumentCompressor):
    """Keeps the documents that fit the query best, in order, with ``relevance_score`` in metadata.

    Args:
        model: a reranker, ``"tiny"``, a directory, or a hub id.
        top_n: number of documents to keep; all when None.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
        instruction: wording of the task; the checkpoint's own when None.
        image_key: key of a document's metadata under which its picture is, if it has one: a path,
            bytes, a PIL picture or a ``data:`` URI.
    """

    model: Any = "tiny"
    top_n: int | None = None
    mode: ModeChoice = "fast"
    instruction: str | None = None
    image_key: str = "image"
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    _ranker: Ranker = PrivateAttr()

    def __init__(self, model: str | Reranker = "tiny", **fields: Any) -> None:
        super().__init__(model=model, **fields)
        self._ranker = Ranker.of(model, self.mode, self.instruction)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the best documents, best first.

        Raises:
            ItemError: a document is empty or its picture cannot be read; the message names it.
        """
        items = [
            {"text": found.page_content or None, "image": found.metadata.get(self.image_key)}
            for found in documents
        ]
        return [
            documents[row.index].model_copy(
                update={"metadata": documents[row.index].metadata | {"relevance_score": row.score}}
            )
            for row in self._ranker.rank(query, items, top_k=self.top_n)
        ]
