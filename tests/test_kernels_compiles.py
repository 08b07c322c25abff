"""How many kernels serving compiles, by Triton's keys for calls of many shapes; needs no GPU.

A kernel compiles once for each key. A step that is longer or larger than those before, or whose
tensors have other addresses, should not wait for a compiler.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter

import pytest
import torch

from retrv_kernels import gpu, registry

pytest.importorskip("triton", reason="triton is not installed: pip install -e '.[gpu]'")
pytestmark = pytest.mark.skipif(
    os.environ.get(gpu.INTERPRETER) == "1", reason="the interpreter stands in for the compiler"
)

HALF = torch.bfloat16
HEADS, CACHED, WIDTH, PAGE, HIDDEN = 16, 2, 128, 16, 2048
# A number that no device has; Triton keeps keys for each device.
_DEVICE = 99
LENGTHS = (1, 17, 64, 200, 1000, 1024, 4097, 12800)


@pytest.fixture
def keys(monkeypatch):
    """Names and keys of the launched kernels; nothing runs."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction, compute_cache_key

    from retrv_kernels.aot.compiling import StubDriver

    found: set[tuple[str, str]] = set()

    def launch(function, *arguments, grid, warmup, **options):
        assert all(grid), "an empty grid"
        *_, known, _, _, bind = function.device_caches[_DEVICE]
        _, specialization, rest = bind(*arguments, **options, debug=False)
        found.add((function.__name__, compute_cache_key(known, specialization, rest)))

    monkeypatch.setattr(JITFunction, "run", launch)
    monkeypatch.setattr(driver, "_active", StubDriver(GPUTarget("cuda", 90, 32), _DEVICE))
    return found


def run(op: str, *arguments) -> None:
    next(one for one in registry.OPS[op] if one.name == "triton").run(*arguments)


def count(keys) -> Counter[str]:
    return Counter(name.lstrip("_") for name, _ in keys)


def caches():
    return torch.empty(2, 3, CACHED, PAGE, WIDTH, dtype=HALF).transpose(2, 3)


def attend(sequences: int, new: int, cached: int, first: int = 0) -> None:
    """A batch whose tables are slices of larger ones, after ``first`` other sequences."""
    keys, values = caches()
    table = torch.zeros(first + sequences, -(-cached // PAGE), dtype=torch.long)[first:]
    offsets = torch.arange(first + sequences + 1)[first:] * new
    lengths = torch.full((first + sequences,), cached)[first:]
    query = torch.empty(sequences * new, HEADS, WIDTH, dtype=HALF)
    run("paged_attention", query, keys, values, table, offsets, lengths, 0.1)


def test_attention_of_every_length_and_batch(keys):
    for sequences, cached, first in itertools.product((1, 2, 7, 8, 16, 31, 32), LENGTHS, (0, 1, 3)):
        attend(sequences, 1, cached, first)
        attend(sequences, min(cached, 33), cached, first)
    # A decode step and a prefill, each with one part or several.
    assert count(keys) == {"attend_pages": 4, "merge_parts": 1}


def test_shared_prefixes_of_every_tree(keys):
    pages = caches()
    for rows, extra, cached in itertools.product((1, 2, 3, 8, 31, 32), (0, 1, 5, 32), LENGTHS):
        nodes = min(rows + extra, 64)
        query = torch.empty(rows, HEADS, WIDTH, dtype=HALF)
        table = torch.zeros(nodes, -(-cached // PAGE), dtype=torch.long)
        lengths, owners = torch.full((nodes,), cached), torch.zeros(nodes, 2, dtype=torch.long)
        run("shared_prefix_attention", query, *pages, table, lengths, owners, 0.1)
    # Up to two rows fit the small tile; there is one part only if there is one page.
    assert count(keys)["attend_nodes"] <= 4 and count(keys)["merge_parts"] == 1


def test_splices_of_every_number_of_stores(keys):
    tables = [torch.empty(2, HIDDEN, dtype=HALF) for _ in range(16)]
    for stores, spans, rows in itertools.product(range(1, 17), (1, 3, 16, 300), (1, 16, 512, 777)):
        table = torch.zeros(spans, 1 + rows // PAGE, dtype=torch.long)
        given = torch.zeros(spans, 8, dtype=torch.long)
        run("splice_features", tables[:stores], [None] * stores, given, table, PAGE, rows, HALF)
    assert count(keys) == {"splice": 5}


def test_layers_of_every_number_of_rows(keys):
    pages = caches()
    for rows in (1, 2, 7, 16, 512, 4097):
        x = torch.empty(rows, HIDDEN, dtype=HALF)
        run("add_rms_norm", x, x, x[0], 1e-6)
        run("silu_product", x)
        qkv = torch.empty(rows, HEADS + 2 * CACHED, WIDTH, dtype=HALF)
        turn, slots = torch.empty(rows, 1, WIDTH, dtype=HALF), torch.zeros(rows, dtype=torch.long)
        run("rotate_to_pages", qkv, turn, turn, *pages, slots, HEADS, None, None, 1e-6)
    assert count(keys) == {"add_rms_norm": 1, "silu_product": 1, "rotate": 1}


def test_items_of_every_number(keys):
    queries = torch.empty(4, HIDDEN)
    for items, rows in itertools.product((1, 3, 16, 50), (1, 16, 81)):
        features = torch.empty(items * rows, HIDDEN, dtype=HALF)
        run("pool_tokens", features, torch.arange(items + 1) * rows, queries, None, 1e-6)
    assert count(keys) == {"pool_chunks": 1, "merge": 1}


def test_five_hundred_steps_of_mixed_traffic(keys):
    """Calls like the engine's: a growing batch with prefills, inspections and rollouts."""
    draw = random.Random(0)
    tables = [torch.empty(2, HIDDEN, dtype=HALF) for _ in range(6)]
    pages = caches()
    for step in range(500):
        sequences, cached = draw.randint(1, 32), draw.choice(LENGTHS) + step
        table = torch.zeros(sequences, -(-cached // PAGE), dtype=torch.long)
        stores = draw.choice((1, 1, 2, 3, 5))
        spans = torch.zeros(draw.randint(1, 60), 8, dtype=torch.long)
        run("splice_features", tables[:stores], [None] * stores, spans, table, PAGE, 99, HALF)
        if step % 3 == 0:
            nodes = torch.zeros(2 * sequences, 2, dtype=torch.long)
            query = torch.empty(sequences, HEADS, WIDTH, dtype=HALF)
            given = table.repeat(2, 1), nodes[:, 0].contiguous(), nodes, 0.1
            run("shared_prefix_attention", query, *pages, *given)
        else:
            attend(sequences, 1, cached, first=step % 5)
        if step % 4 == 0:
            attend(draw.randint(1, 4), draw.choice((2, 60, 256, 512)), cached + 512)
    counted = count(keys)
    assert counted.total() <= 12, counted
