"""How implementations are chosen, and what is said about it."""

from __future__ import annotations

import os

import pytest
import torch

from retrv_kernels import native, ops, registry
from retrv_kernels.registry import Choice

requires_native = pytest.mark.skipif(native.find() is None, reason="native kernels not compiled")


def chosen(device: str = "cpu") -> set[str]:
    return {choice.implementation.name for choice in ops.explain(device)}


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(registry.OVERRIDE, raising=False)
    monkeypatch.delenv(native.OVERRIDE, raising=False)


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(native, "find", lambda: None)


@pytest.mark.skipif(not os.environ.get("CI"), reason="native kernels are optional outside CI")
def test_native_is_compiled_on_ci():
    assert native.find() is not None, native.check("cpu").reason


def test_every_op_ends_with_its_reference():
    for implementations in registry.OPS.values():
        assert implementations[-1].name == "reference"
        assert implementations[-1].check("anything")


@requires_native
def test_native_is_preferred_on_a_cpu():
    choice = registry.choose("row_inverse_rms", "cpu")
    assert choice.implementation.name == "native"
    assert choice.because == f"compiled, {native.isas()[-1]}"
    assert choice.passed_over == {}


def test_reference_runs_where_native_was_not_compiled(without_native):
    choice = registry.choose("row_inverse_rms", "cpu")
    assert choice.implementation.name == "reference"
    assert "not compiled when this package was installed" in choice.passed_over["native"]
    assert "not native: not compiled when" in str(choice)
    torch.testing.assert_close(ops.row_inverse_rms(torch.ones(2, 3), 0.0), torch.ones(2))


def test_reference_runs_on_other_devices():
    assert chosen("cuda") == {"reference"}
    assert ops.row_inverse_rms(torch.ones(2, 3, device="meta")).shape == (2,)


def test_override_takes_the_named_implementation(monkeypatch):
    monkeypatch.setenv(registry.OVERRIDE, "reference")
    assert chosen() == {"reference"}
    assert ops.explain()[0].passed_over == {"native": "RETRV_KERNELS=reference"}


def test_override_does_not_bind_ops_without_it(monkeypatch):
    only_reference = registry.OPS["row_inverse_rms"][-1:]
    monkeypatch.setattr(registry, "OPS", {**registry.OPS, "another": only_reference})
    monkeypatch.setenv(registry.OVERRIDE, "native")
    assert registry.choose("another", "cpu").implementation.name == "reference"


def test_override_that_cannot_be_followed_is_an_error(monkeypatch, without_native):
    monkeypatch.setenv(registry.OVERRIDE, "native")
    with pytest.raises(RuntimeError, match="not compiled"):
        ops.explain()
    monkeypatch.setenv(registry.OVERRIDE, "fastest")
    with pytest.raises(ValueError, match="native, reference"):
        ops.explain()


@requires_native
def test_instruction_set_override(monkeypatch):
    assert native.isas()[0] == "scalar"
    for isa in native.isas():
        monkeypatch.setenv(native.OVERRIDE, isa)
        assert ops.explain()[0].because == f"compiled, {isa}"
    monkeypatch.setenv(native.OVERRIDE, "avx1024")
    with pytest.raises(ValueError, match="cannot run here; one of: scalar"):
        ops.explain()


def test_a_broken_native_module_is_an_error(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(native.importlib, "import_module", broken)
    native.find.cache_clear()
    try:
        with pytest.raises(ImportError, match="does not load; reinstall it: undefined symbol"):
            ops.explain()
    finally:
        native.find.cache_clear()


@requires_native
def test_a_native_module_older_than_the_sources_is_an_error():
    with pytest.raises(ImportError, match="older than the sources: no op_of_tomorrow"):
        native.function("op_of_tomorrow")


def test_a_choice_reads_as_a_sentence():
    implementation = registry.OPS["row_inverse_rms"][-1]
    choice = Choice("op", "cpu", implementation, "plain PyTorch", {"native": "not compiled"})
    assert str(choice) == "op on cpu: reference (plain PyTorch); not native: not compiled"
