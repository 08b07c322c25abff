"""The kernels suite: peers compute the same as the operations, and trials agree with float64."""

from __future__ import annotations

import pytest
import torch

from bench import harness, plots
from bench.harness import Trial
from bench.suites import kernels
from bench.suites.kernels import attention, entries, layer, peers, splice, tokens
from bench.suites.kernels.sizes import Sizes
from bench.suites.kernels.weights import Weights
from retrv_kernels import gpu, native, ops, registry
from retrv_kernels.ops import Span
from retrv_kernels.paged_attention import cases as paged_attention
from retrv_kernels.splice_features import cases as splice_features

SMALL = entries.Model("small", 48, 24, (4, 2), 16)


class TestPeers:
    @pytest.mark.parametrize("sdpa", [False, True])
    @pytest.mark.parametrize("asked, norm", [(None, True), (5, True), (5, False)])
    def test_direct_tokens_equal_folded_ones(self, asked, norm, sdpa):
        one = Sizes(SMALL, 3, 7, asked, norm)
        weights = Weights.random(one, "cpu", torch.float32)
        weights = Weights(weights.pool.double(), weights.relate.double(), weights.asked.double())
        case = tokens.case_of(one, "float32")
        arguments = case.arguments(torch.float64) | weights.folded(torch.float64)
        folded = weights.token(entries.call(case.op, arguments))
        form = peers.content_token if asked is None else peers.relation_token
        direct = weights.direct(one, arguments, form, sdpa)()
        torch.testing.assert_close(direct, folded, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("new, cached", [(1, 37), (6, 41)])
    def test_dense_and_copied_pages_equal_paged_attention(self, new, cached):
        case = paged_attention.make("x", [(new, cached)] * 3, (4, 2), 16, page_size=8)
        arguments = case.arguments(torch.float64)
        expected = ops.paged_attention(**arguments)
        names = ("query", "key_pages", "value_pages", "page_table")
        parts = {name: arguments[name] for name in names}
        dense = peers.Dense.gather(**parts, new=new, cached=cached)
        torch.testing.assert_close(dense.sdpa(), expected)
        torch.testing.assert_close(ops.paged_attention(**dense.paged(8)), expected)

    def test_plain_splice_equals_the_operation(self):
        spans = [
            Span(0, 5, 2, 40, 0, 1, 9),
            Span(1, 3, 12, 42, 4, 1, 11),
            Span(1, 0, 3, 0, 0, 0, 0),
            Span(1, 8, 4, 42, 4, 0, 5, 5),
        ]
        case = splice_features.make("x", [(12, False), (30, False)], spans, 8)
        arguments = case.arguments(torch.float32)
        plain = {name: arguments[name] for name in ("stores", "spans", "page_table", "page_size")}
        for got, expected in zip(
            peers.splice(**plain), ops.splice_features(**arguments), strict=True
        ):
            torch.testing.assert_close(got.to(expected.dtype), expected, rtol=0, atol=0)


class TestKernels:
    CONTEXT = entries.Context("cpu", 1e11)

    @pytest.mark.parametrize("quick", [True, False])
    def test_covers_every_op_and_sweeps(self, quick):
        made = kernels.suite("cpu", 1e11, quick)
        assert set(registry.OPS) <= {trial.op for trial in made.trials}
        names = [(trial.op, trial.name, trial.dtype) for trial in made.trials]
        assert len(set(names)) == len(names)
        swept = {(trial.op, plot) for trial in made.trials for plot in trial.plots}
        for op in ("pool_tokens", "relate_tokens", "content token", "relation token"):
            assert ({(op, plot) for plot in plots.SWEEPS} <= swept) is not quick
        assert any("left out: 7B 100 × 1280, " in note for note in made.notes) is not quick

    @pytest.mark.parametrize("asked", [None, 5])
    def test_token_trials_agree_with_float64(self, asked):
        for one in tokens.trials(self.CONTEXT, [Sizes(SMALL, 3, 7, asked, plots=("K",))]):
            self.agrees(one, "folded", *(["direct"] if one.op.endswith(" token") else []))

    def test_a_slow_direct_form_is_left_out_and_says_so(self):
        sizes = [Sizes(SMALL, 3, 7, plots=("K",))]
        *_, token = tokens.trials(entries.Context("cpu", 1.0), sizes)
        rows = {row["implementation"]: row for row in harness.run(token, 0, rounds=(1, 1))}
        assert rows["direct"]["note"].startswith("left out: a call would take about")
        assert rows["direct"]["seconds"] is None and not rows["direct"]["failed"]

    def test_other_trials_agree_with_float64(self):
        self.agrees(next(splice.trials(self.CONTEXT, True)), "reference", "torch.cat")
        for between in layer.trials(self.CONTEXT, True):
            self.agrees(between, "reference")
        for kind, nodes in (("flat", attention.FLAT), ("tree", attention.TREE)):
            shared = attention.shared(self.CONTEXT, SMALL, kind, nodes)
            self.agrees(shared, "reference", "SDPA, dense")

    @staticmethod
    def agrees(one: Trial, *names: str) -> None:
        rows = {row["implementation"]: row for row in harness.run(one, 0, rounds=(1, 1))}
        assert not any(row["failed"] for row in rows.values()), rows
        for name in names:
            assert rows[name]["seconds"] and rows[name]["error"] <= one.tolerance, rows[name]

    @pytest.mark.parametrize("device, best", [("cuda", "triton"), ("cpu", "reference")])
    def test_the_paged_baseline_is_one_that_takes_every_call(self, monkeypatch, device, best):
        monkeypatch.setattr(gpu, "_version", lambda package: "9.9")
        monkeypatch.setattr(native, "find", lambda: None)
        native.isas.cache_clear()
        try:
            entry = attention.best_paged(device, "paged", {})
        finally:
            native.isas.cache_clear()
        with entry.within():
            assert registry.choose("paged_attention", device).implementation.name == best
        assert entry.baseline
