"""A stand-in for the model, and calls of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import typer
from typer.testing import CliRunner

from retrv_engine import EngineConfig, EngineDied, SGLangConfig, Stats
from retrv_r1.command.cli import app
from retrv_r1.images import load_image
from retrv_r1.rerank.feature_encoder import FeatureStats
from retrv_r1.types import (
    CheckpointError,
    DeviceError,
    Item,
    ItemLike,
    Mode,
    RankedItem,
    RankedResults,
    TokenCounts,
)


def run(*arguments: object, stdin: str | None = None, command: typer.Typer = app) -> Any:
    """The result of a command: ``exit_code``, ``stdout`` and ``stderr``."""
    return CliRunner().invoke(command, [str(word) for word in arguments], input=stdin)


class WordReranker:
    """Ranks by how many of the query's words a candidate's id or text has."""

    calls: list[dict] = []  # noqa: RUF012
    loaded: dict = {}  # noqa: RUF012
    placed: tuple[str | None, str | None] = (None, None)
    max_text_tokens = 0
    closed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).closed += 1

    def stats(self) -> tuple[Stats, FeatureStats]:
        engine = Stats(finished=1, computed_rows=30, cached_rows=10, pages=8, free_pages=5)
        return engine, FeatureStats(ram_hits=1, encoded=3)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        engine: str,
        config: EngineConfig | SGLangConfig,
        cache: Path | None,
        device: str | None,
        dtype: str | None,
        max_text_tokens: int,
    ) -> WordReranker:
        cls.placed = device, dtype
        cls.max_text_tokens = max_text_tokens
        if device == "cuda":
            raise DeviceError("no device cuda:\nsay cpu")
        if isinstance(config, SGLangConfig):
            cls.loaded = {"engine": engine, "url": config.url}
            raise EngineDied("the server has died;\nits log says why")
        cls.loaded = {"engine": engine, "weights": config.weights, "cache": cache}
        if name == "missing":
            raise CheckpointError("there is no model called missing;\nname a directory")
        return cls()

    def rank(
        self,
        query: ItemLike,
        candidates: Sequence[ItemLike],
        *,
        top_k: int | None = None,
        mode: Mode = "reason",
        instruction: str | None = None,
        votes: int = 1,
    ) -> RankedResults:
        if votes > 1 and mode == "fast":
            raise ValueError("fast mode has nothing to vote on")
        self.calls.append({"top_k": top_k, "mode": mode, "instruction": instruction})
        self.calls[-1]["votes"] = votes
        asked, items = Item.of(query), [Item.of(value) for value in candidates]
        for item in (asked, *items):
            if item.image is not None:
                load_image(item.image)
        if asked.text == "interrupt":
            raise KeyboardInterrupt
        words = (asked.text or "").split()
        hits = [sum(word in f"{i.id} {i.text}" for word in words) for i in items]
        order = sorted(range(len(items)), key=lambda k: -hits[k])
        ranking = [
            RankedItem(k, hits[k] / (len(words) or 1), items[k], k == order[0]) for k in order
        ]
        label, thinks = f"[{order[0] + 1}]", mode == "reason"
        return RankedResults(
            query=asked,
            answer=order[0],
            ranking=tuple(ranking[:top_k]),
            reasoning=f"close: {label}. inspect {label} yes. so {label}" if thinks else "",
            inspected=(order[0],) if thinks else (),
            mode=mode,
            model="words",
            timings={"features": 0.01, "decode": 0.02},
            tokens=TokenCounts(prompt=30, candidates=3 * len(items), inspected=5, generated=9),
        )
