"""Retrv-R1: a reasoning multimodal reranker that reads each candidate as two tokens."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retrv_r1.types import (
    Bill,
    CheckpointError,
    DeviceError,
    Item,
    ItemError,
    ItemLike,
    RankedItem,
    RankedResults,
    RankRequest,
    RetrvError,
    TokenCounts,
)

if TYPE_CHECKING:
    from retrv_engine import (
        DeadlineExceeded,
        EngineConfig,
        EngineDied,
        EngineMissing,
        RequestTooLarge,
        Sampling,
        SGLangConfig,
    )
    from retrv_r1.rerank.reranker import Reranker

__version__ = "0.1.0"
__all__ = [
    "Bill",
    "CheckpointError",
    "DeadlineExceeded",
    "DeviceError",
    "EngineConfig",
    "EngineDied",
    "EngineMissing",
    "Item",
    "ItemError",
    "ItemLike",
    "RankRequest",
    "RankedItem",
    "RankedResults",
    "RequestTooLarge",
    "Reranker",
    "RetrvError",
    "SGLangConfig",
    "Sampling",
    "TokenCounts",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Imports the names that need torch or transformers when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "retrv_r1.rerank.reranker" if name == "Reranker" else "retrv_engine"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
