"""Generation for Retrv-R1: requests, sampling, and the engines that serve them."""

from retrv_engine.base import DeadlineExceeded, Engine, Handle, RequestTooLarge, Stats
from retrv_engine.config import EngineConfig
from retrv_engine.local import LocalEngine
from retrv_engine.plain import PlainEngine
from retrv_engine.request import (
    FeatureRows,
    FeatureSource,
    LanguageModel,
    Output,
    Piece,
    Request,
    Sampling,
    Vocabulary,
)

__all__ = [
    "DeadlineExceeded",
    "Engine",
    "EngineConfig",
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
    "Sampling",
    "Stats",
    "Vocabulary",
]
