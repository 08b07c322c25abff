"""The benchmark harness: what it times, what it reports, and that peers compute the same."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable

import pytest
import torch
from bench_doubles import CARD
from rich.console import Console
from typer.testing import CliRunner

from bench import harness, machine, plots, report, run
from bench.harness import Entry, Prepared, Suite, Trial
from retrv_r1.train import record


class Clock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def entry(self, name: str, seconds: list[float], value: float = 1.0, **options) -> Entry:
        """Takes these seconds, one call after another; the first is the check."""
        left = iter(seconds)

        def call() -> torch.Tensor:
            self.calls.append(name)
            self.now += next(left)
            return torch.full((3,), value)

        return Entry(name, call, **options)

    def evict(self) -> None:
        self.now += 1000
        self.calls.append("evict")


def trial(*made: Entry, name: str = "case", k: int = 50, op: str = "op") -> Trial:
    prepared = Prepared(lambda: torch.ones(3, dtype=torch.float64), made)
    shape, where = {"K": k, "rows": 7, "d": 8}, ("K", "ratios")
    return Trial(op, name, "float32", shape, 1000, 4000, 1e-5, lambda: prepared, where)


def measured(clock: Clock, *made: Entry, budget: float = 0.0, **sizes) -> dict[str, dict]:
    rows = harness.run(trial(*made, **sizes), budget, evict=clock.evict, clock=lambda: clock.now)
    return {row["implementation"]: row for row in rows}


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_a_card_says_what_was_measured(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    code = tmp_path / "code.py"
    code.touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / "result.json").touch()
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    card = machine.card("cpu")
    assert len(card["commit"]) == 12 and not card["dirty"]  # results are no changes
    code.write_text("1")
    card = machine.card("cpu", "0123abcd")
    assert card["commit"] == "0123abcd" and card["dirty"]


@pytest.fixture
def example() -> dict:
    """A report of two cases with everything that a row can be."""
    rows = []
    for k in (10, 50):
        clock = Clock()
        made = (
            clock.entry("native", [1, 4, 4, 8]),
            clock.entry("folded", [1, 8, 16, 8], baseline=True),
            clock.entry("wrong", [1], value=1.1),
            Entry("slow", lambda: torch.ones(3), because="left out: too slow"),
        )
        rows += measured(clock, *made, name=f"K={k}", k=k).values()
    return report.build("kernels", CARD, rows, ["a note"])


def shown(values: dict) -> str:
    out = io.StringIO()
    console = Console(width=200, file=out)
    report.render(values, console)
    return out.getvalue()


class TestHarness:
    def test_interleaves_in_rotated_order_with_cold_caches(self):
        clock = Clock()
        measured(clock, *(clock.entry(name, [1] * 4) for name in "abc"))
        assert "".join(clock.calls).replace("evict", ".") == "abc" + ".a.b.c.b.c.a.c.a.b"

    def test_times_neither_the_check_nor_the_eviction(self):
        clock = Clock()
        (row,) = measured(clock, clock.entry("a", [500, 1, 2, 3])).values()
        assert row["seconds"]["median"] == 2
        assert row["seconds"]["rounds"] == 3

    def test_ratio_is_the_median_of_ratios_within_rounds(self):
        clock = Clock()
        rows = measured(
            clock,
            clock.entry("a", [1, 1, 10, 4]),
            clock.entry("base", [1, 4, 20, 4], baseline=True),
        )
        assert rows["a"]["ratios"]["base"]["median"] == 2  # of 4, 2, 1; medians give 4 / 4
        assert rows["base"]["ratios"] == {}

    def test_budget_bounds_rounds_but_three_are_kept(self):
        clock = Clock()
        (row,) = measured(clock, clock.entry("a", [1] * 60), budget=10).values()
        assert row["seconds"]["rounds"] == 10
        clock = Clock()
        (row,) = measured(clock, clock.entry("a", [0.1] * 60), budget=10).values()
        assert row["seconds"]["rounds"] == harness.ROUNDS[1]

    @pytest.mark.parametrize("value", [1.1, float("nan")])
    def test_a_wrong_result_is_never_timed(self, value):
        clock = Clock()
        rows = measured(clock, clock.entry("wrong", [1], value), clock.entry("right", [1] * 4))
        assert clock.calls.count("wrong") == 1
        assert rows["wrong"]["failed"] and rows["wrong"]["seconds"] is None
        assert rows["right"]["seconds"] and not rows["right"]["failed"]

    def test_a_wrong_shape_fails(self):
        rows = measured(Clock(), Entry("a", lambda: torch.ones(1)))
        assert rows["a"]["failed"] and rows["a"]["error"] is None

    def test_what_cannot_run_fails_unless_optional(self):
        def broken() -> torch.Tensor:
            raise RuntimeError("no compiler\nat all")

        rows = measured(Clock(), Entry("a", broken), Entry("b", broken, optional=True))
        assert rows["a"]["failed"] and not rows["b"]["failed"]
        assert rows["b"]["note"] == "cannot run: RuntimeError: no compiler"

    def test_an_entry_may_have_to_be_like_another(self):
        clock = Clock()
        made = (
            clock.entry("other", [1] * 4, value=7.0, compared=False),
            clock.entry("like it", [1] * 4, value=7.0, like="other"),
            clock.entry("unlike it", [1], value=1.0, like="other"),
        )
        rows = measured(clock, *made)
        assert [row["failed"] for row in rows.values()] == [False, False, True]
        assert rows["other"]["error"] is None and rows["like it"]["error"] == 0

    def test_nothing_is_timed_that_has_nothing_to_be_compared_with(self):
        clock = Clock()
        broken = Entry("broken", lambda: torch.ones(3) @ torch.ones(2))
        rows = measured(clock, broken, clock.entry("like it", [1], like="broken"))
        assert rows["like it"]["failed"] and "broken gave nothing" in rows["like it"]["note"]
        assert rows["like it"]["seconds"] is None

    def test_an_entry_runs_within_its_own_context_only(self):
        inside, seen = [], []

        @contextlib.contextmanager
        def within():
            inside.append("b")
            yield
            inside.pop()

        def call() -> torch.Tensor:
            seen.append(inside.copy())
            return torch.ones(3)

        measured(Clock(), Entry("a", call), Entry("b", call, within))
        assert seen.count([]) == seen.count(["b"]) == 4
        assert not inside


class TestReport:
    def test_failed_and_left_out_rows_show_no_speed(self, example):
        lines = shown(example).splitlines()
        assert example["failed"] == 2
        (wrong, _) = (line.split() for line in lines if line.strip().startswith("wrong"))
        assert wrong == ["wrong", "1.0e-01", "FAILED"]
        (slow, _) = (line.split() for line in lines if line.strip().startswith("slow"))
        assert slow == ["slow", "–"]
        assert any("left out: too slow" in line for line in lines)

    def test_fraction_is_of_the_ceiling_that_takes_longer(self, example):
        row = example["rows"][0]
        # 4000 bytes at 1000 / s and 1000 operations at a million, in 4 s
        fractions = {"read": 1.0, "gemm": 0.00025}
        assert row["bound"] == {"name": "read", "fraction": 1.0, "fractions": fractions}

    def test_json_round_trip_and_plots(self, example, tmp_path):
        again = json.loads(json.dumps(example, allow_nan=False))
        assert again == example
        assert shown(again) == shown(example)
        drawn = plots.draw(again, tmp_path / "plots")
        assert [path.name for path in drawn] == ["op.png", "ratios.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)

    def test_nothing_timed_draws_nothing(self, example, tmp_path):
        rows = [row for row in example["rows"] if row["seconds"] is None]
        assert plots.draw({**example, "rows": rows}, tmp_path) == []


class TestCommand:
    @pytest.fixture
    def invoke(self, monkeypatch) -> Callable:
        class Probe:
            def __init__(self, device: str) -> None:
                pass

            def measure(self) -> None:
                pass

            def evict(self) -> None:
                pass

            def ceilings(self) -> dict:
                return CARD["ceilings"]

        def invoke(*words: str, value: float = 1.0):
            def suite(device: str, rate: float, quick: bool) -> Suite:
                entry = Entry("native", lambda: torch.full((3,), value))
                return Suite([trial(entry)], ["a note"])

            monkeypatch.setattr(run.machine, "Probe", Probe)
            monkeypatch.setattr(run.machine, "card", lambda device: CARD)
            monkeypatch.setattr(run.kernels, "suite", suite)
            monkeypatch.delenv("TRITON_INTERPRET", raising=False)
            return CliRunner().invoke(run.app, list(words))

        return invoke

    def test_last_line_is_the_report(self, invoke, tmp_path):
        saved = tmp_path / "report.json"
        done = invoke("--suite", "kernels", "--device", "cpu", "--json", str(saved))
        assert done.exit_code == 0, done.output
        last = json.loads(done.stdout.splitlines()[-1])
        assert last == json.loads(saved.read_text())
        assert last["rows"][0]["seconds"]["rounds"] == harness.ROUNDS[1]
        again = invoke("--from", str(saved), "--plots", str(tmp_path))
        assert again.exit_code == 0, again.output
        assert json.loads(again.stdout.splitlines()[-1]) == last
        assert (tmp_path / "ratios.png").exists() is False  # one implementation has no ratio

    @pytest.mark.parametrize("value", [2.0, float("nan")])
    def test_a_failed_check_exits_with_1(self, invoke, value):
        done = invoke("--suite", "kernels", "--device", "cpu", value=value)
        assert done.exit_code == 1
        assert "FAILED" in done.stdout
        assert json.loads(done.stdout.splitlines()[-1])["rows"][0]["seconds"] is None

    def test_interpreted_kernels_are_refused(self, invoke, monkeypatch):
        monkeypatch.setattr(run.gpu, "INTERPRETER", "RETRV_BENCH_TEST")
        monkeypatch.setenv("RETRV_BENCH_TEST", "1")
        assert invoke("--suite", "kernels", "--device", "cpu").exit_code == 2

    def test_needs_a_suite_or_a_report(self, invoke):
        assert invoke().exit_code == 2
