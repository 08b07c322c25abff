"""The benchmark of rollouts: what it counts, and that it runs from end to end."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

if not find_spec("trl"):
    pytest.skip("needs the extra rl", allow_module_level=True)

from typer.testing import CliRunner

from bench import rollouts
from bench.rollouts import PARTS, Round, demo_tasks, ours, trl
from retrv_engine import Sampling
from retrv_r1 import Reranker
from retrv_r1.rollout import RetrvRollout


def test_a_speed_is_of_sampled_tokens():
    assert Round(30, 2.0).speed == 15


def test_both_ways_count_what_they_sampled():
    with Reranker.from_pretrained("tiny", device="cpu") as reranker:
        sampling = Sampling(temperature=1.0, max_reasoning_tokens=6, max_inspections=1)
        rollout = RetrvRollout(reranker, demo_tasks(3), sampling)
        found = ours(rollout, 2, 0)
        # A rollout samples at most six tokens, an inspected label among them, and an answer.
        assert 2 * 2 <= found.tokens <= 2 * 8 and found.seconds > 0
        found = trl(rollout, 2, 0)
        assert 2 <= found.tokens <= 2 * 10 and found.seconds > 0


def test_the_command_measures_and_writes(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(rollouts.main)
    out = tmp_path / "result.json"
    options = ["--group", "2", "--candidates", "3", "--rounds", "1", "--steps", "1", "--limit", "6"]
    result = CliRunner().invoke(app, [*options, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "× " in result.output and "step, backward" in result.output
    found = json.loads(out.read_text())
    assert found["rollouts"]["times"] > 0
    assert set(PARTS) < set(found["step"])
