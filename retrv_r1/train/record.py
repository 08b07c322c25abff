"""The record of a training run, which says where a checkpoint comes from."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
import yaml

from retrv_r1.train.machine import Machine

if TYPE_CHECKING:
    from retrv_r1.train.config import RunConfig
    from retrv_r1.train.stage import Stage

FOLDER = Path(__file__).parent


def write_record(config: RunConfig, stage: Stage, machine: Machine) -> Path:
    """Writes ``record.json`` beside the curves: config, seed, data hash, time, versions."""
    described = [folder / "manifest.json" for folder in config.data]
    manifests = [path.read_bytes() for path in (*described, *config.lists) if path.is_file()]
    lines = (config.out / f"{config.name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    logged = [row for row in rows if "seconds" in row]
    record = {
        "stage": config.name,
        "config": _settings(config),
        "seed": config.loop.seed,
        "data_hash": [hashlib.sha256(manifest).hexdigest() for manifest in manifests],
        "steps": stage.stats.steps if stage.schedule and stage.stats else config.loop.steps,
        "minutes": stage.schedule.seconds / 60 if stage.schedule else None,
        "hours": round(sum(row["seconds"] for row in logged) / 3600, 3),
        "last": logged[-1] if logged else None,
        "spent": _speed(stage),
        "machine": describe_machine(machine),
        "versions": versions(),
    }
    path = config.out / "record.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _settings(config: RunConfig) -> dict[str, Any]:
    """The configuration file, with all options of loop and stage as they were used."""
    settings = yaml.safe_load(config.source.read_text(encoding="utf-8"))
    settings.pop("gpu", None)
    return settings | {"loop": asdict(config.loop), "stage": asdict(config.stage)}


def describe_machine(machine: Machine) -> dict[str, Any]:
    """What a record says of the machine."""
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
    """Commit of the checkout that contains this file; None outside a checkout."""
    return git("rev-parse", "HEAD")


def slug(name: str) -> str:
    """A folder name made of a card's name: letters, digits and ``-``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python, PyTorch and transformers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _speed(stage: Stage) -> dict[str, Any] | None:
    """Speed over the whole run, validation included, and the seconds of its parts."""
    stats = stage.stats
    if stats is None:
        return None
    whole = stats.seconds["all"]
    return {
        "steps_per_second": round(stats.steps / whole, 3),
        "samples_per_second": round(stats.samples / whole, 1),
        "seconds": {part: round(seconds, 2) for part, seconds in stats.seconds.items()},
    }
