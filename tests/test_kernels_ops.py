"""Every op × implementation × case against the equation in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from retrv_kernels import native, ops, ragged, registry
from retrv_kernels.cases import CASES, SMALL, TOLERANCE, error_of, expected_of, named, result_of
from retrv_kernels.inputs import Case
from retrv_kernels.ops import Span


def variants() -> list[tuple[str, str | None]]:
    """Implementations that can run here; native once for each instruction set."""
    return [("reference", None), *(("native", isa) for isa in native.isas())]


@pytest.fixture(params=variants(), ids=lambda variant: "-".join(filter(None, variant)))
def variant(request):
    name, isa = request.param
    with registry.use(name, isa=isa):
        yield name


def arguments_of(op: str, name: str) -> dict[str, Any]:
    return named(op, name).arguments(torch.float32)


PAIRS = [(case, dtype) for case in CASES for dtype in case.dtypes]


@pytest.mark.parametrize(("case", "dtype"), PAIRS, ids=lambda value: str(value))
def test_agrees_with_float64(case: Case, dtype: torch.dtype, variant, poisoned):
    arguments = case.arguments(dtype)
    kept = copy.deepcopy(arguments)
    out = result_of(case.op, arguments)
    assert error_of(out, expected_of(case.op, arguments)) <= TOLERANCE[case.op][dtype]
    first = out[0] if isinstance(out, tuple) else out
    assert first.dtype == (torch.float32 if case.op.endswith("_tokens") else dtype)
    torch.testing.assert_close(arguments, kept, rtol=0, atol=0, equal_nan=True)


def test_error_of_wrong_missing_and_misshapen_values():
    expected = torch.tensor([1.0, -4.0])
    assert error_of(torch.tensor([1.0, -3.0]), expected) == 0.25
    assert error_of(torch.tensor([1.0, torch.nan]), expected) == float("inf")
    assert error_of(torch.tensor([1.0]), expected) == float("inf")
    assert error_of((expected, expected + 1), (expected, expected)) == 0.25
    with pytest.raises(ValueError, match="argument 2 is longer"):
        error_of((expected,), (expected, expected))
    assert error_of(torch.zeros(2), torch.zeros(2)) == 0
    assert error_of(torch.ones(2), torch.zeros(2)) == float("inf")


def test_tolerances_cover_every_op():
    assert set(TOLERANCE) == set(registry.OPS) == {case.op for case in CASES}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_is_a_sound_torch_operator(case: Case, monkeypatch):
    """PyTorch's own checks, with the arguments that the public function passes."""
    called: list[tuple[Any, ...]] = []
    run = registry.run
    monkeypatch.setattr(registry, "run", lambda op, args: called.append(args) or run(op, args))
    arguments = case.arguments(torch.float32)
    arguments = {k: v.nan_to_num() if "pages" in k else v for k, v in arguments.items()}
    getattr(ops, case.op)(**arguments)
    torch.library.opcheck(getattr(torch.ops.retrv_kernels, case.op).default, called[0])


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("pool_tokens", "ragged"),
        ("relate_tokens", "text_query"),
        ("paged_attention", "extend"),
        ("shared_prefix_attention", "nested"),
    ],
)
def test_result_does_not_depend_on_threads(op: str, name: str, variant):
    arguments, function = arguments_of(op, name), getattr(ops, op)
    threads = torch.get_num_threads()
    many = function(**arguments)
    try:
        torch.set_num_threads(1)
        one = function(**arguments)
    finally:
        torch.set_num_threads(threads)
    if variant == "native" and op != "relate_tokens":  # which ends with PyTorch's product
        assert torch.equal(one, many)
    assert error_of(one, many) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_value_of_a_half_type_widens_exactly(variant, dtype):
    """The result equals that of a float32 copy."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[values.float().abs() < 1e4]
    rows = values[: len(values) // 64 * 64].view(-1, 64)
    offsets, queries = torch.arange(len(rows) + 1), torch.ones(1, 64)
    pooled = [ops.pool_tokens(x, offsets, queries) for x in (rows, rows.float())]
    torch.testing.assert_close(*pooled, rtol=1e-6, atol=0)


def test_views_that_are_not_contiguous_or_aligned(variant):
    store = torch.randn(40, 71)
    queries, offsets = torch.randn(3, 35), torch.tensor([0, 4, 20])
    for view in (store[::2, ::2][:, :35], store.t()[:20, :35], store[1:21, 1:36]):
        out = ops.pool_tokens(view, offsets, queries)
        torch.testing.assert_close(out, ops.pool_tokens(view.clone(), offsets, queries))
    arguments = arguments_of("paged_attention", "extend")
    expected = ops.paged_attention(**arguments)
    for name in ("query", "key_pages", "cu_seqlens", "kv_lens", "page_table"):
        tensor = arguments[name]
        strided = torch.stack([tensor, tensor], -1)[..., 0]
        out = ops.paged_attention(**{**arguments, name: strided})
        torch.testing.assert_close(out, expected)


def test_int32_arguments_give_the_same(variant):
    for op, name in (("pool_tokens", "ragged"), ("relate_tokens", "chosen_pairs")):
        arguments = arguments_of(op, name)
        narrow = {
            k: v.int() if isinstance(v, Tensor) and v.dtype == torch.int64 else v
            for k, v in arguments.items()
        }
        function = getattr(ops, op)
        torch.testing.assert_close(function(**narrow), function(**arguments), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_values_that_cancel_have_a_norm(variant, seed):
    """Their square is 0, and rounding may leave it below 0; that must not give NaN."""
    generator = torch.Generator().manual_seed(seed)
    values = 10 * torch.randn(3, 1, 256, generator=generator)
    values[2] = -values[0] - values[1]
    zeros, bounds = torch.zeros(3, 4), torch.tensor([0, 3])
    queries, output = torch.randn(2, 256), torch.eye(256)[:, None]
    out = ops.relate_tokens(zeros, bounds, zeros, bounds, values, output, queries, eps=1e-6)
    assert out.isfinite().all()


def test_nan_stays_in_its_item(variant):
    features = torch.randn(9, 40)
    features[4, 39] = torch.nan
    out = ops.pool_tokens(features, torch.tensor([0, 3, 6, 9]), torch.randn(2, 40))
    assert out.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert out[::2].isfinite().all()


def test_int8_rows_equal_their_dequantized_rows(variant):
    features = torch.randn(30, 64)
    quantized, scales = ragged.quantize(features)
    assert quantized.abs().max() == 127
    restored = ragged.dequantize(quantized, scales)
    assert (restored - features).abs().max() <= scales.max() / 2 + 1e-6
    offsets, queries = torch.tensor([0, 11, 30]), torch.randn(4, 64) / 4
    out = ops.pool_tokens(quantized, offsets, queries, scales=scales)
    assert error_of(out, ops.pool_tokens(restored, offsets, queries)) < 2e-6
    zero, scales = ragged.quantize(torch.zeros(2, 5))
    assert zero.eq(0).all() and scales.eq(0).all()


class TestGradients:
    """The kernel's forward and the recomputed backward against finite differences."""

    @pytest.mark.parametrize("eps", [1e-3, 0.5])
    def test_pool_tokens(self, eps):
        features, queries = torch.randn(6, 5).double(), torch.randn(2, 5).double()
        offsets = torch.tensor([0, 4, 4, 6])
        torch.autograd.gradcheck(
            lambda x, q: ops.pool_tokens(x, offsets, q, eps=eps),
            (features.requires_grad_(), queries.requires_grad_()),
        )

    @pytest.mark.parametrize("eps", [1e-3, None])
    def test_relate_tokens(self, eps):
        keys, query_keys = torch.randn(5, 4).double(), torch.randn(5, 4).double()
        values, output = torch.randn(5, 2, 2).double(), torch.randn(3, 2, 2).double()
        queries = torch.randn(2, 3).double()
        offsets, bounds = torch.tensor([0, 2, 5]), torch.tensor([0, 3, 5])
        pairs = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
        inputs = tuple(x.requires_grad_() for x in (keys, query_keys, values, output, queries))
        torch.autograd.gradcheck(
            lambda k, qk, v, w, q: ops.relate_tokens(
                k, offsets, qk, bounds, v, w, q, *pairs, eps=eps
            ),
            inputs,
        )

    @pytest.mark.parametrize(
        ("op", "name"),
        [
            ("pool_tokens", "ragged"),
            ("relate_tokens", "text_query"),
            ("relate_tokens", "mixed_queries"),
        ],
    )
    def test_float32_gradients_agree_with_float64(self, op, name, variant):
        arguments = arguments_of(op, name)
        gradients = []
        for dtype in (torch.float32, torch.float64):
            own = {
                k: v.detach().to(dtype).requires_grad_()
                if isinstance(v, Tensor) and v.is_floating_point()
                else v
                for k, v in arguments.items()
            }
            getattr(ops, op)(**own).square().sum().backward()
            gradients.append(
                [v.grad for v in own.values() if isinstance(v, Tensor) and v.requires_grad]
            )
        assert len(gradients[0]) == {"pool_tokens": 2, "relate_tokens": 5}[op]
        for single, exact in zip(*gradients, strict=True):
            assert error_of(single, exact) < 1e-4

    def test_int8_keys_leave_gradients_for_the_query(self):
        arguments = arguments_of("relate_tokens", "int8")
        arguments["query_keys"].requires_grad_()
        ops.relate_tokens(**arguments).sum().backward()
        assert arguments["query_keys"].grad.abs().sum() > 0


class TestCompiles:
    """Ops compile as one graph, with gradients and with changing lengths."""

    def test_pool_tokens(self, variant):
        def tokens(features, offsets, queries):
            return ops.pool_tokens(features * 2, offsets, queries).square() + 1

        compiled = torch.compile(tokens, fullgraph=True, backend="aot_eager", dynamic=True)
        queries = torch.randn(2, 33, requires_grad=True)
        for lengths in ([3], [5, 2]):
            features = torch.randn(sum(lengths), 33)
            offsets = torch.tensor([0, *lengths]).cumsum(0)
            torch.testing.assert_close(
                compiled(features, offsets, queries), tokens(features, offsets, queries)
            )
        compiled(features, offsets, queries).sum().backward()
        (grad,) = torch.autograd.grad(tokens(features, offsets, queries).sum(), queries)
        torch.testing.assert_close(queries.grad, grad)

    @pytest.mark.parametrize("case", SMALL, ids=str)
    def test_every_op(self, case: Case):
        torch.compiler.reset()  # or earlier cases would count against the limit of recompilations
        function, arguments = getattr(ops, case.op), case.arguments(torch.float32)
        compiled = torch.compile(
            lambda arguments: function(**arguments), fullgraph=True, backend="aot_eager"
        )
        out, expected = compiled(arguments), function(**arguments)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)

    def test_values_are_checked_in_compiled_calls_too(self):
        arguments = arguments_of("pool_tokens", "one_row")
        compiled = torch.compile(
            lambda a: ops.pool_tokens(**a), fullgraph=True, backend="aot_eager", dynamic=True
        )
        compiled(arguments)
        with pytest.raises(ValueError, match="start at 0"):
            compiled({**arguments, "cu_seqlens": torch.tensor([0, 10**9])})

    def test_exports(self):
        class Module(torch.nn.Module):
            def forward(self, features, offsets, queries):
                return ops.pool_tokens(features, offsets, queries)

        arguments = arguments_of("pool_tokens", "ragged")
        inputs = tuple(arguments[k] for k in ("features", "cu_seqlens", "folded_queries"))
        exported = torch.export.export(Module(), inputs)
        torch.testing.assert_close(exported.module()(*inputs), ops.pool_tokens(*inputs))

    @pytest.mark.slow
    def test_with_inductor(self):
        arguments = arguments_of("pool_tokens", "ragged")
        compiled = torch.compile(lambda a: ops.pool_tokens(**a) + 1, fullgraph=True)
        torch.testing.assert_close(compiled(arguments), ops.pool_tokens(**arguments) + 1)


class TestAttentionsAgree:
    def test_a_node_for_each_sequence_equals_paged_decode(self, variant):
        arguments = arguments_of("paged_attention", "decode")
        rows = torch.arange(4)
        names = ("query", "key_pages", "value_pages", "page_table", "kv_lens")
        query, keys, values, pages, lens = (arguments[name] for name in names)
        nodes = torch.stack([rows, rows + 1], 1)
        shared = ops.shared_prefix_attention(query, keys, values, pages, lens, nodes)
        torch.testing.assert_close(shared, ops.paged_attention(**arguments))

    def test_prefill_in_pieces_equals_prefill_at_once(self, variant):
        arguments = arguments_of("paged_attention", "prefill")
        whole = ops.paged_attention(**arguments)
        bounds = arguments["cu_seqlens"].tolist()
        for cut in (1, 16, 32):  # of the second sequence's 33 rows
            piece = {
                **arguments,
                "query": arguments["query"][bounds[1] + cut : bounds[2]],
                "page_table": arguments["page_table"][1:2],
                "cu_seqlens": torch.tensor([0, 33 - cut]),
                "kv_lens": torch.tensor([33]),
            }
            torch.testing.assert_close(
                ops.paged_attention(**piece), whole[bounds[1] + cut : bounds[2]]
            )


class TestSplice:
    def test_positions_and_slots_of_a_wrapped_picture(self, variant):
        table, rows = torch.arange(24.0).view(12, 2), -torch.arange(12.0).view(6, 2)
        pages = torch.tensor([[0, 1], [7, 3]])
        spans = [
            Span(0, 5, 1, 20, 0, 1, 3),
            Span(1, 0, 6, 21, 3, 1, 4),
            Span(0, 6, 1, 24, 0, 1, 10),
        ]
        embeds, positions, slots = ops.splice_features([table, rows], spans, pages, 8)
        assert torch.equal(embeds, torch.cat([table[5:6], rows, table[6:7]]))
        assert positions.tolist() == [
            [20, 21, 21, 21, 21, 21, 21, 24],
            [20, 21, 21, 21, 22, 22, 22, 24],
            [20, 21, 22, 23, 21, 22, 23, 24],
        ]
        assert slots.tolist() == [59, 60, 61, 62, 63, 24, 25, 26]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_every_float32_rounds_as_in_pytorch(self, variant, dtype):
        """Ties, subnormals, overflow, infinities and NaN, through a store of another dtype."""
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(
            -(2**31), 2**31 - 1, (400, 256), generator=generator, dtype=torch.int32
        )
        edges = torch.tensor([0.0, 65519.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-14, float("inf")])
        values = torch.cat(
            [bits.view(torch.float32).flatten(), edges, -edges, torch.tensor([torch.nan])]
        )
        halves = torch.arange(2**16).to(torch.int16).view(torch.float16).float()
        values = torch.cat(
            [
                values,
                halves,
                torch.nextafter(halves, torch.tensor(torch.inf)),
                halves * 1.00048828125,
            ]
        )
        store = values[: len(values) // 16 * 16].view(-1, 16)
        spans = [Span(0, 0, len(store), 0, 0, 0, 0)]
        pages = torch.zeros(1, len(store), dtype=torch.long)
        out = ops.splice_features([store], spans, pages, 1, dtype=dtype).embeds
        torch.testing.assert_close(out, store.to(dtype), rtol=0, atol=0, equal_nan=True)
