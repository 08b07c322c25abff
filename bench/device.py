"""The measured device: everything that is timed differently on a CPU and on a GPU.

A GPU works asynchronously. There a kernel is timed by replaying a CUDA graph of many calls between
CUDA events, so that neither Python nor the launch is timed. Each call reads its own inputs, and
together these do not fit the last-level cache.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]
CALLS = 20
"""Least number of calls in a graph."""
MOST_SETS = 256
WARM_SECONDS = 1.0


class Sampler(NamedTuple):
    """A function that times a call and returns seconds; ``how`` is empty if it replays a graph."""

    sample: Callable[[], float]
    how: str = ""


class Profile(NamedTuple):
    """What ran while a call was profiled.

    Args:
        seconds: time of the call under the profiler.
        busy: share of that time in which the device computed.
        launches: number of kernels (operations on a CPU) that ran.
        host: number of calls that launched them.
        top: the longest by name, with their share of the busy time.
    """

    seconds: float
    busy: float
    launches: int
    host: int
    top: list[tuple[str, float]]


class Device:
    """A CPU, and the base class of a GPU."""

    kind = "cpu"
    dtype = torch.float32
    """Dtype of measured models."""

    @staticmethod
    def of(kind: str) -> Device:
        """The device "cpu" or "cuda"."""
        return Gpu() if kind == "cuda" else Device()

    def synchronize(self) -> None:
        """Waits until all work is done."""

    def seconds(self, call: Call) -> float:
        """Seconds of one call, including its work on the device."""
        self.synchronize()
        began = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - began

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """A sampler over calls that do the same, each on its own inputs."""
        turns = itertools.cycle(calls)
        return Sampler(lambda: self.seconds(next(turns)), "one by one")

    def sets(self, size: int) -> int:
        """Number of copies of ``size`` bytes of inputs that a kernel is timed over."""
        return 1

    def free_unused(self) -> None:
        """Frees memory that nothing holds."""
        gc.collect()

    def warm(self) -> None:
        """Runs until the clock is at full speed."""

    def peak(self, call: Call) -> int:
        """Largest number of bytes in use during a call, weights included."""
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        call()
        return 2**10 * status("VmHWM")

    def held(self) -> int:
        """Number of bytes in use."""
        return 2**10 * status("VmRSS")

    def profile(self, call: Call) -> Profile:
        """Profiles a call."""
        with torch.profiler.profile(activities=self._activities()) as profiler:
            seconds = self.seconds(call)
        spans, launched = self._spans(profiler.events())
        busy, end = 0.0, 0.0
        by_name: dict[str, float] = {}
        for start, stop, name in sorted(spans):
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
            by_name[name] = by_name.get(name, 0.0) + stop - start
        whole = sum(by_name.values()) or 1.0
        top = sorted(by_name.items(), key=lambda item: -item[1])[:8]
        shares = [(name[:60], round(own / whole, 4)) for name, own in top]
        return Profile(seconds, busy / 1e6 / seconds, len(spans), launched, shares)

    def _activities(self) -> list[Any]:
        return [torch.profiler.ProfilerActivity.CPU]

    def _spans(self, events: Any) -> tuple[list[tuple[float, float, str]], int]:
        """Start and end (µs) and name of what ran, and the number of calls that launched it."""
        outer = [e for e in events if e.cpu_parent is None and e.name.startswith("aten::")]
        return [(e.time_range.start, e.time_range.end, e.name) for e in outer], len(outer)


class Gpu(Device):
    """The first CUDA device."""

    kind = "cuda"
    dtype = torch.bfloat16

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def sampler(self, calls: Sequence[Call]) -> Sampler:
        """Replays a graph of the calls; times them one by one if they wait for the device."""
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            calls[0]()
        except RuntimeError as error:
            if "synchron" not in str(error):
                raise
            return Sampler(super().sampler(calls).sample, "one by one: it waits for the device")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        try:
            graph, count = self._captured(calls)
        except RuntimeError as error:
            torch.cuda.synchronize()
            how = f"one by one: not captured: {str(error).splitlines()[0][:100]}"
            return Sampler(super().sampler(calls).sample, how)
        # `calls` is passed to keep the inputs alive that the graph reads.
        return Sampler(partial(self._replayed, graph, count, calls))

    def _replayed(self, graph: Any, count: int, _: Sequence[Call]) -> float:
        return self._events(graph.replay) / count

    @staticmethod
    def _captured(calls: Sequence[Call]) -> tuple[Any, int]:
        """A graph, replayed once, and the number of calls in it."""
        count = max(CALLS, len(calls))
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set up what a capture forbids, and masks are made
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            for i in range(count):
                calls[i % len(calls)]()
        graph.replay()
        return graph, count

    @staticmethod
    def _events(call: Call) -> float:
        """Seconds that the device spends on the work a call launches."""
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def sets(self, size: int) -> int:
        """Enough to fill the last-level cache twice, and at least 4."""
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        return min(MOST_SETS, max(4, -(-2 * cache // max(1, size))))

    def free_unused(self) -> None:
        super().free_unused()
        torch.cuda.empty_cache()

    def warm(self) -> None:
        """An idle card runs at a fifth of its clock and takes a while to speed up."""
        factor = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_SECONDS:
            for _ in range(20):
                factor @ factor
            torch.cuda.synchronize()

    def peak(self, call: Call) -> int:
        self.free_unused()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def held(self) -> int:
        return torch.cuda.memory_allocated()

    def _activities(self) -> list[Any]:
        return [*super()._activities(), torch.profiler.ProfilerActivity.CUDA]

    def _spans(self, events: Any) -> tuple[list[tuple[float, float, str]], int]:
        on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        launched = [
            e for e in events if e.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphL"))
        ]
        spans = [(e.time_range.start, e.time_range.end, e.name) for e in on_device]
        return spans, len(launched)


def status(name: str) -> int:
    """KiB of this process under a name in Linux's status file, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
