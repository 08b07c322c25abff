"""A ranking as JSON values, in the form of rerank services, and what it cost."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict
from typing import Any

from retrv_engine import Stats
from retrv_r1.rerank.feature_encoder import FeatureStats
from retrv_r1.types import RankedResults


def to_response(
    results: RankedResults, *, request_id: str | None = None, created: int | None = None
) -> dict[str, Any]:
    """A ranking in the form of Cohere and Jina, with our own fields under ``retrv``.

    ``usage`` counts rows that the language model read (prompt with candidates, and inspected
    candidates) as prompt tokens, and written tokens as completion tokens. Timings are seconds.
    ``truncated`` says that only the start of a text was read.

    Args:
        request_id: id of the response; random by default.
        created: Unix time; now by default.
    """
    tokens = results.tokens
    read = tokens.prompt + tokens.inspected
    return {
        "id": request_id or f"rerank-{uuid.uuid4().hex}",
        "object": "rerank",
        "created": int(time.time()) if created is None else created,
        "model": results.model,
        "results": [
            {
                "index": row.index,
                "id": row.item.id,
                "relevance_score": row.score,
                "truncated": row.truncated,
            }
            for row in results
        ],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": tokens.generated,
            "total_tokens": read + tokens.generated,
            "image_tokens": tokens.pictures,
            "cached_tokens": tokens.cached,
        },
        "retrv": {
            "answer": results.answer,
            "reasoning": results.reasoning,
            "inspected": list(results.inspected),
            "timings": dict(results.timings),
            "mode": results.mode,
            "device": results.device,
            "dtype": results.dtype,
            "well_formed": results.well_formed,
            "query_truncated": results.query_truncated,
            "none_of_these": results.none_of_these,
        },
    }


def to_stats(results: RankedResults, engine: Stats, features: FeatureStats) -> dict[str, Any]:
    """Costs as JSON values: ``timings`` and ``tokens`` of the ranking, ``engine``, ``features``."""
    return {
        "timings": dict(results.timings),
        "tokens": asdict(results.tokens),
        "engine": asdict(engine) | {"hit_rate": engine.hit_rate},
        "features": asdict(features) | {"hit_rate": features.hit_rate},
    }
