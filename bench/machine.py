"""The machine: what it is, and how fast it reads and multiplies while a suite runs."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.device import Device
from bench.harness import Spread
from retrv_r1.command import doctor

ROOT = Path(__file__).parent.parent
# Where the system does not say: more than most caches.
_UNKNOWN_CACHE = 128 * 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def card(device: str, commit: str | None = None) -> dict[str, Any]:
    """What the numbers depend on, as JSON values, before anything has run.

    Args:
        device: "cpu" or "cuda"; of several GPUs the first.
        commit: of the code, where git cannot tell.
    """
    known = doctor.report()
    versions = {**known["versions"], "triton": _version("triton")}
    return {
        "device": device,
        "name": known["gpus"][0]["name"] if device == "cuda" else known["cpu"]["name"],
        "cpu": known["cpu"],
        "gpus": known["gpus"] if device == "cuda" else [],
        "isas": known["kernels"]["isas"],
        "load": [round(load, 2) for load in os.getloadavg()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cache_mib": last_level_cache(device) // 2**20,
        "versions": {name: version for name, version in versions.items() if version},
        "commit": commit or _git("rev-parse", "--short=12", "HEAD"),
        # Results are not tracked: those of a run before change no code.
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "problems": known["problems"],
    }


def last_level_cache(device: str) -> int:
    """Bytes; a guess where the system does not say."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    # py-cpuinfo and torch report another level where Linux knows the last one.
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((_bytes(size.read_text()) for size in sizes), default=_UNKNOWN_CACHE)


class Probe:
    """Measures what the device can do, again and again, and empties its caches.

    Rates are those of PyTorch at its present number of threads: ``read`` from the sum of a float32
    buffer of 8 caches or more, ``gemm`` from a square float32 product. Of a GPU also ``copy``, a
    copy inside its memory that counts bytes read and written, and ``gemm bfloat16``.
    """

    def __init__(self, device: str) -> None:
        self._device = Device.of(device)
        on_gpu = device == "cuda"
        cache = last_level_cache(device)
        size = 8192 if on_gpu else 1024
        # In 2 GiB a GPU reads for so long that its start does not count.
        buffer = torch.ones(max(8 * cache, 2**31 if on_gpu else 2**28) // 4, device=device)
        self._evicting = buffer[: 2 * cache // 4]
        factor = torch.randn(size, size, device=device)
        self._calls: dict[str, tuple[float, Callable[[], Any]]] = {
            "read": (4 * buffer.numel(), buffer.sum),
            "gemm": (2 * size**3, lambda: factor @ factor),
        }
        if on_gpu:
            half, other = factor.bfloat16(), torch.empty_like(buffer)
            self._calls["copy"] = (8 * buffer.numel(), lambda: other.copy_(buffer))
            self._calls["gemm bfloat16"] = (2 * size**3, lambda: half @ half)
        self._samples: dict[str, list[float]] = {name: [] for name in self._calls}

    def measure(self) -> None:
        """One sample of each rate, the best of three calls."""
        for name, (amount, call) in self._calls.items():
            seconds = min(self._device.seconds(call) for _ in range(3))
            self._samples[name].append(amount / seconds)

    def evict(self) -> None:
        """Reads twice the last-level cache, so that the next call finds its inputs in memory."""
        self._evicting.sum()

    def ceilings(self) -> dict[str, Any]:
        """Medians and quartiles of the samples so far: bytes/s, FLOP/s."""
        return {name: asdict(Spread.of(samples)) for name, samples in self._samples.items()}


def _bytes(size: str) -> int:
    """Of Linux's "32768K"."""
    found = re.fullmatch(r"(\d+)([KMG]?)", size.strip())
    assert found, size
    return int(found[1]) * _UNITS[found[2]]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git prints, None outside a git checkout."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
