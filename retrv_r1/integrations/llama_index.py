"""The reranker as a node postprocessor of LlamaIndex."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from retrv_r1.integrations.core import Ranker, library
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import ItemError, ModeChoice

with library("llama-index", "llama_index"):
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import (
        BaseNode,
        ImageNode,
        MetadataMode,
        NodeWithScore,
        QueryBundle,
    )


class RetrvPostprocessor(BaseNodePostprocessor):
    """Keeps the nodes that fit the query best, in order and with their new scores.

    A query bundle may have a picture (``image_path``); an ``ImageNode`` has its picture and text.

    Args:
        model: a reranker, ``"tiny"``, a directory, or a hub id.
        top_n: number of nodes to keep; all when None.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
        instruction: wording of the task; the checkpoint's own when None.
    """

    top_n: int | None = None
    mode: ModeChoice = "fast"
    instruction: str | None = None
    _ranker: Ranker = PrivateAttr()

    def __init__(self, model: str | Reranker = "tiny", **fields: Any) -> None:
        super().__init__(**fields)
        self._ranker = Ranker.of(model, self.mode, self.instruction)

    @classmethod
    def class_name(cls) -> str:
        return "RetrvPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs a query: pass query_bundle or query_str")
        picture = query_bundle.image_path
        query = {
            "text": query_bundle.query_str or None,
            "image": Path(picture) if picture else None,
        }
        items = [_item(node.node) for node in nodes]
        return [
            NodeWithScore(node=nodes[row.index].node, score=row.score)
            for row in self._ranker.rank(query, items, top_k=self.top_n)
        ]


def _item(node: BaseNode) -> dict[str, Any]:
    """A node's text, and the picture of an ``ImageNode``, which is never fetched from the web."""
    if not isinstance(node, ImageNode):
        return {"text": node.get_content(metadata_mode=MetadataMode.EMBED), "id": node.node_id}
    image: bytes | Path | None = None
    if node.image is not None:
        try:
            image = base64.b64decode(node.image, validate=True)
        except ValueError as error:
            raise ItemError(f"node {node.node_id}: its image is not base64") from error
    elif node.image_path:
        image = Path(node.image_path)
    elif node.image_url:
        raise ItemError(
            f"node {node.node_id} has only the address of its picture: download it to image_path"
        )
    return {"text": node.text or None, "image": image, "id": node.node_id}
