"""Generation for Retrv-R1: requests, sampling, and the engines that serve them."""

from retrv_engine.plain import PlainEngine
from retrv_engine.request import (
    LanguageModel,
    Output,
    Request,
    RowSpan,
    Sampling,
    Vocabulary,
)

__all__ = [
    "LanguageModel",
    "Output",
    "PlainEngine",
    "Request",
    "RowSpan",
    "Sampling",
    "Vocabulary",
]
