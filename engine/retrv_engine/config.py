"""Settings of the local engine, each default written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Weights = Literal["model", "float16", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """How much the local engine keeps and does at once.

    Args:
        cache_bytes: of the key-value cache; None for 1 GiB on a CPU, where memory is taken as it
            is needed, and four fifths of what is free on a GPU.
        page_size: rows of a page.
        max_sequences: requests that decode together.
        chunk_rows: rows of prompts that are prefilled in one step; what decodes waits so long.
        radix: whether rows are kept and found again; without, every request computes its own.
        weights: how the linear layers' weights are read: the model's own, or copies rounded to
            float16, or to int8 with a scale for each output, which a CPU reads faster (CPUs only).
    """

    cache_bytes: int | None = None
    page_size: int = 16
    max_sequences: int = 32
    chunk_rows: int = 512
    radix: bool = True
    weights: Weights = "model"

    def __post_init__(self) -> None:
        for name in ("page_size", "max_sequences", "chunk_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.weights not in (known := get_args(Weights)):
            raise ValueError(f"weights must be one of {', '.join(known)}, not {self.weights}")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ValueError(f"cache_bytes must be positive or None, not {self.cache_bytes}")
