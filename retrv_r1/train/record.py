"""The record of a training run: what is needed to say where a checkpoint comes from."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
import yaml

from retrv_r1.train.machine import Machine

if TYPE_CHECKING:
    from retrv_r1.train.build import Settings
    from retrv_r1.train.loop import Stage

FOLDER = Path(__file__).parent


def write_record(settings: Settings, out: Path, stage: Stage, machine: Machine) -> Path:
    """Writes ``record.json`` beside the curves: config, seed, data hash, time, versions."""
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
        "steps": stage.spent.steps if stage.schedule and stage.spent else settings.loop.steps,
        "minutes": stage.schedule.seconds / 60 if stage.schedule else None,
        "hours": round(sum(row["seconds"] for row in logged) / 3600, 3),
        "last": logged[-1] if logged else None,
        "spent": _spent(stage),
        "machine": describe(machine),
        "versions": versions(),
    }
    path = out / "record.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def describe(machine: Machine) -> dict[str, Any]:
    """The machine of a record."""
    gpu = machine.device.type == "cuda"
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(machine.device) if gpu else "cpu",
        "dtype": str(machine.dtype).removeprefix("torch."),
        "workers": machine.workers,
    }


def git(*words: str) -> str | None:
    """The output of a git command in this file's checkout; None without git or a checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit_here() -> str | None:
    """The commit of this file's checkout; None without git or a checkout."""
    return git("rev-parse", "HEAD")


def slug(name: str) -> str:
    """A card's name as a folder's: letters, digits and ``-``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def versions() -> dict[str, str]:
    """The versions of a record."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _spent(stage: Stage) -> dict[str, Any] | None:
    """Speed over the whole run, validation included, and where its seconds went."""
    spent = stage.spent
    if spent is None:
        return None
    whole = spent.seconds["all"]
    return {
        "steps_per_second": round(spent.steps / whole, 3),
        "samples_per_second": round(spent.samples / whole, 1),
        "seconds": {part: round(seconds, 2) for part, seconds in spent.seconds.items()},
    }
