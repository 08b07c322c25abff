"""The programs in examples/, run as a user runs them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest_plugins = ("sglang_fixtures",)

EXAMPLES = Path(__file__).parents[1] / "examples"
PRINTED = {
    "rank_pictures": "1. 0.983  police-officer-dark-skin-tone.png  (inspected)",
    "rank_batch": "change it to green: green-apple.png",
    "rounded_weights": "pictures encoded: 0, found on disk: 51",
    "sglang_server": "guitar.png",
}


def test_every_example_is_run():
    assert sorted(PRINTED) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_its_ranking(name, capsys, monkeypatch, request):
    if name == "sglang_server":
        request.getfixturevalue("sglang_python")
    if name == "rounded_weights":
        pytest.importorskip("diskcache")
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert PRINTED[name] in capsys.readouterr().out


def test_the_sglang_example_says_what_to_install(monkeypatch):
    monkeypatch.setattr("retrv_engine.sglang.process.CPU_PYTHON", Path("nowhere"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(SystemExit, match=r"SGLang is not installed: make sglang-cpu"):
        runpy.run_path(str(EXAMPLES / "sglang_server.py"), run_name="__main__")
