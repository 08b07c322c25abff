"""Retrv-R1: a reasoning multimodal reranker that reads each candidate as two tokens."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retrv_r1.types import (
    CheckpointError,
    DeviceError,
    Item,
    ItemError,
    RankedItem,
    RankedResults,
    RankRequest,
    RetrvError,
)

if TYPE_CHECKING:
    from retrv_r1.rerank.reranker import Reranker

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "DeviceError",
    "Item",
    "ItemError",
    "RankRequest",
    "RankedItem",
    "RankedResults",
    "Reranker",
    "RetrvError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "Reranker":  # torch and transformers are imported only when ranking is asked for
        return import_module("retrv_r1.rerank.reranker").Reranker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
