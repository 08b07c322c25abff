"""The command line but for rerank: help, wrong usage, and options that reach the work."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import get_args

import pytest
from cli_doubles import run

from retrv_engine import config
from retrv_r1 import __version__
from retrv_r1.command import arguments
from retrv_r1.devices import DTYPES
from retrv_r1.eval import cells, settings
from retrv_r1.types import EarlierWindows, Mode


def test_choices_are_those_of_the_code():
    assert arguments.Weights == config.Weights
    assert get_args(arguments.AnyMode) == (*get_args(Mode), "auto")
    assert get_args(arguments.Dtype) == tuple(DTYPES)
    assert get_args(arguments.Split) == cells.SPLITS
    assert get_args(arguments.Instructions) == get_args(settings.Instructions)
    assert get_args(arguments.Order) == get_args(settings.Order)
    assert get_args(arguments.EarlierWindows) == get_args(EarlierWindows)
    assert get_args(arguments.RunFormat) == get_args(settings.RunFormat)


def test_version_and_help():
    assert run("--version").stdout == f"retrv-r1 {__version__}\n"
    for command in ([], ["rerank"], ["data", "pictographs"], ["train"], ["eval"], ["doctor"]):
        result = run(*command, "--help")
        assert result.exit_code == 0 and "Usage" in result.stdout


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = textwrap.dedent(
        """
        import sys
        sys.argv = ["retrv-r1", "rerank", "--help"]
        from retrv_r1.command.cli import app
        try:
            app()
        except SystemExit:
            print([m for m in ("torch", "numpy", "transformers", "jinja2") if m in sys.modules])
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank", "red"],
        ["rerank", "red", "pictures", "--top", "0"],
        ["rerank", "red", "pictures", "--mode", "slow"],
        ["eval", "set", "--k", "1,x"],
        ["eval", "set", "--k", "1"],
        ["eval", "set", "--split", "half"],
        ["eval", "set", "--fuse", "half"],
        ["eval", "set", "--order", "sorted"],
        ["nonsense"],
    ],
)
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.stderr and "Error" in result.stderr


def stand_in(monkeypatch, name: str, **functions) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


def test_pictographs_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}

    def build(out, **options):
        seen.update(options, out=out)
        if options["size"] < 8:
            raise ValueError("size must be at least 8")
        return types.SimpleNamespace(fresh=True, root=out, counts={"a": 1}, hash="f" * 64)

    monkeypatch.setitem(sys.modules, "retrv_r1.data", types.ModuleType("retrv_r1.data"))
    stand_in(monkeypatch, "retrv_r1.data.pictographs", build=build)
    options = ("--size", "48", "--seed", "3", "--style", "a", "--style", "b", "--no-download")
    result = run("data", "pictographs", str(tmp_path), *options, "--limit-concepts", "9")
    assert result.exit_code == 0 and "built:" in result.stdout
    assert seen == {
        "out": tmp_path,
        "styles": ["a", "b"],
        "seed": 3,
        "size": 48,
        "download": False,
        "limit_concepts": 9,
    }
    assert run("data", "pictographs", str(tmp_path)).exit_code == 0
    assert seen["styles"] is None and seen["download"] is True
    wrong = run("data", "pictographs", str(tmp_path), "--size", "1")
    assert wrong.exit_code == 2 and "size must be at least 8" in wrong.stderr


def test_train_passes_its_options_on(monkeypatch):
    seen = []

    def train(stage, config, out=None, resume=True, **options):
        seen.append((stage, config, out, resume, *options.values()))
        return Path("runs/final")

    stand_in(monkeypatch, "retrv_r1.train", run=train)
    assert run("train", "align", "--config", "a.yaml").stdout == "runs/final\n"
    run("train", "sft", "--config", "a.yaml", "--out", "o", "--no-resume")
    run("train", "sft", "--config", "a.yaml", "--data", "one", "--data", "two")
    config = Path("a.yaml")
    assert seen == [
        ("align", config, None, True),
        ("sft", config, Path("o"), False),
        ("sft", config, None, True, [Path("one"), Path("two")]),
    ]


def test_eval_passes_its_options_on(monkeypatch):
    seen = []

    def evaluate(dataset, **options):
        seen.append((dataset, options))
        return {"cells": [], "bad_cells": []}

    def render(report, console):
        console.print(f"{len(report['cells'])} cells")

    stand_in(monkeypatch, "retrv_r1.eval", run=evaluate, render=render)
    assert run("eval", "set", "--k", "5, 20", "--limit", "7").stdout == "0 cells\n"
    default = {
        **{"model": "tiny", "k": (5, 20), "split": "all", "limit": 7, "out": None, "device": None},
        **{"dtype": None, "modes": ("reason", "fast"), "full_tokens": None, "readings": None},
        **{"fuse": None, "candidates": None, "instructions": "first", "order": "shuffled"},
        **{"window": 50, "earlier_windows": "fast", "seed": 0, "int8_keys": False},
        **{"weights": "model", "run_format": "trec", "cells": (), "pool": "local"},
        **{"skip_bad": False, "calibration": False, "without_answer": 0.25},
    }
    assert seen == [("set", default)]
    arguments = ("--split", "unseen", "--out", "o", "--model", "m", "--json")
    arguments += ("--mode", "fast", "--no-full-tokens", "--int8-keys", "--reading", "pointwise")
    arguments += ("--weights", "int8", "--fuse", "0.5", "--candidates", "lists", "--seed", "3")
    arguments += ("--instructions", "random", "--order", "retrieved", "--window", "20")
    arguments += ("--earlier-windows", "same", "--run-format", "uniir")
    arguments += ("--cell", "cirr_task7", "--pool", "both", "--skip-bad")
    arguments += ("--calibration", "--without-answer", "0.5")
    assert json.loads(run("eval", "set", *arguments).stdout) == {"cells": [], "bad_cells": []}
    assert seen[1][1] == {
        **{"model": "m", "k": (10, 50), "split": "unseen", "limit": None, "out": Path("o")},
        **{"device": None, "dtype": None, "modes": ("fast",), "full_tokens": False},
        **{"readings": ("pointwise",), "fuse": 0.5, "candidates": "lists"},
        **{"instructions": "random", "order": "retrieved", "window": 20},
        **{"earlier_windows": "same", "seed": 3, "int8_keys": True, "weights": "int8"},
        **{"run_format": "uniir", "cells": ["cirr_task7"], "pool": "both", "skip_bad": True},
        **{"calibration": True, "without_answer": 0.5},
    }
    run("eval", "set", "--reading", "pointwise", "--fuse", "lamra")
    assert seen[2][1]["fuse"] == "lamra"


def test_doctor(monkeypatch):
    problems: list[str] = []

    def render(report, console):
        console.print("all well")

    stand_in(
        monkeypatch, "retrv_r1.command.doctor", report=lambda: {"problems": problems}, render=render
    )
    assert run("doctor").stdout == "all well\n"
    assert json.loads(run("doctor", "--json").stdout) == {"problems": []}
    problems.append("broken")
    assert run("doctor", "--json").exit_code == 1
