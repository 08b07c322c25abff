"""What bench.gpu measures, at small sizes on a CPU, and its report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import re
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from bench_doubles import CARD, SMALL
from rich.console import Console
from typer.testing import CliRunner

from bench import harness
from bench import run as bench_run
from bench.device import Device, Profile
from bench.gpu import __main__ as command
from bench.gpu import aims, decoding, kernels, models, parts, tables
from bench.gpu.context import Context, Row, local_engine
from bench.gpu.models import Scale
from bench.gpu.parts import PARTS, PartEnd
from bench.suites.kernels.entries import UNCOMPILED
from retrv_engine import EngineConfig, LocalEngine, Sampling
from retrv_engine.runner import ModelRunner

DISTINCT = list({part.run: part for part in reversed(PARTS)}.values())[::-1]


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
