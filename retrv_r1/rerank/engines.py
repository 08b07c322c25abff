"""The engine that generates for a reranker."""

from __future__ import annotations

from pathlib import Path

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

    Args:
        config: settings that :func:`retrv_r1.rerank.options.check_settings` let through.
    """
    if name == "sglang":
        assert not isinstance(config, EngineConfig), "check_settings refuses it"
        return SGLangEngine(model, vocabulary, config, checkpoint=checkpoint)
    assert not isinstance(config, SGLangConfig), "check_settings refuses it"
    if name == "local":
        config = config or EngineConfig(max_sequences=batch_size)
        return LocalEngine(model, vocabulary, config)
    return PlainEngine(model, vocabulary, batch_size)
