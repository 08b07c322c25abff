"""Packed attention of the vision tower against transformers' own."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from retrv_r1.model import tower
from retrv_r1.model.tower import PACKED, Segments, packed_vision_attention

SIZES = {
    "one": [(48, 48)],
    "equal": [(48, 48)] * 4,
    "equal windows": [(32, 32)] * 3,
    "ragged": [(64, 64), (32, 32), (64, 32), (48, 64)],
    "same area, another shape": [(64, 32), (32, 64)],
}


@pytest.fixture(params=["adjacent", "by length"])
def grouping(request, monkeypatch) -> str:
    """How segments become batches: as on a CPU, and as on a GPU."""
    if request.param == "by length":
        monkeypatch.setattr(tower, "_segments", Segments._by_length)
    return request.param


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@torch.inference_mode()
def test_the_tower_gives_the_rows_that_sdpa_gives(
    model, backbone_config, processor, picture, sizes, grouping
):
    qwen = Qwen2_5_VLForConditionalGeneration(copy.deepcopy(backbone_config)).eval()
    qwen.load_state_dict(model.backbone.state_dict())
    tower = qwen.model.visual
    assert tower.config._attn_implementation == "sdpa" != model.visual.config._attn_implementation
    parts = [processor.encode_picture(picture(i, *size)) for i, size in enumerate(sizes)]
    pixels = torch.cat([patches for patches, _, _ in parts])
    grid = torch.tensor([grid for _, grid, _ in parts])
    ours = model.encode_pictures(pixels, grid)
    torch.testing.assert_close(ours, tower(pixels, grid_thw=grid).pooler_output)
    alone = [model.encode_pictures(patches, torch.tensor([g])) for patches, g, _ in parts]
    torch.testing.assert_close(ours, torch.cat(alone), atol=1e-5, rtol=1e-5)


LENGTHS = [[5], [4, 4, 4], [1, 1], [3, 1, 6], [7, 7, 2], [2, 5, 2, 1, 5, 5]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rows_attend_within_their_segment_alone(lengths, grouping):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8, generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    out, weights = packed_vision_attention(torch.nn.Module(), q, k, v, None, 0.3, offsets)
    assert weights is None and out.shape == (1, sum(lengths), 2, 8)
    for start, stop in pairwise(offsets.tolist()):
        query, key, value = (x[0, :, start:stop].double() for x in (q, k, v))
        expected = torch.softmax(query @ key.mT * 0.3, -1) @ value
        torch.testing.assert_close(out[0, start:stop].transpose(0, 1), expected.float())


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gradients_are_those_of_a_call_for_each_segment(lengths, grouping):
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(4, 1, 2, sum(lengths), 8, generator=generator, dtype=torch.float64)
    offsets, found = torch.tensor([0, *lengths]).cumsum(0), []
    for whole in (True, False):
        q, k, v = (x.clone().requires_grad_() for x in made[:3])
        if whole:
            out, _ = packed_vision_attention(torch.nn.Module(), q, k, v, None, 0.3, offsets)
        else:
            parts = zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)
            attend = torch.nn.functional.scaled_dot_product_attention
            out = torch.cat([attend(x, y, z, scale=0.3) for x, y, z in parts], 2).transpose(1, 2)
        (out * made[3].transpose(1, 2)).sum().backward()
        found.append([out, q.grad, k.grad, v.grad])
    torch.testing.assert_close(*found)


def test_a_layer_makes_a_call_for_each_length(monkeypatch, grouping):
    """Fifty photos at the sizes of Qwen2.5-VL: 28 layers made 28,000 calls, and make 112 on a GPU.

    On a CPU 11,200: a photo's windows are runs of four and one.
    """
    grids = torch.tensor([[1, 26, 36]]).repeat(50, 1)
    _, offsets = get_vision_window_index(grids, 2, 112, 14)
    assert len(offsets) == 50 * 20 + 1 and len(offsets.diff().unique()) == 4
    calls = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *x, **options: (calls.append(x[0].shape), attend(*x, **options))[1],
    )
    q, k, v = torch.randn(3, 1, 1, 50 * 26 * 36, 4)
    out, _ = packed_vision_attention(torch.nn.Module(), q, k, v, None, 0.3, offsets)
    assert len(calls) == (4 if grouping == "by length" else 50 * 8)
    calls.clear()
    q, k, v = (x[:, :, :936] for x in (q, k, v))
    alone, _ = packed_vision_attention(torch.nn.Module(), q, k, v, None, 0.3, offsets[:21])
    torch.testing.assert_close(out[:, :936], alone)


def test_a_forward_asks_for_its_segments_once(model, processor, picture, monkeypatch):
    """Once for windows and once for whole pictures, whatever the number of layers."""
    parts = [processor.encode_picture(picture(i, 64, 48)) for i in range(3)]
    grid = torch.tensor([grid for _, grid, _ in parts])
    made = []
    of = Segments.of
    tower._segments.cache_clear()
    monkeypatch.setattr(tower, "_segments", tower.lru_cache(lambda *x: (made.append(x), of(*x))[1]))
    assert len(model.visual.blocks) == 2
    model.encode_pictures(torch.cat([patches for patches, _, _ in parts]), grid)
    assert len(made) == 2 and {offsets.device.type for offsets, _ in made} == {"cpu"}


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_kernel_of_ragged_batches_is_asked_for_the_same(lengths, monkeypatch):
    """What a GPU is asked in half precision; the kernel itself has not run: here it is a loop."""

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, *, scale):
        assert q.shape == k.shape == v.shape == (sum(lengths), 2, 8) and q.is_contiguous()
        assert cu_q is cu_k and cu_q.dtype == torch.int32 and cu_q.device == q.device
        assert max_q == max_k == max(lengths) and type(max_q) is int
        parts = [
            torch.softmax(torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale, -1) @ part
            for a, b in pairwise(cu_q.tolist())
            for part in [v[a:b].transpose(0, 1)]
        ]
        return torch.cat([part.transpose(0, 1) for part in parts])

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8, generator=generator)
    given = (torch.nn.Module(), q, k, v, None, 0.3, torch.tensor([0, *lengths]).cumsum(0))
    expected, _ = packed_vision_attention(*given)
    monkeypatch.setattr(tower, "varlen_attn", kernel)
    monkeypatch.setattr(tower, "_segments", Segments._by_length)
    monkeypatch.setattr(tower, "_has_kernel", lambda _: True)
    torch.testing.assert_close(packed_vision_attention(*given)[0], expected)


def test_the_kernel_takes_half_precision_on_a_gpu_alone():
    with FakeTensorMode():
        rows = torch.empty(5, 2, 16, device="cuda")
        assert [tower._has_kernel(rows.to(t)) for t in tower._HALF] == [True, True]
        assert not tower._has_kernel(rows) and not tower._has_kernel(rows.bfloat16().cpu())
        narrow = torch.empty(5, 2, 12, device="cuda", dtype=torch.bfloat16)
        assert not tower._has_kernel(narrow)


def test_two_models_do_not_share_how_they_attend(make_model):
    first = make_model()
    first.visual.config._attn_implementation_internal = "sdpa"
    assert make_model().visual.config._attn_implementation == PACKED
