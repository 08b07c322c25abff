"""float32 logits from tables of any float dtype."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from retrv_kernels import native, registry
from retrv_kernels.cases import error_of
from retrv_kernels.linear import float_logits, logits
from retrv_kernels.linear.native import ROWS

requires_native = pytest.mark.skipif(native.find() is None, reason="native kernels not compiled")


@pytest.fixture(params=["reference", pytest.param("native", marks=requires_native)])
def chosen(request):
    with registry.use(request.param):
        yield


@pytest.mark.parametrize("rows", [0, 1, 5, ROWS, ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_logits_are_as_exact_as_float32(rows, bias, dtype, chosen, poisoned, monkeypatch):
    monkeypatch.setattr(logits, "BLOCK", 200 * 37)  # several blocks, the last one smaller
    hidden, weight = torch.randn(rows, 200).to(dtype), torch.randn(391, 200).to(dtype)
    offset = torch.randn(391).to(dtype) if bias else None
    out = float_logits(hidden, weight, offset)
    expected = hidden.double() @ weight.double().T + (0 if offset is None else offset.double())
    assert out.dtype == torch.float32 and out.shape == (rows, 391)
    assert error_of(out, expected) < 2e-6


def test_labels_that_tie_in_bfloat16_differ(chosen):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 256, generator=generator)
    near = 0.08 * hidden + 0.05 * torch.randn(50, 256, generator=generator)  # logits near 20
    hidden, weight = hidden.bfloat16(), near.bfloat16()
    assert len((hidden @ weight.T).unique()) < 25
    assert len(float_logits(hidden, weight).unique()) == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_flow_and_autocast_changes_nothing(dtype):
    hidden, weight = torch.randn(3, 40, dtype=dtype), torch.randn(9, 40, dtype=dtype)
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = float_logits(hidden, weight)
    assert error_of(out, hidden.double() @ weight.double().T) < 2e-6
    out.sum().backward()
    assert error_of(hidden.grad, weight.double().sum(0).expand(3, 40)) < 1e-2


@pytest.mark.parametrize("bias", [True, False])
def test_a_gpu_makes_no_wide_table(bias):
    """This checks the calls of PyTorch; only a GPU can check their results."""
    with FakeTensorMode(), torch.device("cuda"):
        hidden, weight = torch.empty(2, 8).bfloat16(), torch.empty(30, 8).bfloat16()
        offset = torch.empty(30).bfloat16() if bias else None
        with _Results() as seen:
            out = float_logits(hidden, weight, offset)
    assert (out.device.type, out.dtype, out.shape) == ("cuda", torch.float32, (2, 30))
    # The table appears only as its transpose, never widened.
    assert {dtype for shape, dtype in seen.made if 8 in shape} == {torch.bfloat16}


class _Results(TorchDispatchMode):
    """Records shape and dtype of the results of operators."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.made.append((tuple(out.shape), out.dtype))
        return out
