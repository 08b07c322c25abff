"""Settings of the engines, each default written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

Weights = Literal["model", "float16", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """How much the local engine keeps and does at once.

    Args:
        cache_bytes: of the key-value cache; None for 1 GiB on a CPU, where memory is taken as it
            is needed, and on a GPU for four fifths of what is free, less where that leaves the rest
            under 4 GiB.
        page_size: rows of a page.
        max_sequences: requests that decode together.
        chunk_rows: rows of prompts that are prefilled in one step; what decodes waits so long. None
            for 512 on a CPU, and 4,096 on a GPU, an estimate that nothing has measured.
        graphs: whether decode steps have few fixed shapes, which a GPU replays as CUDA graphs; None
            for yes on a GPU. On a CPU the same shapes run eagerly, padding rows and all.
        radix: whether rows are kept and found again; without, every request computes its own.
        weights: how the linear layers' weights are read: the model's own, or copies rounded to
            float16, or to int8 with a scale for each output, which a CPU reads faster (CPUs only).
    """

    cache_bytes: int | None = None
    page_size: int = 16
    max_sequences: int = 32
    chunk_rows: int | None = None
    graphs: bool | None = None
    radix: bool = True
    weights: Weights = "model"

    def __post_init__(self) -> None:
        for name in ("page_size", "max_sequences", "chunk_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.weights not in (known := get_args(Weights)):
            raise ValueError(f"weights must be one of {', '.join(known)}, not {self.weights}")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ValueError(f"cache_bytes must be positive or None, not {self.cache_bytes}")

    def on(self, device: str) -> EngineConfig:
        """The same with the defaults of a device type ("cpu", "cuda") in the place of None.

        ``cache_bytes`` depends on what is free, and stays.
        """
        gpu = device == "cuda"
        rows = (4096 if gpu else 512) if self.chunk_rows is None else self.chunk_rows
        return replace(self, chunk_rows=rows, graphs=gpu if self.graphs is None else self.graphs)


@dataclass(frozen=True)
class SGLangConfig:
    """Which SGLang server is used, and how.

    Args:
        url: address of a running server (``python -m retrv_engine.sglang.worker.server``);
            None starts one here, which ends with the engine.
        arguments: of the server that is started, by SGLang's names: ``{"tp_size": 2}``.
        python: of the environment that SGLang is installed in. None looks for it in the one that
            ``make sglang-cpu`` makes, then in this one.
        max_requests: sent to the server at once; the others wait here, by priority.
        stream_rows: tokens after which a server says what it has written so far.
        start_seconds: that a server may take until it answers.
        silent_seconds: without a word after which a server counts as dead.
    """

    url: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    python: Path | None = None
    max_requests: int = 64
    stream_rows: int = 16
    start_seconds: float = 600.0
    silent_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_requests", "stream_rows", "start_seconds", "silent_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, not {self.url!r}")
        if self.url is not None and self.arguments:
            raise ValueError("arguments are of a server that is started here, not of one at a url")
