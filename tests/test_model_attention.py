"""Packed attention of the vision tower against transformers' own."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from retrv_r1.model.attention import PACKED, packed_vision_attention

SIZES = {
    "one": [(48, 48)],
    "equal": [(48, 48)] * 4,
    "equal windows": [(32, 32)] * 3,
    "ragged": [(64, 64), (32, 32), (64, 32), (48, 64)],
    "same area, another shape": [(64, 32), (32, 64)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@torch.inference_mode()
def test_the_tower_gives_the_rows_that_sdpa_gives(
    model, backbone_config, processor, picture, sizes
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


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [1, 1], [3, 1, 6], [7, 7, 2]], ids=str)
def test_rows_attend_within_their_segment_alone(lengths):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8, generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    out, weights = packed_vision_attention(torch.nn.Module(), q, k, v, None, 0.3, offsets)
    assert weights is None and out.shape == (1, sum(lengths), 2, 8)
    for start, stop in pairwise(offsets.tolist()):
        query, key, value = (x[0, :, start:stop].double() for x in (q, k, v))
        expected = torch.softmax(query @ key.mT * 0.3, -1) @ value
        torch.testing.assert_close(out[0, start:stop].transpose(0, 1), expected.float())


def test_two_models_do_not_share_how_they_attend(make_model):
    first = make_model()
    first.visual.config._attn_implementation_internal = "sdpa"
    assert make_model().visual.config._attn_implementation == PACKED
