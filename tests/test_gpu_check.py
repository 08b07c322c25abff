"""The runner of `make gpu-check`: failures, a part that hangs and one without tests all show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gpu_check
import pytest
from gpu_check import FOUND, KERNELS, Part, parts_of, run, summary

TESTS = """
import time, pytest
def test_right(record_property):
    for key, value in dict(op="pool_tokens", dtype="bfloat16", error=1e-3, bound=1e-2).items():
        record_property(key, value)
def test_exact(record_property):
    for key, value in dict(op="splice_features", dtype="float32", error=0.0, bound=0.0).items():
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
    assert (
        not hanging.fine
        and hanging.note == "stopped after 15 s: give more MINUTES, or see its log for what hangs"
    )
    assert [test["outcome"] for test in hanging.tests] == ["passed", "passed", "failed", "skipped"]
    told = "\n".join(summary([hanging]))
    assert (
        "pool_tokens                      1 passed, 0 failed, 0 skipped; bfloat16 1.0e-03 of"
        in told
    )
    assert "float32 0.0e+00 of 0e+00" in told
    assert "::test_wrong: ValueError: of the wrong sort" in told and "skipped 1: " in told
    nothing = run(Part("nothing", [*pytest, "-k", "left_out"], 60.0), tmp_path)
    assert not nothing.fine and nothing.note == "nothing ran"
    broken = run(Part("memory", [sys.executable, "-c", "raise OSError('no memory')"], 60), tmp_path)
    assert not broken.fine and broken.note.endswith("OSError: no memory")


ENDLESS = """
import sys, gpu_check, pathlib
gpu_check._machine = lambda *_: dict(lines=[], problem="", commit="", folder="card")
line = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
gpu_check.parts_of = lambda *_, **__: [gpu_check.Part("endless", line, 60.0)]
gpu_check.main("cpu", False, 1.0, 1, True, "", pathlib.Path(sys.argv[1]))
"""


def test_who_stops_the_check_stops_its_parts(tmp_path):
    log = tmp_path / "card/check/endless.log"
    with subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path], env=environment()) as check:
        until(lambda: log.exists() and log.read_text().endswith("\n"))
        part = int(log.read_text())
        os.kill(part, 0)
        check.send_signal(signal.SIGTERM)
        assert check.wait(10) == 128 + signal.SIGTERM

    def gone() -> bool:  # or dead, where nobody reaps it
        stat = f"/proc/{part}/stat"
        return not os.path.exists(stat) or open(stat).read().split()[2] == "Z"

    until(gone)


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def environment() -> dict[str, str]:
    paths = [str(gpu_check.ROOT / name) for name in ("", "engine", "kernels", "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_what_is_not_the_checks_own_stays(tmp_path):
    mine, other = tmp_path / "kernels.log", tmp_path / "thesis.tex"
    for path in (mine, other, tmp_path / "check.json"):
        path.write_text("x")
    gpu_check._empty(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_the_machine_is_told_without_git_and_a_silent_card_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    machine = gpu_check._machine("cpu", 120.0)
    assert not machine["problem"] and machine["commit"] is None
    assert machine["lines"] and machine["folder"] == machine["folder"].lower()
    assert gpu_check._machine("cpu", 0.01)["problem"] == "the card did not answer within 0 s"


def test_accesses_that_nobody_checked_are_a_failure(tmp_path):
    """Unless that was asked for; a wrong access is told from a wrong result."""
    fine = Part("memory", [sys.executable, "-c", "print('Device not supported')"], 60.0)
    assert run(fine, tmp_path).fine
    unchecked = run(replace(fine, checked=True), tmp_path)
    assert not unchecked.fine and "FLAGS=--no-memcheck" in unchecked.note
    checker = tmp_path / gpu_check.CHECKER
    checker.write_text("#!/bin/sh\nexit $code\n")
    checker.chmod(0o755)
    notes = {"0": "under compute-sanitizer", str(FOUND): "wrong accesses: memory.log has them"}
    for code, note in notes.items():
        part = Part("memory", [str(checker)], 60.0, {"code": code}, checked=True)
        outcome = run(part, tmp_path)
        assert outcome.code == int(code) and outcome.note.endswith(note)


def test_the_memory_checker_is_found_beside_the_compiler(tmp_path, monkeypatch):
    checker = tmp_path / gpu_check.CHECKER
    checker.touch(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(gpu_check, "TOOLKIT", str(tmp_path))
    memory = parts_of("cuda", False, 60.0, 8)[-1]
    assert memory.command[0] == str(checker) and "--report-api-errors" in memory.command
    memory = parts_of("cuda", False, 60.0, 8, memcheck=False)[-1]
    assert not memory.checked and memory.command[0] == sys.executable


@pytest.mark.parametrize("name", ["kernels", "engine"])
def test_the_commands_for_a_gpu_find_all_marked_tests(name, tmp_path):
    """As they run there, processes and all; with no card to be seen each test skips itself."""
    parts = {part.name: part for part in parts_of("cuda", False, 300.0, 2, memcheck=False)}
    part = replace(parts[name], environment={"CUDA_VISIBLE_DEVICES": ""})
    outcome = run(part, tmp_path)
    log = (tmp_path / f"{name}.log").read_text()
    assert outcome.note == "nothing ran", log
    assert {test["outcome"] for test in outcome.tests} == {"skipped"}
    files = {test["test"].split("::")[0] for test in outcome.tests}
    wanted = {KERNELS} if name == "kernels" else set(gpu_check._gpu_files()) - {KERNELS}
    assert files == wanted and len(outcome.tests) > 20
