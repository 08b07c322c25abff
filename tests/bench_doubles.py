"""What tests of the benchmarks share: a card and a small scale."""

from __future__ import annotations

import dataclasses
from typing import Any

from bench.gpu.models import Scale, Shape

CARD: dict[str, Any] = {
    "device": "cpu",
    "name": "a processor of some name",
    "cpu": {"name": "a processor of some name", "cores": 2, "threads": 2},
    "isas": ["scalar"],
    "load": [0.1, 0.2, 0.3],
    "memory_gib": 8.0,
    "cache_mib": 32,
    "versions": {"torch": "2"},
    "commit": "0123abcd",
    "dirty": True,
    "problems": [],
    "ceilings": {
        "read": {"median": 1e3, "q1": 9e2, "q3": 2e3, "rounds": 3},
        "gemm": {"median": 1e6, "q1": 9e5, "q3": 2e6, "rounds": 3},
    },
}

SMALL = dataclasses.replace(
    Scale.quick(),
    models=("tiny", "tiny"),
    shapes=(Shape(3, 4, 2),),
    tokens=4,
    inspections=1,
    sequences=(2,),
    steps=2,
    pictures=(2, ((4, 4),)),
    compiling=None,
    seconds=0.0,
)
