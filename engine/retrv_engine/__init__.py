"""Generation for Retrv-R1: requests, sampling, and the engines that serve them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from retrv_engine.base import (
    DeadlineExceeded,
    Engine,
    EngineDied,
    EngineMissing,
    Handle,
    RequestTooLarge,
    Stats,
)
from retrv_engine.config import EngineConfig, SGLangConfig
from retrv_engine.model import LanguageModel
from retrv_engine.request import (
    FeatureRows,
    FeatureSource,
    Output,
    Piece,
    Request,
    Sampling,
    Vocabulary,
)

if TYPE_CHECKING:
    from retrv_engine.local import LocalEngine
    from retrv_engine.plain import PlainEngine
    from retrv_engine.sglang.engine import SGLangEngine

__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineConfig",
    "EngineDied",
    "EngineMissing",
    "FeatureRows",
    "FeatureSource",
    "Handle",
    "LanguageModel",
    "LocalEngine",
    "Output",
    "Piece",
    "PlainEngine",
    "Request",
    "RequestTooLarge",
    "SGLangConfig",
    "SGLangEngine",
    "Sampling",
    "Stats",
    "Vocabulary",
]

# Imported when first used. They need transformers, which a worker of SGLang can import only after
# it has been prepared.
_ENGINES = {"LocalEngine": "local", "PlainEngine": "plain", "SGLangEngine": "sglang.engine"}


def __getattr__(name: str) -> Any:
    if name not in _ENGINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ENGINES[name]}"), name)
