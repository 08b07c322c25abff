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
from torch.utils.benchmark import timer

from bench.harness import Spread
from retrv_r1 import doctor

ROOT = Path(__file__).parent.parent
# Where the system does not say: more than most caches.
_UNKNOWN_CACHE = 128 * 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def card(device: str) -> dict[str, Any]:
    """What the numbers depend on, as JSON values, before anything has run.

    Args:
        device: "cpu" or "cuda"; of several GPUs the first.
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
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
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

    Both rates are those of PyTorch at its present number of threads: bandwidth from the sum of
    a float32 buffer of 8 caches or more, arithmetic from a square float32 product.
    """

    def __init__(self, device: str) -> None:
        cache = last_level_cache(device)
        size = 8192 if device == "cuda" else 1024
        self._buffer = torch.ones(max(8 * cache, 256 * 2**20) // 4, device=device)
        self._evicting = self._buffer[: 2 * cache // 4]
        self._factor = torch.randn(size, size, device=device)
        self._bandwidth: list[float] = []
        self._rate: list[float] = []

    def measure(self) -> None:
        """One sample of each rate, the best of three calls."""
        self._bandwidth.append(4 * self._buffer.numel() / _seconds(self._buffer.sum))
        flops = 2 * len(self._factor) ** 3
        self._rate.append(flops / _seconds(lambda: self._factor @ self._factor))

    def evict(self) -> None:
        """Reads twice the last-level cache, so that the next call finds its inputs in memory."""
        self._evicting.sum()

    def ceilings(self) -> dict[str, Any]:
        """Medians and quartiles of the samples so far: bytes/s read, FLOP/s."""
        rates = {"read": self._bandwidth, "gemm": self._rate}
        return {name: asdict(Spread.of(samples)) for name, samples in rates.items()}


def _seconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        start = timer()
        call()
        times.append(timer() - start)
    return min(times)


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
