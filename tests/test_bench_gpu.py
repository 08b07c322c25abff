"""What bench.gpu measures, in a small form on a CPU; how it keeps to its time; what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import itertools
import json
import os
import re
import signal
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from test_bench import CARD
from typer.testing import CliRunner

from bench import harness
from bench import run as bench_run
from bench.device import CALLS, Device, Gpu, Profile
from bench.gpu import __main__ as command
from bench.gpu import aims, decoding, kernels, models, parts, tables
from bench.gpu.context import Context, Row, local_engine
from bench.gpu.models import Scale, Shape
from bench.gpu.parts import PARTS, PartEnd
from bench.suites import engine as suites
from bench.suites.kernels.entries import UNCOMPILED
from bench.time_limit import time_limit
from retrv_engine import EngineConfig, LocalEngine, Sampling
from retrv_engine.runner import ModelRunner

SMALL = dataclasses.replace(
    Scale.quick(),
    models=("tiny", "tiny"),
    shapes=(Shape(3, 4, 2),),
    tokens=4,
    inspections=1,
    sequences=(2,),
    steps=2,
    pictures=(2, ((4, 4),)),
    compiling=None,
    seconds=0.0,
)


DISTINCT = list({part.run: part for part in reversed(PARTS)}.values())[::-1]


@pytest.fixture(scope="module", autouse=True)
def unfrozen():
    """What a context keeps from being collected is other tests' garbage."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def measured() -> dict:
    """A report of all parts that differ; others do the same with another model."""
    context, rows, ends = Context(Device(), SMALL), [], []
    known: dict = {}
    for part in DISTINCT:
        with patch("bench.machine.last_level_cache", lambda device: 2**20):  # or it reads GBs
            reason = parts.measure_part(context, part, 600, known, lambda one: rows.append(one[1]))
        known = context.ceilings
        ends.append(vars(PartEnd(part.name, "failed" if reason else "done", reason, 1.0, 1.0)))
    card = {**CARD, "ceilings": known}
    report = {"suite": "gpu", "card": card, "quick": True, "minutes": 1, "parts": ends}
    return report | {"started": "2026-01-02T03:04:05+00:00", "rows": rows, "failed": 0}


class TestParts:
    def test_all_run_on_a_cpu_and_none_fails(self, measured):
        assert [part["note"] for part in measured["parts"]] == [""] * len(DISTINCT)
        assert not [row for row in measured["rows"] if row.get("failed")]
        kinds = {row["kind"] for row in measured["rows"]}
        assert kinds == {
            *("ceilings", "efficiency", "encoding", "step", "tower", "rollouts", "kernel")
        }
        json.dumps(measured, allow_nan=False)

    def test_every_form_of_a_request_is_measured(self, measured):
        rows = [row for row in measured["rows"] if row["part"] == "efficiency-3b"]
        forms = [(row["form"], row["inspections"]) for row in rows if row["kind"] == "efficiency"]
        assert sorted(forms) == sorted(
            [
                *(("ours, compressed", n) for n in (0, 1)),
                *(("transformers, compressed", n) for n in (0, 1)),
                *((f"{whose}, full tokens", 0) for whose in ("ours", "transformers")),
                ("ours, fast", 0),
            ]
        )
        for row in rows:
            if row["kind"] == "efficiency":
                assert row["inspected"] == row["inspections"], row
                assert 0 < row["first"]["median"] <= row["total"]["median"]
                assert row["alike"] == row["written"]  # float32: all engines write the same

    def test_a_step_says_what_ran(self, measured):
        steps = [row for row in measured["rows"] if row["kind"] == "step" and "seconds" in row]
        assert {"one prefix, read once", "one prefix, read by each"} < {
            row["form"] for row in steps
        }
        for row in steps:
            assert row["launches"] > 10 and row["busy"] > 0 and row["floor"] > 0

    def test_what_there_is_no_time_for_says_so(self):
        context = Context(Device(), SMALL)
        context.begin(-1)
        rows = [row for part in PARTS[1:] for row in part.run(context, "tiny", part.name)]
        assert all("time was up" in row["note"] for row in rows)
        assert not any(row.get("failed") for row in rows) and len(rows) > 20

    def test_an_error_is_of_its_row_alone(self):
        def broken():
            raise torch.OutOfMemoryError("no room\nat all")

        row = Context(Device(), SMALL).measured({"form": "a"}, broken)
        assert row["failed"] and row["note"] == "OutOfMemoryError: no room"

    def test_steps_are_measured_replayed_and_eager(self, monkeypatch):
        asked = []

        @contextlib.contextmanager
        def local(context, work, requests, rows, **settings):
            asked.append(settings)
            raise RuntimeError("stop here")
            yield

        monkeypatch.setattr("bench.gpu.decoding.local_engine", local)
        part = next(part for part in PARTS if part.name == "steps-3b")
        list(part.run(Context(Device(), SMALL), "tiny", part.name))
        assert [one["graphs"] for one in asked if "graphs" in one] == [True, False]

    def test_an_engine_is_warm_for_what_is_measured(self, monkeypatch):
        asked = []
        monkeypatch.setattr(LocalEngine, "warm", lambda self, *words: asked.append(words))
        context = Context(Device(), SMALL)
        work = context.workload("tiny")
        greedy = work.text(0, 8, 2)
        samplings = [Sampling(0.7, seed=seed, max_inspections=0) for seed in (1, 2)]
        requests = [dataclasses.replace(greedy, sampling=one) for one in samplings]
        for one in ([greedy], requests):
            with local_engine(context, work, one, 64):
                pass
        assert asked == [([greedy.sampling], [1]), ([samplings[1]], [2])]

    def test_phases_and_busy_time_are_of_steps_that_nobody_profiles(self):
        run = ModelRunner.run

        def slow(*arguments):
            time.sleep(0.5)
            return run(*arguments)

        class Profiled(Device):
            def profile(self, call):
                with patch.object(ModelRunner, "run", slow):
                    call()
                return Profile(100.0, 0.25, 1, 1, [])

        context = Context(Profiled(), SMALL)
        work = context.workload("tiny")
        row = decoding._steps(context, work, [decoding._text(context, work, 0, 12, 1)], {})
        assert 0 < row["phases"]["run"] < 0.5
        assert row["busy"] == pytest.approx(25 / SMALL.steps / row["seconds"]["median"])

    def test_a_floor_counts_cached_rows_and_a_shared_prompt_once(self):
        context = Context(Device(), SMALL)
        work = context.workload("tiny")
        one, other = (work.text(seed, 100, 9) for seed in (0, 1))
        row = models.row_bytes(work.model)
        same, apart = (decoding.least_bytes(context, work, [one, x]) for x in (one, other))
        assert apart - same == 100 * row
        cached = 100 + 2 * (decoding.BEFORE + SMALL.steps)
        assert same == models.weight_bytes(work.model) + cached * row

    def test_sequences_write_for_as_long_as_others_are_read(self):
        tokens = {}
        for kind in ("cpu", "cuda"):
            context = SimpleNamespace(device=SimpleNamespace(kind=kind), scale=SMALL)
            asked = SimpleNamespace(text=lambda seed, rows, tokens: tokens)
            chunk: Any = EngineConfig().on(kind).chunk_rows
            written: Any = decoding._text(context, asked, 0, 4096, 32)
            tokens[kind] = written - 32 * 4096 // chunk
        assert tokens["cpu"] == tokens["cuda"] < 100

    def test_compilers_come_last_and_the_wanted_of_all_models_first(self, monkeypatch):
        context = Context(Device(), dataclasses.replace(Scale(), seconds=0.0))
        context.begin(-1)
        names = [row["name"].split()[0].strip(",") for row in kernels.run(context, "", "kernels")]
        assert [name for name, _ in itertools.groupby(names)] == ["3B", "7B"] * 2

        def trials(op):
            return lambda where, model: [
                SimpleNamespace(op=op, name=model.name, compiling=where.compiling)
            ]

        def run(trial, *_, **__):
            ran.append((trial.op, trial.name, trial.compiling))
            late = "" if trial.compiling else UNCOMPILED
            columns = {"op": trial.op, "name": trial.name}
            return [columns | {"implementation": i, "note": n} for i, n in (("a", ""), ("b", late))]

        ran: list = []
        monkeypatch.setattr(kernels, "_first_trials", trials("wanted"))
        monkeypatch.setattr(kernels, "_later_trials", trials("further"))
        monkeypatch.setattr(harness, "run", run)
        context.begin(60)
        rows = list(kernels.run(context, "", "kernels"))
        firsts = [(op, name, None) for op in ("wanted", "further") for name in ("3B", "7B")]
        assert ran == [*firsts, ("wanted", "3B", 20.0), ("further", "3B", 20.0)]
        each = [(row["op"], row["name"], row["implementation"]) for row in rows]
        assert len(each) == len({*each}) == 8
        assert {row["name"] for row in rows if row["note"]} == {"7B"}


class TestModels:
    @pytest.mark.parametrize(
        "name, decoder, tower, read, row",
        [("3B", 3.086e9, 0.669e9, 6.17e9, 36864), ("7B", 7.071e9, 0.677e9, 14.14e9, 57344)],
    )
    def test_real_sizes_are_those_of_the_official_checkpoints(
        self, name, decoder, tower, read, row
    ):
        class Meta(Device):
            kind, dtype = "meta", torch.bfloat16

        work = models.make(name, Meta())
        size = models.SIZES[name]
        counted = work.parameters - (not size.tied) * size.hidden * size.vocabulary
        head = 0 if size.tied else size.hidden * size.vocabulary
        assert counted + head == pytest.approx(decoder, rel=1e-3)
        visual = sum(one.numel() for one in work.model.visual.parameters())
        assert visual == pytest.approx(tower, rel=1e-3)
        assert models.weight_bytes(work.model) == pytest.approx(read, rel=1e-3)
        assert models.row_bytes(work.model) == row
        assert {one.dtype for one in work.model.parameters()} == {torch.bfloat16}

    def test_random_weights_leave_nothing_unset(self):
        linear, norm = torch.nn.Linear(8, 8), torch.nn.RMSNorm(8)
        model = torch.nn.ModuleDict({"linear": linear, "ln_q": norm})
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        models.randomize(model)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert (norm.weight == 1).all() and linear.weight.std() > 0


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


class TestReport:
    def test_tables_and_markdown_show_all_that_was_measured(self, measured):
        out = io.StringIO()
        console = Console(width=200, file=out)
        tables.render(measured, console)
        text = tables.markdown(measured)
        for title in ("A request", "A decode step", "The vision tower", "Kernels"):
            assert title in out.getvalue() and f"**{title}**" in text
        assert "2026-01-02, commit 0123abcd, with changes" in text
        assert "A rehearsal" in text and "Aims" not in text
        unknown = measured | {"card": {**measured["card"], "commit": None, "dirty": False}}
        assert "2026-01-02, no commit; " in tables.markdown(unknown)
        widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        assert len(widths) > 20

    def test_aims_are_met_or_missed(self, measured):
        def row(form: str, seconds: float, peak: int, inspections: int = 3) -> dict:
            spread = {"median": seconds}
            base: Row = {"part": "efficiency-7b", "kind": "efficiency", "model": "7B", "form": form}
            base |= {"candidates": 50, "rows": 256, "inspections": inspections}
            base |= {"first": spread, "total": spread, "peak": 99, "above_weights": peak}
            return base

        def kernel(name: str, floor: float) -> dict:
            amount = floor * CARD["ceilings"]["read"]["median"]
            base: Row = {
                "part": "kernels",
                "kind": "kernel",
                "op": "pool",
                "name": name,
                "flops": 0,
            }
            base |= {"implementation": "triton", "dtype": "bfloat16", "bytes": amount}
            return base | {"error": 0.0, "seconds": {"median": 2 * floor}}

        step: Row = {"part": "s", "kind": "step", "model": "3B", "form": "replayed", "sequences": 1}
        step |= {"seconds": {"median": 0.003}, "floor": 0.0015}
        rows = [
            row(aims.COMPRESSED, 0.4, 10),
            row(aims.FULL, 4.0, 20, 0),
            row("ours, fast", 0.03, 10, 0),
            step,
            kernel("long", 6e-6),
            kernel("short", 4e-6),  # as long as a launch takes
        ]
        report = measured | {"rows": rows, "quick": False, "card": CARD}
        found = {what: (reached, met) for what, reached, _, met in tables._aims(report).rows}
        assert found == {
            "time, full over compressed: 7B, 50 × 256, 3 inspections": ("10.0", "met"),
            "memory above weights, full over compressed: 7B, 50 × 256, 3 inspections": (
                *("2.0", "missed"),
            ),
            "bandwidth: pool, long, bfloat16": ("50 %", "missed"),
            "reasoned: 7B, 50 × 256, 3 inspections": ("400 ms", "met"),
            "fast: 7B, 50 × 256": ("30 ms", "missed"),
            "a step over its floor: 3B, 1 sequences": ("2.00", "missed"),
        }

    def test_the_command_writes_as_it_goes_and_says_what_failed(self, tmp_path, monkeypatch):
        seen = []

        def measure(asked, kind, quick, seconds, keep):
            keep({"part": "x", "kind": "ceilings", "ceilings": CARD["ceilings"]})
            (path,) = tmp_path.rglob("*.json")
            seen.append(json.loads(path.read_text())["rows"])
            keep({"part": "x", "kind": "tower", "note": "no room", "failed": True})
            keep(PartEnd("x", "done", "", 1.0, 1.0))

        monkeypatch.setattr(command, "measure", measure)
        monkeypatch.setattr(
            command.machine, "card", lambda device, commit: {**CARD, "commit": commit}
        )
        words = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--commit", "fedc"]
        done = CliRunner().invoke(command.app, words)
        assert done.exit_code == 1, done.output
        assert len(seen[0]) == 1 and "FAILED: 1" in done.output
        (path,) = tmp_path.rglob("*.*")
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", str(path.relative_to(tmp_path)))
        again = CliRunner().invoke(bench_run.app, ["--from", str(path)])
        assert again.exit_code == 1 and "no room" in again.output
        text = CliRunner().invoke(bench_run.app, ["--from", str(path), "--markdown"]).output
        assert CARD["name"] in text and "commit fedc" in text and "no room" in text

    def test_an_unknown_part_is_refused(self):
        done = CliRunner().invoke(command.app, ["--device", "cpu", "--only", "nothing"])
        assert done.exit_code == 2


class TestGpu:
    """The paths of a GPU, with stand-ins for what CUDA gives; none of it has run on one."""

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
        """A suite on a GPU says that it rounds none; everything else of the trial is there."""
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
        """Parts on tensors that say they are on a GPU, with no generator of its own."""
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
