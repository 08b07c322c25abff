"""Every implementation of every op against the equation in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from retrv_kernels import native, ops, registry
from retrv_kernels.cases import CASES, TOLERANCE
from retrv_kernels.row_inverse_rms import reference as row_inverse_rms


def variants() -> list[tuple[str, str]]:
    """Implementations that can run here, native once for each instruction set."""
    return [("reference", ""), *(("native", isa) for isa in native.isas())]


@pytest.fixture(params=variants(), ids=lambda variant: "-".join(filter(None, variant)))
def variant(request, monkeypatch):
    name, isa = request.param
    monkeypatch.setenv(registry.OVERRIDE, name)
    monkeypatch.setenv(native.OVERRIDE, isa)


@pytest.fixture
def poisoned():
    """Fills `torch.empty` with NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def expected(op: str, arguments: tuple) -> torch.Tensor:
    reference = registry.OPS[op][-1].run
    return reference(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(case, dtype, variant, poisoned):
    arguments = case.arguments(dtype)
    kept = copy.deepcopy(arguments)
    out = getattr(ops, case.op)(*arguments)
    torch.testing.assert_close(
        out.double(), expected(case.op, arguments), rtol=TOLERANCE[case.op][dtype], atol=0
    )
    torch.testing.assert_close(arguments, kept, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_is_a_sound_torch_operator(case):
    operator = getattr(torch.ops.retrv_kernels, case.op).default
    torch.library.opcheck(operator, case.arguments(torch.float32))


def test_tolerances_cover_every_op():
    assert set(TOLERANCE) == set(registry.OPS) == {case.op for case in CASES}


class TestRowInverseRms:
    def test_is_the_scale_of_rms_norm(self, variant):
        features = torch.randn(7, 65)
        normed = torch.nn.functional.rms_norm(features, (65,), eps=1e-6)
        scaled = features * ops.row_inverse_rms(features, 1e-6)[:, None]
        torch.testing.assert_close(scaled, normed)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_views_that_are_not_contiguous_or_aligned(self, variant, dtype):
        store = torch.randn(20, 71).to(dtype)
        for view in (store[::3], store[:, ::2], store.t(), store[1:, 1:]):
            out = ops.row_inverse_rms(view)
            torch.testing.assert_close(out, ops.row_inverse_rms(view.clone()), rtol=0, atol=0)

    def test_every_float16_and_bfloat16_value_widens_exactly(self, variant):
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        for dtype in (torch.float16, torch.bfloat16):
            features = bits.view(dtype)[:, None]
            out = ops.row_inverse_rms(features, 1e-6)
            wide = ops.row_inverse_rms(features.float(), 1e-6)
            torch.testing.assert_close(out, wide, rtol=0, atol=0, equal_nan=True)

    def test_nan_stays_in_its_row(self, variant):
        features = torch.ones(3, 40)
        features[1, 39] = torch.nan
        assert ops.row_inverse_rms(features).isnan().tolist() == [False, True, False]

    def test_result_does_not_depend_on_threads(self, variant):
        features = torch.randn(200, 897)
        threads = torch.get_num_threads()
        many = ops.row_inverse_rms(features)
        try:
            torch.set_num_threads(1)
            one = ops.row_inverse_rms(features)
        finally:
            torch.set_num_threads(threads)
        torch.testing.assert_close(one, many, rtol=0, atol=0)

    def test_gradient_is_that_of_the_equation(self, variant):
        features = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda x: row_inverse_rms.row_inverse_rms(x, 1e-3), features)
        single = features.detach().float().requires_grad_()
        (through_op,) = torch.autograd.grad(ops.row_inverse_rms(single, 1e-3).sum(), single)
        loss = row_inverse_rms.row_inverse_rms(features, 1e-3).sum()
        (exact,) = torch.autograd.grad(loss, features)
        torch.testing.assert_close(through_op.double(), exact, rtol=1e-5, atol=1e-6)

    def test_compiles_as_one_graph(self, variant):
        def scale(features):
            return features * ops.row_inverse_rms(features, 1e-6)[:, None] + 1

        compiled = torch.compile(scale, fullgraph=True, backend="aot_eager", dynamic=True)
        for rows in (3, 5):
            features = torch.randn(rows, 33)
            torch.testing.assert_close(compiled(features), scale(features))
        features.requires_grad_()
        compiled(features).sum().backward()
        assert features.grad is not None

    @pytest.mark.slow
    def test_compiles_with_inductor(self):
        features = torch.randn(3, 33)
        compiled = torch.compile(ops.row_inverse_rms, fullgraph=True)
        torch.testing.assert_close(compiled(features, 1e-6), ops.row_inverse_rms(features, 1e-6))

    @pytest.mark.parametrize(
        ("features", "eps", "message"),
        [
            (torch.ones(3), 1e-6, r"\[n, d\]"),
            (torch.ones(3, 0), 1e-6, "d > 0"),
            (torch.ones(3, 4, dtype=torch.float64), 1e-6, "float64"),
            (torch.ones(3, 4, dtype=torch.int32), 1e-6, "int32"),
            (torch.ones(3, 4), -1.0, "eps"),
            (torch.ones(3, 4), float("nan"), "eps"),
        ],
    )
    def test_refuses_what_it_cannot_do(self, features, eps, message):
        with pytest.raises(ValueError, match=message):
            ops.row_inverse_rms(features, eps)
