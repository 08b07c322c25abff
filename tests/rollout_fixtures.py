"""A pytest plugin: rollouts of a small model that tends to inspect and to answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retrv_r1 import EngineConfig, Item, Reranker, Sampling
from retrv_r1.rollout import RetrvRollout, Task

NUCLEUS = Sampling(temperature=0.8, top_p=0.9, max_reasoning_tokens=12, max_inspections=2)


@pytest.fixture
def tasks(picture) -> list[Task]:
    """Two tasks with a candidate in common: pictures, texts, and both."""
    shown = [Item(image=picture(n, 64 if n % 2 else 48, 48)) for n in range(4)]
    both = Item(text="a blue bird", image=picture(7))
    return [
        Task("a red apple", [*shown, both], 1),
        Task(Item(image=picture(9)), [shown[2], "high in the sky", both], 0, "Find it."),
    ]


@pytest.fixture
def roller(checkpoint, tasks) -> Iterator[Callable[..., RetrvRollout]]:
    """Makes rollouts over a model of its own, which tests may train."""
    made: list[Reranker] = []

    def make(sampling: Sampling = NUCLEUS, **options: Any) -> RetrvRollout:
        model, processor, _ = checkpoint
        engine = options.pop("engine", "local")
        config = EngineConfig(max_sequences=4, cache_bytes=2**22) if engine == "local" else None
        own = copy.deepcopy(model)
        made.append(Reranker(own, processor, engine=engine, config=config))
        return RetrvRollout(made[-1], tasks, sampling, **options)

    yield make
    for reranker in made:
        reranker.close()
