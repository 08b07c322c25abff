"""What the machine is, and how fast it reads and multiplies while a suite runs."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.device import Device
from bench.harness import Spread
from retrv_r1.command import doctor
from retrv_r1.train import record

# Larger than most caches, for systems that do not say.
_UNKNOWN_CACHE = 128 * 2**20
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def card(device: str, commit: str | None = None) -> dict[str, Any]:
    """Hardware, versions and commit, as JSON values.

    Args:
        device: "cpu", or "cuda" for the first GPU.
        commit: commit of the code, if git cannot tell.
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
        "commit": commit or record.git("rev-parse", "--short=12", "HEAD"),
        # Untracked files do not count: results of an earlier run change no code.
        "dirty": bool(record.git("status", "--porcelain", "--untracked-files=no")),
        "problems": known["problems"],
    }


def last_level_cache(device: str) -> int:
    """Bytes of the last-level cache; a guess if the system does not say."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    # From Linux: py-cpuinfo and torch report another level.
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((_bytes(size.read_text()) for size in sizes), default=_UNKNOWN_CACHE)


class Probe:
    """Measures the device's rates during a run, and evicts its caches.

    Rates are PyTorch's at the current number of threads: ``read`` is the sum of a float32 buffer of
    at least 8 caches, ``gemm`` a square float32 product. A GPU also has ``copy``, a copy in its
    memory that counts bytes read and written, and ``gemm bfloat16``.
    """

    def __init__(self, device: str) -> None:
        self._device = Device.of(device)
        on_gpu = device == "cuda"
        cache = last_level_cache(device)
        size = 8192 if on_gpu else 1024
        # A GPU reads 2 GiB for long enough to hide the launch.
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
        """Takes a sample of each rate, the best of three calls."""
        for name, (amount, call) in self._calls.items():
            seconds = min(self._device.seconds(call) for _ in range(3))
            self._samples[name].append(amount / seconds)

    def evict(self) -> None:
        """Reads twice the last-level cache, so that the next call reads its inputs from memory."""
        self._evicting.sum()

    def ceilings(self) -> dict[str, Any]:
        """Medians and quartiles of the samples so far, in bytes/s or FLOP/s."""
        return {name: asdict(Spread.of(samples)) for name, samples in self._samples.items()}


def _bytes(size: str) -> int:
    """Bytes of a size as Linux writes it, such as "32768K"."""
    found = re.fullmatch(r"(\d+)([KMG]?)", size.strip())
    assert found, size
    return int(found[1]) * _UNITS[found[2]]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
