"""How the parts of bench.gpu share their time, and what a failed part costs."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
from bench_doubles import SMALL

from bench.device import Device
from bench.gpu import kernels, parts
from bench.gpu.context import Context
from bench.gpu.parts import PARTS, PartEnd
from bench.time_limit import time_limit


class FakeWorker:
    """Takes its orders from ``plan``: rows, or an error, by a part's name."""

    plan: dict = {}  # noqa: RUF012
    made = 0

    def __init__(self, kind: str, quick: bool) -> None:
        type(self).made += 1

    def rows(self, part, seconds, known):
        found = self.plan.get(part.name, [])
        if isinstance(found, Exception):
            raise found
        yield from (
            {"part": part.name, "seconds": seconds, "known": dict(known)} | r for r in found
        )

    def kill(self) -> str:
        return " (exit status -9)"


class TestTime:
    @pytest.fixture
    def run(self, monkeypatch):
        def run(plan: dict, seconds: float) -> list:
            FakeWorker.plan, FakeWorker.made = plan, 0
            monkeypatch.setattr(parts, "Worker", FakeWorker)
            kept: list = []
            parts.measure(PARTS, "cpu", True, seconds, kept.append)
            return kept

        return run

    def test_parts_get_shares_of_what_is_left(self, run):
        kept = run({"ceilings": [{"ceilings": {"read": 1}}], "kernels": [{}]}, 300)
        (kernels,) = [one for one in kept if isinstance(one, dict) and one["part"] == "kernels"]
        assert kernels["known"] == {"read": 1}
        weights = [part.share for part in PARTS]
        # Nothing took any time, so the share is of all 300 s among those that are left.
        i = [part.name for part in PARTS].index("kernels")
        assert kernels["seconds"] == pytest.approx(300 * weights[i] / sum(weights[i:]), rel=0.01)

    def test_a_part_that_dies_costs_itself_alone(self, run):
        kept = run({"kernels": EOFError("dead"), "steps-3b": TimeoutError("late")}, 300)
        ends = {one.name: one for one in kept if isinstance(one, PartEnd)}
        assert [ends[name].state for name in ("steps-3b", "kernels")] == ["failed"] * 2
        assert ends["kernels"].note == "dead (exit status -9)"
        assert all(
            ends[p.name].state == "done" for p in PARTS if p.name not in ("steps-3b", "kernels")
        )
        assert FakeWorker.made == 3

    def test_what_a_part_raises_costs_the_process_and_no_other_part(self, run):
        kept = run({"kernels": RuntimeError("wrong")}, 300)
        assert [one.state for one in kept].count("failed") == 1 and FakeWorker.made == 2

    def test_a_part_that_broke_the_device_has_failed(self, monkeypatch):
        def broken():
            raise RuntimeError("an illegal memory access was encountered")

        context = Context(Device(), SMALL)
        context.begin(1)
        monkeypatch.setattr(context.device, "synchronize", broken)
        part = parts.Part("x", 1, lambda *_: iter([{"kind": "step"}]))
        sent: list = []
        assert "illegal" in parts.measure_part(context, part, 1, {}, sent.append)
        assert sent == [("row", {"kind": "step"})]

    def test_a_model_is_built_once(self):
        built = [part.model for part in PARTS if part.run is not kernels.run][1:]
        assert [model for model, _ in itertools.groupby(built)] == [0, 1]

    def test_nothing_begins_when_the_time_is_up(self, run):
        assert {one.state for one in run({}, 0)} == {"left out"} and FakeWorker.made == 0

    def test_a_killed_process_is_noticed(self):
        worker = parts.Worker("cpu", True)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises((EOFError, OSError)):
            list(worker.rows(PARTS[0], 60, {}))
        assert "-9" in worker.kill()

    def test_a_limit_ends_what_takes_longer(self):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="not done"), time_limit(0.2):
            while True:
                time.sleep(0.01)
        assert time.monotonic() - began < 5
        with time_limit(0):
            pass
