"""How implementations are chosen, and how the choice is explained."""

from __future__ import annotations

import dataclasses
import os
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from retrv_kernels import gpu, native, ops, ragged, registry, selection
from retrv_kernels.availability import Availability
from retrv_kernels.extras import install_command
from retrv_kernels.registry import Choice

OFFSETS = torch.tensor([0, 2])

requires_native = pytest.mark.skipif(native.find() is None, reason="native kernels not compiled")


def chosen(device: str = "cpu") -> set[str]:
    return {choice.implementation.name for choice in ops.explain(device)}


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    monkeypatch.delenv(selection.IMPLEMENTATION, raising=False)
    monkeypatch.delenv(selection.ISA, raising=False)


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
    choice = registry.choose("pool_tokens", "cpu")
    assert choice.implementation.name == "native"
    assert choice.because == f"compiled, {native.isas()[-1]}"
    assert choice.passed_over == {"triton": "for GPUs; on a CPU it needs TRITON_INTERPRET=1"}


def test_reference_runs_where_native_was_not_compiled(without_native):
    choice = registry.choose("pool_tokens", "cpu")
    assert choice.implementation.name == "reference"
    assert "not compiled when this package was installed" in choice.passed_over["native"]
    assert "not native: not compiled when" in str(choice)
    assert ops.pool_tokens(torch.ones(2, 3), OFFSETS, torch.ones(1, 3)).shape == (1, 1, 3)


def test_reference_runs_on_other_devices():
    assert chosen("mps") == {"reference"}
    meta = [x.to("meta") for x in (torch.ones(2, 3), OFFSETS, torch.ones(1, 3))]
    assert ops.pool_tokens(*meta).shape == (1, 1, 3)


def test_triton_is_chosen_on_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "_version", lambda package: "9.9")
    for choice in ops.explain("cuda"):
        names = [one.name for one in registry.OPS[choice.op]]
        assert choice.implementation.name == ("triton" if "triton" in names else "reference")
    choice = registry.choose("paged_attention", "cuda")
    assert choice.implementation.name == "triton"
    assert choice.because == "triton 9.9"
    assert choice.passed_over == {}


def test_the_environment_names_the_implementation(monkeypatch):
    monkeypatch.setenv(selection.IMPLEMENTATION, "reference")
    assert chosen() == {"reference"}
    assert ops.explain()[0].passed_over["native"] == "reference was asked for"


def test_ops_without_the_named_implementation_run_their_best(monkeypatch):
    only_reference = registry.OPS["pool_tokens"][-1:]
    monkeypatch.setattr(registry, "OPS", {**registry.OPS, "another": only_reference})
    monkeypatch.setenv(selection.IMPLEMENTATION, "native")
    assert registry.choose("another", "cpu").implementation.name == "reference"


def test_an_implementation_that_cannot_run_is_an_error(monkeypatch, without_native):
    monkeypatch.setenv(selection.IMPLEMENTATION, "native")
    with pytest.raises(RuntimeError, match="not compiled"):
        ops.explain()
    monkeypatch.setenv(selection.IMPLEMENTATION, "fastest")
    with pytest.raises(ValueError, match="native, reference, triton, xformers"):
        ops.explain()


class TestUse:
    def test_it_overrides_the_environment_until_the_block_ends(self, monkeypatch):
        monkeypatch.setenv(selection.IMPLEMENTATION, "fastest")
        with pytest.raises(ZeroDivisionError), registry.use("reference"):
            assert chosen() == {"reference"}
            raise ZeroDivisionError
        with pytest.raises(ValueError, match="no op has an implementation 'fastest'"):
            ops.explain()

    @requires_native
    def test_inner_blocks_win_and_keep_the_instruction_set(self):
        with registry.use("native", isa="scalar"):
            with registry.use("reference"):
                assert chosen() == {"reference"}
            with registry.use("native"):
                assert ops.explain()[0].because == "compiled, scalar"

    def test_other_threads_are_not_affected(self):
        before = chosen()
        with ThreadPoolExecutor(1) as pool, registry.use("fastest"):
            assert pool.submit(chosen).result() == before

    @requires_native
    def test_compiled_functions_follow_it(self, monkeypatch):
        called = []

        def recorded(name, run):
            return lambda *arguments: called.append(name) or run(*arguments)

        for one in registry.OPS["pool_tokens"][1:]:
            monkeypatch.setitem(one.__dict__, "run", recorded(one.name, one.run))
        arguments = torch.ones(2, 3), OFFSETS, torch.ones(1, 3)
        compiled = torch.compile(ops.pool_tokens, fullgraph=True, backend="aot_eager")
        compiled(*arguments)
        with registry.use("reference"):
            compiled(*arguments)
        assert called == ["native", "reference"]


@requires_native
def test_the_environment_names_the_instruction_set(monkeypatch):
    assert native.isas()[0] == "scalar"
    for isa in native.isas():
        monkeypatch.setenv(selection.ISA, isa)
        assert ops.explain()[0].because == f"compiled, {isa}"
    monkeypatch.setenv(selection.ISA, "avx1024")
    with pytest.raises(ValueError, match="cannot run here: choose one of scalar"):
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


@pytest.mark.parametrize(("extra", "check"), [("gpu", gpu.triton), ("xformers", gpu.xformers)])
def test_gpu_kernels_without_their_package(monkeypatch, extra, check):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    gpu._version.cache_clear()
    try:
        assert not check("cuda")
        assert check("cuda").reason == f"not installed: {install_command(extra)}"
        assert "not for mps" in check("mps").reason
    finally:
        gpu._version.cache_clear()


def test_a_broken_gpu_package_is_an_error(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu.importlib, "import_module", broken)
    gpu._version.cache_clear()
    try:
        with pytest.raises(ImportError, match="triton is installed but does not load"):
            gpu.triton("cuda")
    finally:
        gpu._version.cache_clear()


@requires_native
def test_a_conditional_implementation_can_decline_arguments(monkeypatch):
    picky = dataclasses.replace(registry.OPS["pool_tokens"][1], conditional=True)
    monkeypatch.setattr(registry, "OPS", {"pool_tokens": (picky, registry.OPS["pool_tokens"][2])})
    answers = {"yes": Availability(True, "these"), "no": Availability(False, "not these")}
    picky.__dict__["_module"] = types.SimpleNamespace(accepts=answers.__getitem__)
    assert registry.choose("pool_tokens", "cpu", ["yes"]).because == "these"
    declined = registry.choose("pool_tokens", "cpu", ["no"])
    assert declined.implementation.name == "reference"
    assert declined.passed_over == {"native": "not these"}
    assert registry.choose("pool_tokens", "cpu").implementation.name == "reference"


def test_a_picture_split_anywhere_is_spliced_like_the_whole():
    store, pages = torch.randn(20, 3), torch.tensor([[3, 0, 2]])
    whole = ops.splice_features([store], [ops.Span(0, 4, 12, 30, 4, 0, 7)], pages, 8)
    for cut in (1, 4, 7):
        parts = [
            ops.Span(0, 4, cut, 30, 4, 0, 7),
            ops.Span(0, 4 + cut, 12 - cut, 30, 4, 0, 7 + cut, cut),
        ]
        for got, expected in zip(ops.splice_features([store], parts, pages, 8), whole, strict=True):
            assert torch.equal(got, expected)


def test_float64_runs_the_reference(monkeypatch):
    monkeypatch.setattr(registry, "choose", None)
    store, pages = torch.randn(2, 3).double(), torch.zeros(1, 1).long()
    spliced = ops.splice_features([store], [ops.Span(0, 1, 1, 0, 0, 0, 0)], pages, 1)
    assert torch.equal(spliced.embeds, store[1:])
    out = ops.pool_tokens(torch.ones(2, 3).double(), OFFSETS, torch.ones(1, 3).double())
    assert out.dtype == torch.float64


def test_a_choice_reads_as_a_sentence():
    implementation = registry.OPS["pool_tokens"][-1]
    choice = Choice("op", "cpu", implementation, "plain PyTorch", {"native": "not compiled"})
    assert str(choice) == "op on cpu: reference (plain PyTorch); not native: not compiled"


class TestRagged:
    @pytest.mark.parametrize("lengths", [[3, 1, 0, 4, 2], [4, 4, 4, 4, 4]], ids=str)
    def test_padded_rows_and_gradients_equal_those_of_pad_sequence(self, lengths):
        features, weights = torch.randn(sum(lengths), 6), torch.randn(5, 4, 6)
        ours, theirs = (features.clone().requires_grad_() for _ in range(2))
        rows, mask = ragged.pad_rows(ours, torch.tensor([0, *lengths]).cumsum(0))
        expected = torch.nn.utils.rnn.pad_sequence(theirs.split(lengths), batch_first=True)
        assert torch.equal(rows, expected) and mask.sum(1).tolist() == lengths
        (rows * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.equal(ours.grad, theirs.grad)

    def test_items_are_taken_in_the_given_order(self):
        rows, offsets = torch.arange(10)[:, None], torch.tensor([0, 3, 4, 4, 10])
        taken, bounds = ragged.take_items(rows, offsets, torch.tensor([3, 2, 0, 0]))
        assert taken[:, 0].tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2, 0, 1, 2]
        assert bounds.tolist() == [0, 6, 6, 9, 12]
