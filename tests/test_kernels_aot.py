"""Triton kernels compile without a GPU, and their machine code has no faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from retrv_kernels import gpu, registry

pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[gpu]'")

from retrv_kernels.aot import compiling


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != gpu.INTERPRETER}
    command = [sys.executable, "-m", "retrv_kernels.aot", *arguments]
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    file = tmp_path_factory.mktemp("aot") / "quick.json"
    ran = run("--quick", "--json", str(file))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no evidence of speed or correctness" in ran.stdout
    return json.loads(file.read_text())


def test_every_op_compiles_for_both_makers(record):
    seen = {(kernel["op"], kernel["target"]) for kernel in record["kernels"]}
    compiled = {op for op, all_of in registry.OPS.items() if all_of[0].name == "triton"}
    assert seen == {(op, target) for op in compiled for target in ("sm_90", "gfx942")}
    assert not [kernel for kernel in record["kernels"] if kernel["error"]]


def test_no_kernel_spills_or_needs_too_much_shared_memory(record):
    for kernel in record["kernels"]:
        assert kernel["code"]["spills"] <= compiling.TOLERATED_SPILLS, kernel
        assert kernel["code"]["shared"] <= kernel["limit"], kernel
        assert kernel["faults"] == []


def test_every_kernel_loads_16_bytes_at_once(record):
    """On AMD 8 where a row has no more for each thread of its wider warps."""
    loads = {(kernel["target"], kernel["code"]["load"]) for kernel in record["kernels"]}
    assert loads <= {("sm_90", 16), ("gfx942", 16), ("gfx942", 8)}


def test_attention_uses_matrix_products(record):
    products = {
        (kernel["op"], kernel["target"]): kernel["code"]["products"]
        for kernel in record["kernels"]
        if kernel["kernel"].startswith("attend")
    }
    assert products[("paged_attention", "sm_90")] == "mma"  # a decode step has a tile of 16 rows
    assert products[("shared_prefix_attention", "sm_90")] == "wgmma"
    assert products[("paged_attention", "gfx942")] == "mfma"


def test_bytes_moved_are_near_the_least(record):
    ratios = {
        one["op"]: one["moved"] / one["least"]
        for one in record["traffic"]
        if "page query" not in one["configuration"]  # its tiles of R are written and read again
    }
    assert all(1 <= ratio < 2.5 for ratio in ratios.values()), ratios
    assert ratios["pool_tokens"] < 1.5  # the features are read once


def test_refuses_the_interpreter():
    ran = run("--quick", **{gpu.INTERPRETER: "1"})
    assert ran.returncode == 2
    assert "unset" in ran.stderr
