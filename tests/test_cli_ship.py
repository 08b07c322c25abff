"""Shipping a checkpoint: assembled, then calibrated, then its threshold, then golden scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrv_r1.command import ship


@pytest.mark.parametrize(("words", "limit"), [([], None), (["--limit", "7"], 7)])
def test_steps_run_in_order_with_the_options_given(tmp_path, monkeypatch, words, limit):
    """Scores change with the calibration, so the threshold is fitted behind it; both are in the
    golden scores."""
    pytest.importorskip("matplotlib")
    done: list[tuple] = []

    def assemble(runs: Path, out: Path) -> None:
        (out / "training").mkdir(parents=True)
        done.append(("assemble", runs))

    def calibrate(out, datasets, **options):
        done.append(("calibrate", datasets, options))
        return {"fast": "1.5", "reason": "1.2"}

    def threshold(out, datasets, *, plot, **options):
        assert plot == out / "training/auto.png" and plot.parent.is_dir()
        done.append(("auto", datasets, options))
        return "at 0.7"

    def golden(out, ranked):
        ranked(1)
        done.append(("golden",))
        return out / "golden.json"

    monkeypatch.setattr(ship, "assemble", assemble)
    monkeypatch.setattr("retrv_r1.eval.calibration.calibrate", calibrate)
    monkeypatch.setattr("retrv_r1.eval.auto.fit_auto_threshold", threshold)
    monkeypatch.setattr("retrv_r1.verify.golden.write_golden", golden)
    out = tmp_path / "out"
    result = CliRunner().invoke(ship.app, ["runs", str(out), "a", "b", *words])
    assert result.exit_code == 0, result.output
    sets, options = [Path("a"), Path("b")], {"limit": limit}
    assert done == [
        ("assemble", Path("runs")),
        ("calibrate", sets, options),
        ("auto", sets, options),
        ("golden",),
    ]
    lines = result.stdout.splitlines()
    assert lines[:3] == ["fast 1.5", "reason 1.2", "auto at 0.7"]
    assert str(out / "golden.json") in "".join(lines[3:])
