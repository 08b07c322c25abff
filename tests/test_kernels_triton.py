"""Triton kernels against float64, in Triton's interpreter.

The interpreter must be enabled before Triton is loaded, and replaces its compiler for good. So
these tests run in a separate process, which the first one starts.
"""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retrv_kernels import gpu, ops, registry, selection
from retrv_kernels.cases import SMALL, TOLERANCE, error_of, expected_of, named, result_of

pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[gpu]'")
INTERPRETED = os.environ.get(gpu.INTERPRETER) == "1"
# The interpreter truncates float32 to bfloat16 where a GPU rounds: one step of its 8 bits.
TRUNCATION = 2.0**-7


@pytest.mark.skipif(INTERPRETED, reason="this is the process that the test starts")
def test_in_a_process_with_the_interpreter():
    environment = os.environ | {gpu.INTERPRETER: "1", selection.IMPLEMENTATION: "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr


WITH_TRITON = [op for op, (best, *_) in registry.OPS.items() if best.name == "triton"]
PAIRS = [(case, dtype) for case in SMALL if case.op in WITH_TRITON for dtype in case.dtypes]


class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=str)
    def test_agrees_with_float64(self, case, dtype, poisoned):
        arguments = case.arguments(dtype)
        kept = copy.deepcopy(arguments)
        assert registry.choose(case.op, "cpu").implementation.name == "triton"
        truncates = case.op == "splice_features" and dtype == torch.bfloat16
        found = result_of(case.op, arguments)
        error = error_of(found, expected_of(case.op, arguments))
        assert error <= (TRUNCATION if truncates else TOLERANCE[case.op][dtype])
        torch.testing.assert_close(arguments, kept, rtol=0, atol=0, equal_nan=True)

    def test_pooling_an_item_does_not_depend_on_the_batch(self):
        features, queries = torch.randn(300, 40), torch.randn(3, 40)
        together = ops.pool_tokens(features, torch.tensor([0, 5, 5, 170, 300]), queries)
        for item, (begin, end) in enumerate(((0, 5), (5, 5), (5, 170), (170, 300))):
            alone = ops.pool_tokens(features[begin:end], torch.tensor([0, end - begin]), queries)
            torch.testing.assert_close(together[item], alone[0], rtol=0, atol=0)

    def test_a_pair_does_not_depend_on_the_others(self):
        keys, asks = torch.randn(50, 16), torch.randn(12, 16)
        values, output, queries = torch.randn(12, 2, 8), torch.randn(24, 2, 8), torch.randn(3, 24)
        offsets, asked = torch.tensor([0, 40, 50]), torch.tensor([0, 5, 12])
        pairs = torch.tensor([1, 0, 0]), torch.tensor([1, 1, 0])
        together = ops.relate_tokens(
            keys, offsets, asks, asked, values, output, queries, *pairs, eps=1e-6
        )
        alone = ops.relate_tokens(
            keys[:40], torch.tensor([0, 40]), asks[5:], torch.tensor([0, 7]), values[5:], output,
            queries, eps=1e-6,
        )  # fmt: skip
        assert error_of(together[1], alone[0]) < 2e-6

    @pytest.mark.parametrize("op", ["paged_attention", "shared_prefix_attention"])
    def test_attention_does_not_depend_on_splits(self, op, monkeypatch):
        name = {"paged_attention": "extend", "shared_prefix_attention": "nested"}[op]
        arguments = named(op, name).arguments(torch.float32)
        split = getattr(ops, op)(**arguments)
        module = sys.modules[f"retrv_kernels.{op}.triton_impl"]
        counts = []
        monkeypatch.setattr(module, "split_count", lambda *sizes: counts.append(sizes) or 1)
        assert error_of(getattr(ops, op)(**arguments), split) < 2e-6
        assert counts

    def test_caches_that_are_slices_of_one(self):
        arguments = named("paged_attention", "decode").arguments(torch.float32)
        expected = ops.paged_attention(**arguments)
        both = torch.stack([arguments["key_pages"], arguments["value_pages"]], dim=1)
        arguments |= {"key_pages": both[:, 0], "value_pages": both[:, 1]}
        torch.testing.assert_close(ops.paged_attention(**arguments), expected, rtol=0, atol=0)

    def test_a_group_of_heads_larger_than_a_tile(self):
        query, cache = torch.randn(2, 20, 8), torch.randn(3, 4, 1, 8)
        table, lengths = torch.tensor([[0, 1], [2, 0]]), torch.tensor([7, 3])
        arguments = query, cache, cache, table, torch.tensor([0, 1, 2]), lengths
        expected = ops.paged_attention(*(a.double() if a.ndim > 2 else a for a in arguments))
        assert error_of(ops.paged_attention(*arguments), expected) < 2e-5

    @pytest.mark.parametrize(
        ("op", "name"),
        [
            ("add_rms_norm", "width_1500"),
            ("rotate_to_pages", "norms"),
            ("rotate_to_pages", "width_80"),
            ("silu_product", "width_1025"),
        ],
    )
    def test_rounds_where_pytorch_does(self, op, name):
        """After each operation of a layer, to its dtype: nearly all values are equal."""
        arguments = named(op, name).arguments(torch.float16)
        found = result_of(op, arguments)
        with registry.use("reference"):
            expected = result_of(op, arguments)
        both = (found, expected) if isinstance(found, tuple) else ([found], [expected])
        for ours, theirs in zip(*both, strict=True):
            assert (ours != theirs).float().mean() < 0.003
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-6)

    @pytest.mark.parametrize("op", ["paged_attention", "shared_prefix_attention"])
    def test_empty_parts_are_not_merged(self, op, poisoned, monkeypatch):
        """There are more programs than blocks, as with a page table for longer contexts."""
        name = {"paged_attention": "decode", "shared_prefix_attention": "nested"}[op]
        arguments = named(op, name).arguments(torch.float32)
        module = importlib.import_module(f"retrv_kernels.{op}.triton_impl")
        monkeypatch.setattr(module, "split_count", lambda *_: 19)
        wide = torch.nn.functional.pad(arguments["page_table"], (0, 40), value=-(10**6))
        found = getattr(ops, op)(**{**arguments, "page_table": wide})
        assert error_of(found, expected_of(op, arguments)) <= TOLERANCE[op][torch.float32]

    def test_a_gpu_multiplies_halves_into_float32(self, monkeypatch):
        """This checks the call of PyTorch; only a GPU can check its result."""
        module = importlib.import_module("retrv_kernels.relate_tokens.triton_direct")
        multiply, asked = torch.bmm, []
        monkeypatch.setattr(
            torch, "bmm", lambda a, b, **how: asked.append((a.dtype, how)) or multiply(a, b, **how)
        )
        with FakeTensorMode(), torch.device("cuda"):
            rows = torch.empty(1, 32, 8, dtype=torch.bfloat16)
            out = module.product(rows, rows.mT)
        assert out.dtype == torch.float32 and out.shape == (1, 32, 32)
        assert asked == [(torch.bfloat16, {"out_dtype": torch.float32})]
