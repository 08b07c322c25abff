"""Checks of kernels, engine and memory accesses on a GPU: ``make gpu-check``; see docs/gpu.md.

Each part is a separate process with a time limit; on a GPU all run at once. Prints a line for each
op, and exits with 1 if anything failed or did not run. Stopping this process stops its parts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "tests/test_kernels_gpu.py"
ON_CPU = "tests/test_kernels_ops.py"
NEEDED = {"xdist": "pytest-xdist", "pytest_timeout": "pytest-timeout"}
SHOWN = 30  # failures in the summary
CHECKER = "compute-sanitizer"
TOOLKIT = "/usr/local/cuda/bin"  # searched after PATH
FOUND = 86  # its exit code for a wrong access; the checked program never exits with it
# Its messages where the machine does not allow it to use the card.
REFUSED = ("Device not supported", "not supported on this device")
# Processes of parts, killed when this one is stopped.
_RUNNING: set[subprocess.Popen[bytes]] = set()

_SHOWN = ("lines", "problem", "folder")  # parts of a machine's description that are not saved
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Part:
    """A command with a limit of ``seconds``; ``checked`` if it needs a memory checker to pass."""

    name: str
    command: Sequence[str]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)
    checked: bool = False


@dataclass
class Outcome:
    """The end of a part; ``tests`` are lines of :mod:`outcomes`."""

    part: str
    code: int | None
    seconds: float
    tests: list[dict[str, Any]]
    note: str = ""

    @property
    def fine(self) -> bool:
        return self.code == 0


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu for a rehearsal.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="A few cases of each op.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit of all parts.")] = 3.0,
    workers: Annotated[int, typer.Option(help="Number of processes for the tests of kernels.")] = 0,
    memcheck: Annotated[bool, typer.Option(help="Fail if there is no memory checker.")] = True,
    commit: Annotated[str, typer.Option(help="Commit of the code; from git by default.")] = "",
    out: Annotated[
        Path, typer.Option(help="Folder for results; each card gets a folder in it.")
    ] = Path("bench/results/gpu"),
) -> None:
    """Checks kernels, engine, training and memory accesses on a GPU."""
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        raise SystemExit(f"{sys.executable} lacks what this needs: pip install {' '.join(missing)}")
    if device not in ("cuda", "cpu"):
        raise SystemExit(f"the device must be cuda or cpu, not {device!r}")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _stop)
    began = time.monotonic()
    machine = _machine(device, 30 * minutes)
    for line in machine["lines"]:
        print(line, flush=True)
    if machine["problem"]:
        raise SystemExit(machine["problem"])
    machine["commit"] = commit or machine["commit"]
    out = out / machine["folder"] / "check"
    _empty(out)
    # On a CPU parts run one after another, each with the full limit.
    left = 60 * minutes - (time.monotonic() - began if device == "cuda" else 0.0)
    workers = workers or min(8, os.cpu_count() or 1)
    parts = parts_of(device, quick, left, workers, memcheck=memcheck)
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(len(parts) if device == "cuda" else 1) as pool:
        for done in as_completed(pool.submit(run, part, out) for part in parts):
            outcomes.append(done.result())
            _save(out, machine, outcomes)
            print(_line(outcomes[-1]), flush=True)
    print("\n".join(summary(outcomes)), flush=True)
    raise SystemExit(0 if all(one.fine for one in outcomes) else 1)


def parts_of(
    device: str, quick: bool, seconds: float, workers: int, *, memcheck: bool = True
) -> list[Part]:
    """The parts, longest first."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "outcomes", "-p", "no:cacheprovider"]
    pytest += ["--timeout", "120", "--color", "no"]
    spread = ["-n", str(workers), "--maxfail", "30"]
    others = [name for name in _gpu_files() if name != KERNELS]
    smoke = [sys.executable, "-m", "retrv_kernels.smoke", "--device", device]
    few = ["-k", "decode or stores"] if quick else []
    if device == "cpu":
        kernels = [*pytest, *spread, ON_CPU, *few]
        engine = [*pytest, *others, "-k", "emulated" + (" and not half" if quick else "")]
        commands = {"kernels": kernels, "engine": engine, "memory": smoke}
        return [Part(name, command, seconds) for name, command in commands.items()]
    kernels = [*pytest, *spread, "-m", "gpu", KERNELS, *few]
    # One after another: each engine takes a large part of the card's memory.
    engine = [*pytest, "-m", "gpu", *others]
    checker = shutil.which(CHECKER) or shutil.which(CHECKER, path=TOOLKIT) if memcheck else None
    # PyTorch's memory cache would hide accesses past the end of a tensor.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if checker else {}
    if checker:
        # PyTorch and Triton make calls that are allowed to fail.
        options = ["--tool", "memcheck", "--report-api-errors", "no"]
        smoke = [checker, *options, "--error-exitcode", str(FOUND), *smoke]
    return [
        Part("kernels", kernels, seconds),
        Part("engine", engine, seconds),
        Part("memory", smoke, seconds, uncached, checked=memcheck),
    ]


def run(part: Part, out: Path) -> Outcome:
    """Runs a part within its limit; its output goes to ``NAME.log``."""
    began = time.monotonic()
    lines, log = out / f"{part.name}.jsonl", out / f"{part.name}.log"
    paths = [str(ROOT / name) for name in ("", "engine", "kernels", "tests")]
    # Parts run at the same time: with a thread for each core they would slow each other down.
    environment = {"OMP_NUM_THREADS": "2", **os.environ, **part.environment}
    environment["GPU_CHECK_OUTCOMES"] = str(lines.resolve())
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    with log.open("w") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        _RUNNING.add(process)
        try:
            code: int | None = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        _RUNNING.discard(process)
    text = lines.read_text() if lines.exists() else ""
    tests = [json.loads(line) for line in text.splitlines()]
    outcome = Outcome(part.name, code, round(time.monotonic() - began, 1), tests)
    outcome.note = _note(part, outcome, log.read_text(errors="replace"))
    return outcome


def summary(outcomes: Iterable[Outcome]) -> list[str]:
    """A line for each op or file, then failures and reasons of skips."""
    tests = [test for outcome in outcomes for test in outcome.tests]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test in tests:
        groups[_group(test)].append(test)
    lines = []
    for name, members in sorted(groups.items()):
        counts = Counter(test["outcome"] for test in members)
        said = [f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")]
        worst = _worst(members)
        lines.append(f"{name:32} {', '.join(said)}{worst}")
    failed = [test for test in tests if test["outcome"] == "failed"]
    lines += [f"FAILED {test['test']}: {test.get('why', '')}" for test in failed[:SHOWN]]
    if len(failed) > SHOWN:
        lines.append(f"… and {len(failed) - SHOWN} more: the logs have them")
    reasons = Counter(test.get("why", "") for test in tests if test["outcome"] == "skipped")
    lines += [f"skipped {count}: {why}" for why, count in reasons.most_common(5)]
    return lines


def _worst(tests: Sequence[dict[str, Any]]) -> str:
    """The largest error of each dtype relative to its bound."""
    found: dict[str, tuple[float, float, float]] = {}
    for test in tests:
        if "error" in test:
            error, bound = test["error"], test["bound"]
            share = (
                error / bound if bound else (math.inf if error else 0.0)
            )  # ops that copy have a bound of 0
            if share >= found.get(test["dtype"], (-1.0,))[0]:
                found[test["dtype"]] = share, error, bound
    return "".join(
        f"; {name} {error:.1e} of {bound:.0e}" for name, (_, error, bound) in sorted(found.items())
    )


def _group(test: dict[str, Any]) -> str:
    """The op that a test checks, or the test's file."""
    if "op" in test:
        return test["op"]
    file, _, rest = test["test"].partition("::")
    inside = re.search(r"\[(\w+?)(?:-|\])", rest)
    return inside[1] if inside and "kernels" in file else Path(file).stem


def _line(outcome: Outcome) -> str:
    counts = Counter(test["outcome"] for test in outcome.tests)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    how = "ok" if outcome.fine else "FAILED"
    return f"{how:6} {outcome.part}: {outcome.seconds} s {said} {outcome.note}".rstrip()


def _note(part: Part, outcome: Outcome, log: str) -> str:
    """A remark about a part, besides its tests; marks parts as failed that proved nothing."""
    if outcome.code is None:
        return (
            f"stopped after {part.seconds:.0f} s: give more MINUTES, or see its log for what hangs"
        )
    if part.name != "memory":
        if outcome.fine and not any(test["outcome"] == "passed" for test in outcome.tests):
            outcome.code = 1
            return "nothing ran"
        return "" if outcome.fine or outcome.tests else _last(log)
    if outcome.code == FOUND:
        return f"{CHECKER} found wrong accesses: memory.log has them"
    watched = CHECKER in part.command[0]
    if watched and not any(words in log for words in REFUSED):
        return f"under {CHECKER}" if outcome.fine else _last(log)
    why = f"{CHECKER} refuses this device" if watched else f"no {CHECKER}"
    said = f"accesses were not checked: {why}"
    if outcome.fine and part.checked:
        outcome.code = 1
        return f"{said}; FLAGS=--no-memcheck allows that"
    return said if outcome.fine else f"{said}; {_last(log)}"


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _gpu_files() -> list[str]:
    """Test files that have tests for a GPU."""
    found = re.compile(r"mark\.gpu|def test\w*\(gpu\b")
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [f"tests/{path.name}" for path in files if found.search(path.read_text())]


def _stop(number: int, _: Any) -> None:
    """Kills the parts when this process is stopped."""
    for process in list(_RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    os._exit(128 + number)


def _empty(out: Path) -> None:
    """Removes the results of an earlier run from a folder, and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob("*.log"), *out.glob("*.jsonl"), *out.glob("check.json")]:
        path.unlink()


def _machine(device: str, seconds: float) -> dict[str, Any]:
    """Versions, card and chosen implementations, from a separate process because it may hang."""
    code = f"import gpu_check, json; print(json.dumps(gpu_check.describe({device!r})))"
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "engine", "kernels", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"lines": [], "problem": f"the card did not answer within {seconds:.0f} s"}
    if asked.returncode:
        return {"lines": [], "problem": f"nothing can run here: {_last(asked.stderr)}"}
    return json.loads(asked.stdout.splitlines()[-1])


def describe(device: str) -> dict[str, Any]:
    """Everything that a result depends on, as values and as lines to print."""
    import platform

    import torch
    import transformers

    from retrv_kernels import ops
    from retrv_r1.train.record import commit_here, slug

    triton = importlib.util.find_spec("triton") and __import__("triton").__version__
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton or "none",
        "transformers": transformers.__version__,
    }
    there = device == "cuda" and torch.cuda.is_available()
    card = torch.cuda.get_device_name() if there else platform.processor() or platform.machine()
    problem = ""
    if device == "cuda" and not there:
        problem = "PyTorch finds no CUDA device: DEVICE=cpu rehearses on this processor"
    choices = [str(choice) for choice in ops.explain(device)] if not problem else []
    lines = [f"{card}; {', '.join(f'{k} {v}' for k, v in versions.items())}", *choices]
    about = {"card": card, "device": device, "commit": commit_here(), "versions": versions}
    return {**about, "folder": slug(card), "lines": lines, "problem": problem}


def _save(out: Path, machine: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Saves the results so far, in case the run is stopped."""
    parts = [
        {"part": one.part, "ok": one.fine, "seconds": one.seconds, "note": one.note}
        for one in outcomes
    ]
    about = {key: value for key, value in machine.items() if key not in _SHOWN}
    said = {**about, "choices": machine["lines"][1:], "parts": parts, "summary": summary(outcomes)}
    (out / "check.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
