"""How the clients of other rerank services ask and what they read; :func:`choose` tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrv_r1.serve.dialects.base import Answer, Dialect, Example
from retrv_r1.serve.dialects.cohere import CohereV2
from retrv_r1.serve.dialects.infinity import Infinity
from retrv_r1.serve.dialects.llamacpp import LlamaCpp
from retrv_r1.serve.dialects.score import Score
from retrv_r1.serve.dialects.sglang import Sglang
from retrv_r1.serve.dialects.superset import CohereV1, Superset, Vllm
from retrv_r1.serve.dialects.tei import Tei
from retrv_r1.serve.dialects.voyage import Voyage

__all__ = ["DIALECTS", "RERANK_PATHS", "SCORE_PATHS", "Answer", "Dialect", "Example", "choose"]

DIALECTS: tuple[Dialect, ...] = (
    Score(),
    CohereV2(),
    Tei(),
    LlamaCpp(),
    Infinity(),
    Voyage(),
    CohereV1(),
    Sglang(),
    Vllm(),
    Superset(),
)
"""In the order in which they are asked; the last takes all."""

RERANK_PATHS = (
    *("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranks"),
    *("/reranking", "/v1/reranking"),
)
SCORE_PATHS = Score.paths


def named(name: str) -> Dialect | None:
    """The dialect of a name; None if there is none."""
    return next((one for one in DIALECTS if one.name == name), None)


def choose(path: str, body: Mapping[str, Any], forced: str | None = None) -> Dialect:
    """The dialect of a request.

    Args:
        path: route.
        body: body; empty if it could not be read.
        forced: name of the dialect that client or server settled on; scores of pairs have one form.
    """
    if forced is not None and path not in SCORE_PATHS and (dialect := named(forced)) is not None:
        return dialect
    return next(one for one in DIALECTS if one.accepts(path, body))
