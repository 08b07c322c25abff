"""Settings of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

Weights = Literal["model", "float16", "int8"]


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError unless the option ``name`` is a whole number of at least ``least``."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class EngineConfig:
    """Settings of :class:`LocalEngine`.

    Args:
        cache_bytes: size of the key-value cache. None means 1 GiB on a CPU, where memory is taken
            as it is needed. On a GPU it means four fifths of the free memory, or less (down to one
            half) where that would leave under 4 GiB.
        page_size: number of rows of a page.
        max_sequences: number of requests that run together.
        chunk_rows: number of prompt rows prefilled in one step; requests that decode wait for them.
            None means 512 on a CPU, and 4,096 on a GPU, which is an estimate and not measured.
        graphs: whether decode steps have a few fixed shapes, which a GPU replays as CUDA graphs.
            None means yes on a GPU. On a CPU the same shapes run eagerly, padding included.
        radix: whether requests find rows of others in the cache.
        weights: weights that the linear layers read: the model's own, or copies rounded to float16,
            or to int8 with a scale for each output. A CPU reads copies faster; a GPU has none.
    """

    cache_bytes: int | None = None
    page_size: int = 16
    max_sequences: int = 32
    chunk_rows: int | None = None
    graphs: bool | None = None
    radix: bool = True
    weights: Weights = "model"

    def __post_init__(self) -> None:
        for name in ("page_size", "max_sequences"):
            check_whole(name, getattr(self, name), 1)
        for name in ("chunk_rows", "cache_bytes"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, 1)
        if self.weights not in (known := get_args(Weights)):
            raise ValueError(f"weights must be one of {', '.join(known)}, not {self.weights}")

    def on(self, device: str) -> EngineConfig:
        """A copy in which the defaults of a device type ("cpu", "cuda") replace None.

        ``cache_bytes`` depends on the free memory and is kept.
        """
        gpu = device == "cuda"
        rows = (4096 if gpu else 512) if self.chunk_rows is None else self.chunk_rows
        return replace(self, chunk_rows=rows, graphs=gpu if self.graphs is None else self.graphs)


@dataclass(frozen=True)
class SGLangConfig:
    """Settings of :class:`SGLangEngine`.

    Args:
        url: address of a running server (``python -m retrv_engine.sglang.worker.server``) with the
            model's checkpoint; None starts one that ends with the engine.
        arguments: arguments of the server to start, by SGLang's names: ``{"tp_size": 2}``.
        python: interpreter of an environment with SGLang; by default the one that
            ``make sglang-cpu`` makes, then this one.
        max_requests: number of requests sent to the server at once; others wait, by priority.
        stream_rows: number of tokens after which the server reports what it has written.
        start_seconds: time limit for the server to answer after its start.
        silent_seconds: time without an answer after which the server is asked for a sign of life.
            Without one for as long again, or for 10 seconds, it counts as dead.
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
            raise ValueError("arguments are for a server to start: leave out either them or url")
