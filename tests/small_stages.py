"""Small stages from YAML files: options, fixtures and comparisons that tests of training share.

A test module takes the fixtures by assignment: ``build = small_stages.build``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from retrv_r1.train import loop, run
from retrv_r1.train.config import read_config
from retrv_r1.train.stage import Stage, build_stage

pytestmark = pytest.mark.skipif(not find_spec("accelerate"), reason="needs the train extra")

STEPS = 6
LOOP = {
    "steps": STEPS,
    "learning_rate": 1e-2,
    "warmup": 1,
    "save_every": 2,
    "log_every": 1,
    "threads": 1,
}
EMBED = {
    "vocab_size": 450,
    "side": 16,
    "embedding_dim": 16,
    "vision": {
        "widths": [8, 8, 16],
        "blocks": [0, 1, 1],
        "out_hidden_size": 32,
        "patch_size": 4,
        "spatial_merge_size": 2,
    },
    "text": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}
BACKBONE: dict[str, Any] = {
    "text": {
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        },
    },
    "icm": {"heads_pool": 2, "heads_relate": 2, "relate_dim": 8},
    "prompts": {"before_instruction": "<|im_start|>", "instruction": "Find."},
}
OPTIONS = {
    "embed": {
        "batch": 8,
        "cells_per_batch": 2,
        "named": 6,
        "texts": 4,
        "names": 5,
        "small_side": 8,
        "small_share": 0.5,
    },
    "words": {"batch": 8, "cells_per_batch": 2, "named": 6, "texts": 4, "names": 5},
    "read": {
        "descriptions": 3,
        "lists": 2,
        "texts": 3,
        "sizes": [3, 4],
        "names": 5,
        "start_steps": 5,
    },
    "align": {"descriptions": 3, "lists": 2, "size": 3, "names": 5},
    "lists": {
        "rows": 16,
        "sizes": [3, 4],
        "full_sizes": [3, 4],
        "full_every": 3,
        "names": 5,
        "reason": 0.0,
        "full_reason": 0.0,
        "unanswered": 0.3,
    },
    "sft": {
        "rows": 16,
        "sizes": [3, 4],
        "full_sizes": [3, 4],
        "full_every": 3,
        "names": 5,
        "descriptions": 2,
        "ideals": 6,
    },
}
MODELS = {"embed": EMBED, "read": BACKBONE}
BEFORE = {
    "words": {"embed": "embed"},
    "read": {"embed": "words"},
    "align": {"model": "read", "embed": "words"},
    "lists": {"model": "align", "embed": "words"},
    "sft": {"model": "lists", "embed": "words"},
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Curves have a test of their own; threads are put back."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(loop, "draw_curves", lambda *_: None)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def config(folder, pictographs) -> Callable[..., Path]:
    """Writes a stage's file; earlier stages are looked for in the folder."""

    def write(stage: str, /, **changes: Any) -> Path:
        values = {
            "data": str(pictographs),
            "out": str(folder / stage),
            "init": {n: str(folder / s / "final") for n, s in BEFORE.get(stage, {}).items()},
            "teacher": False,
            "model": MODELS.get(stage),
            "loop": LOOP,
            "stage": OPTIONS[stage],
        }
        path = folder / f"{stage}-{len(list(folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return path

    return write


@pytest.fixture(scope="module")
def trained(config, folder) -> Callable[[str], Path]:
    """A finished stage with all stages before it, each trained once."""

    def final(stage: str) -> Path:
        for before in BEFORE.get(stage, {}).values():
            final(before)
        target = folder / stage / "final"
        if not target.exists():
            short = config(stage, loop=LOOP | {"steps": 2})
            assert run(stage, short, dtype="float32") == target
        return target

    return final


@pytest.fixture
def build(config, trained) -> Callable[[str], Stage]:
    def fresh(stage: str) -> Stage:
        for before in BEFORE.get(stage, {}).values():
            trained(before)
        return build_stage(read_config(stage, config(stage)))

    return fresh


def flat(value: Any) -> list[Any]:
    """The tensors and numbers of a batch, in order."""
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in flat(value[key])]
    if isinstance(value, list | tuple):
        return [x for item in value for x in flat(item)]
    if hasattr(value, "__dataclass_fields__"):
        return flat({name: getattr(value, name) for name in value.__dataclass_fields__})
    return [value]


def same(ours: Any, theirs: Any) -> bool:
    ours, theirs = flat(ours), flat(theirs)
    if len(ours) != len(theirs):
        return False
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def curve(path: Path) -> list[dict[str, Any]]:
    """The lines of a curve file, but for what the clock decides."""
    rows = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s")} for r in rows]


class Killed(BaseException):
    pass
