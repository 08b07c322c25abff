"""The record of a training run: what is needed to say where a checkpoint comes from."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
import yaml

if TYPE_CHECKING:
    from retrv_r1.train.build import Settings


def write_record(settings: Settings, out: Path) -> Path:
    """Writes ``record.json`` beside the curves: config, seed, data hash, hours, versions."""
    manifest = settings.data / "manifest.json"
    rows = [
        json.loads(line)
        for line in (out / f"{settings.name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    logged = [row for row in rows if "seconds" in row]
    record = {
        "stage": settings.name,
        "config": yaml.safe_load(settings.source.read_text(encoding="utf-8")),
        "seed": settings.loop.seed,
        "data_hash": json.loads(manifest.read_text(encoding="utf-8"))["hash"],
        "steps": settings.loop.steps,
        "hours": round(sum(row["seconds"] for row in logged) / 3600, 3),
        "last": logged[-1] if logged else None,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    path = out / "record.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path
