"""The engine that generates for a reranker."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from retrv_engine import (
    Engine,
    EngineConfig,
    LocalEngine,
    PlainEngine,
    SGLangConfig,
    SGLangEngine,
    Vocabulary,
)
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.types import EngineName


def make_engine(
    name: EngineName,
    model: RetrvR1ForConditionalGeneration,
    vocabulary: Vocabulary,
    config: EngineConfig | SGLangConfig | None,
    *,
    batch_size: int,
    checkpoint: str | Path | None,
) -> Engine | PlainEngine:
    """Makes an engine by its name; :class:`Reranker` documents the arguments.

    Raises:
        ValueError: an unknown name, or a config of another engine.
    """
    if name not in get_args(EngineName):
        known = ", ".join(map(repr, get_args(EngineName)))
        raise ValueError(f"engine must be one of {known}, got {name!r}")
    if name == "sglang":
        if isinstance(config, EngineConfig):
            raise ValueError("the sglang engine takes an SGLangConfig, not an EngineConfig")
        return SGLangEngine(model, vocabulary, config, checkpoint=checkpoint)
    if isinstance(config, SGLangConfig):
        raise ValueError(f'an SGLangConfig is for engine="sglang", not {name!r}')
    if name == "local":
        config = config or EngineConfig(max_sequences=batch_size)
        return LocalEngine(model, vocabulary, config)
    if config is not None and config.weights != "model":
        raise ValueError("the plain engine rounds no weights: use the local engine")
    return PlainEngine(model, vocabulary, batch_size)
