"""How bench times a GPU, with stand-ins for CUDA and on an emulated device."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_doubles import SMALL

from bench import harness
from bench.device import CALLS, Device, Gpu
from bench.gpu import models
from bench.gpu.context import Context
from bench.gpu.parts import PARTS
from bench.suites import engine as suites


class TestGpu:
    """The GPU's code with stand-ins for CUDA."""

    @pytest.fixture
    def cuda(self, monkeypatch):
        state = SimpleNamespace(captured=0, replays=0, error="")

        class Graph:
            def replay(self):
                state.replays += 1

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                pass

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return 50.0  # ms

        for name, value in {
            "synchronize": lambda: None,
            "set_sync_debug_mode": lambda mode: None,
            "CUDAGraph": Graph,
            "Event": Event,
            "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
            "stream": contextlib.nullcontext,
            "graph": contextlib.nullcontext,
            "get_device_properties": lambda i: SimpleNamespace(L2_cache_size=50 * 2**20),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return state

    def test_a_kernel_is_timed_by_replays_over_all_its_inputs(self, cuda):
        calls = [0] * 32

        def call(i: int):
            return lambda: calls.__setitem__(i, calls[i] + 1)

        sampler = Gpu().sampler([call(i) for i in range(32)])
        assert sampler.how == "" and min(calls) == 2  # all run before, and are captured
        assert sampler.sample() == pytest.approx(0.05 / 32)
        assert cuda.replays == 2
        assert Gpu().sampler([call(0)] * 4).sample() == pytest.approx(0.05 / CALLS)

    @pytest.mark.parametrize("size, sets", [(2**30, 4), (10 * 2**20, 10), (1, 256)])
    def test_inputs_fill_the_cache_twice(self, cuda, size, sets):
        assert Gpu().sets(size) == sets

    def test_what_waits_for_the_device_is_timed_call_by_call(self, cuda):
        left = iter([RuntimeError("called a synchronizing CUDA operation")])

        def call():
            for error in left:
                raise error

        sampler = Gpu().sampler([call])
        assert "waits" in sampler.how and sampler.sample() >= 0 and cuda.replays == 0

    def test_other_errors_are_not_taken_for_waits(self, cuda):
        def broken():
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="memory"):
            Gpu().sampler([broken])

    def test_rounded_weights_lose_no_run(self, monkeypatch):
        """On a GPU a trial notes that weights are not rounded, and runs everything else."""
        model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
        work = SimpleNamespace(name="tiny", model=model, parameters=1, text=lambda *a: None)
        monkeypatch.setattr(suites, "plain", lambda *a: lambda: torch.ones(1))
        monkeypatch.setattr(suites, "local", lambda *a: _Called())
        rows = harness.run(suites._decode(work, 1), 0.0, rounds=(1, 1))
        notes = {row["implementation"]: row["note"] for row in rows}
        assert notes.pop("transformers") == notes.pop("local") == ""
        assert set(notes.values()) == {"weights are rounded on CPUs only"}
        assert not any(row["failed"] for row in rows)


class OnEmulated(Gpu):
    """Kernels are captured and replayed by the emulator; time and memory are the CPU's."""

    _events = staticmethod(lambda call: (call(), 1e-3)[1])
    peak, held, free_unused = Device.peak, Device.held, Device.free_unused
    _activities, _spans = Device._activities, Device._spans

    def sets(self, size: int) -> int:
        return 4


class TestEmulated:
    @pytest.fixture
    def context(self, monkeypatch):
        """A context on an emulated GPU, which has no random generator of its own."""
        pytest.importorskip("triton", reason="an emulated GPU needs Triton")
        from emulated_cuda import emulate

        real: Any = torch.Generator
        make = models.make

        class Generator(real):
            def __new__(cls, device="cpu"):
                if torch.device(device).type == "cpu":
                    return real.__new__(real)
                return SimpleNamespace(manual_seed=lambda seed: None)

        with emulate() as device:

            def made(name, _):
                work = make(name, Device())
                device.move(work.model.to(torch.bfloat16))
                return work

            monkeypatch.setattr(models, "make", made)
            monkeypatch.setattr(torch, "Generator", Generator)
            monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
            with torch.no_grad():
                yield Context(OnEmulated(), SMALL)

    def test_rollouts_mix_no_devices(self, context):
        (part,) = (part for part in PARTS if part.name == "rollouts-3b")
        rows = list(part.run(context, "tiny", part.name))
        assert len(rows) == 3 and not [row for row in rows if row.get("failed")]

    @pytest.mark.skipif(
        torch.version.cuda is None,
        reason="a PyTorch without CUDA negates no mask on an emulated device",
    )
    def test_kernels_are_captured_and_what_waits_is_not(self, context):
        (part,) = (part for part in PARTS if part.name == "kernels")
        rows = list(itertools.islice(part.run(context, "", part.name), 11))
        assert {row["op"]: row["note"] for row in rows if row["kind"] == "trial"} == {}
        assert {row["op"] for row in rows} == {"paged_attention", "shared_prefix_attention"}
        timed = {row["implementation"]: row["how"] for row in rows if row["seconds"]}
        assert timed["triton"] == timed["SDPA, dense"] == timed["SDPA, gathered"] == ""
        assert "not captured" in timed["reference"]
        assert not [row for row in rows if row["failed"]]


class _Called:
    def __call__(self) -> torch.Tensor:
        return torch.ones(1)

    def counts(self) -> dict:
        return {}
