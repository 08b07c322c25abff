"""xFormers' implementation of paged attention, as far as it can be tested without a GPU.

Its operators get fake tensors on a GPU and say whether they support them. The gathering and the
mask run on the CPU, with plain attention in place of the operator.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retrv_kernels import ops
from retrv_kernels.cases import CASES, error_of

pytest.importorskip("xformers", reason="xformers is not installed: pip install -e '.[xformers]'")

from xformers.ops import fmha

from retrv_kernels.paged_attention import xformers_impl

PREFILL = [case for case in CASES if case.op == "paged_attention" and case.name != "no_sequences"]


def arguments(dtype=torch.bfloat16, rows=20, width=64) -> tuple:
    sizes = ((rows, 4, width), (50, 16, 2, width), (50, 16, 2, width))
    tensors = (torch.empty(size, dtype=dtype, device="cuda") for size in sizes)
    lists = (torch.empty(size, dtype=torch.int32, device="cuda") for size in ((3, 7), (4,), (3,)))
    return *tensors, *lists, 0.125


def answer(capability=(9, 0), built=True, **options):
    """The answer of `accepts` on a fake GPU, with xFormers' kernels built or not."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch("torch.cuda.get_device_capability", return_value=capability),
        mock.patch.object(fmha.common, "_built_with_cuda", built),
        mock.patch.object(fmha.cutlass.FwOp, "is_available", return_value=built),
    ):
        return xformers_impl.accepts(*arguments(**options))


def test_accepts_what_an_operator_supports():
    assert answer()
    assert "cutlass" in answer().reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"built": False}, "wasn't build with CUDA"),
        ({"capability": (12, 0)}, "too new"),
        ({"width": 33}, "% 8 != 0"),
        ({"dtype": torch.float32}, "TF32"),
        ({"rows": 3}, "decode"),
    ],
    ids=str,
)
def test_gives_the_reason_for_declining(options, reason):
    refused = answer(**options)
    assert not refused
    assert reason in refused.reason


def test_mask_is_causal_from_the_bottom_right():
    mask = xformers_impl.mask([2, 1, 3], [4, 1, 3], torch.device("cpu"))
    sees = mask.materialize((6, 8)) == 0
    expected = torch.block_diag(
        torch.ones(2, 4).tril(2), torch.ones(1, 1), torch.ones(3, 3).tril()
    ).bool()
    assert sees.tolist() == expected.tolist()


def plain(query, key, value, attn_bias, scale, op):
    """The definition of `memory_efficient_attention_forward`, on ``[1, rows, G, H, d]``."""
    bias = attn_bias.materialize((query.shape[1], key.shape[1]))
    weights = torch.einsum("bnghd,bmghd->bghnm", query, key).mul(scale).add(bias).softmax(-1)
    return torch.einsum("bghnm,bmghd->bnghd", weights, value)


@pytest.mark.parametrize("case", PREFILL, ids=str)
def test_gathers_what_the_mask_expects(case, monkeypatch):
    given = case.arguments(torch.float32)
    expected = ops.paged_attention(**{k: v.double() if v.ndim > 2 else v for k, v in given.items()})
    monkeypatch.setattr(fmha, "memory_efficient_attention_forward", plain)
    monkeypatch.setattr(fmha.flash.FwOp, "not_supported_reasons", lambda inputs: [])
    out = xformers_impl.paged_attention(**given, scale=given["query"].shape[-1] ** -0.5)
    assert error_of(out, expected) < 2e-6
