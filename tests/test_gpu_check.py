"""The runner of `make gpu-check`: failures, a part that hangs and one without tests all show."""

from __future__ import annotations

import sys

import gpu_check
from gpu_check import Part, run, summary

TESTS = """
import time, pytest
def test_right(record_property):
    for key, value in dict(op="pool_tokens", dtype="bfloat16", error=1e-3, bound=1e-2).items():
        record_property(key, value)
def test_wrong(): raise ValueError("of the wrong sort")
@pytest.mark.skip(reason="no card")
def test_left_out(): pass
def test_slow(): time.sleep(60)
"""


def test_failures_and_hanging_parts_are_told(tmp_path):
    (tmp_path / "test_made.py").write_text(TESTS)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "outcomes", str(tmp_path)]
    hanging = run(Part("hanging", pytest, 15.0), tmp_path)
    assert not hanging.fine and hanging.note == "stopped after 15 s"
    assert [test["outcome"] for test in hanging.tests] == ["passed", "failed", "skipped"]
    told = "\n".join(summary([hanging]))
    assert (
        "pool_tokens                      1 passed, 0 failed, 0 skipped; bfloat16 1.0e-03 of"
        in told
    )
    assert "::test_wrong: ValueError: of the wrong sort" in told and "skipped 1: " in told
    nothing = run(Part("nothing", [*pytest, "-k", "left_out"], 60.0), tmp_path)
    assert not nothing.fine and nothing.note == "nothing ran"
    broken = run(Part("memory", [sys.executable, "-c", "raise OSError('no memory')"], 60), tmp_path)
    assert not broken.fine and broken.note.endswith("OSError: no memory")


def test_on_a_gpu_all_marked_tests_are_run_once():
    parts = {part.name: part.command for part in gpu_check.parts_of("cuda", False, 60.0, 8)}
    assert gpu_check.KERNELS in parts["kernels"] and gpu_check.KERNELS not in parts["engine"]
    assert "tests/test_gpu.py" in parts["engine"]
    assert "retrv_kernels.smoke" in parts["memory"]
