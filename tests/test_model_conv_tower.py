"""The convolutional tower: patches are pictures again, sizes may differ, and a model keeps it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.checkpoint import load_checkpoint, resolve
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.conv_tower import ConvTower, ConvTowerConfig
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tower import tower_rows
from retrv_r1.rerank.feature_store import fingerprint
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train.pictures import normalized

SMALL = {"widths": [8, 8, 16], "blocks": [0, 1, 1], "patch_size": 4, "out_hidden_size": 24}


@pytest.fixture
def tower() -> ConvTower:
    torch.manual_seed(0)
    tower = ConvTower(ConvTowerConfig(**SMALL))
    for module in tower.modules():  # statistics and residual branches that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return tower.eval()


def processor(side: int = 16) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=1, min_pixels=side**2, max_pixels=side**2
    )


def statistics(model: RetrvR1ForConditionalGeneration) -> torch.Tensor:
    """The running mean of the first norm of a model's tower."""
    norm = next(m for m in model.visual.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_mean is not None
    return norm.running_mean


def test_patches_of_the_processor_become_the_picture_again(tower):
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    out = processor()(images=[Image.fromarray(pixels.numpy())], return_tensors="pt")
    direct = tower.rows(normalized(pixels.permute(2, 0, 1)[None].float() / 255, processor()))
    assert direct.shape == (1, 4, 24)
    found = tower_rows(tower, out["pixel_values"], out["image_grid_thw"])
    torch.testing.assert_close(found, direct[0], atol=1e-5, rtol=1e-5)


def test_pictures_of_different_sizes_do_not_touch_one_another(tower):
    grids = torch.tensor([[1, 4, 4], [1, 4, 4], [1, 2, 6], [1, 4, 4]])
    sizes = grids.prod(1).tolist()
    patches = torch.randn(sum(sizes), 3 * 4 * 4)
    together = tower(patches, grids)
    parts = zip(patches.split(sizes), grids, strict=True)
    alone = torch.cat([tower(part, grid[None]) for part, grid in parts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert len(together) == sum(sizes) // 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"blocks": [1]}, "3 widths need as many blocks"), ({"patch_size": 8}, "rows of 8 pixels")],
)
def test_a_shape_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConvTowerConfig(**SMALL | changes)


def test_frames_of_a_film_are_refused(tower):
    with pytest.raises(ValueError, match="not 2 frames"):
        tower(torch.zeros(8, 48), torch.tensor([[2, 2, 2]]))


def test_a_reranker_with_the_tower_is_saved_loaded_and_ranks(tmp_path):
    _, tiny = load_checkpoint("tiny", torch.float32)
    config = RetrvR1Config.from_pretrained(resolve("tiny"))
    config.tower_config = ConvTowerConfig(**SMALL | {"out_hidden_size": config.hidden_size})
    torch.manual_seed(0)
    model = RetrvR1ForConditionalGeneration(config)
    statistics(model).fill_(0.25)
    ours = RetrvR1Processor(model.config, tiny.tokenizer, processor(32))
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    with Reranker.from_pretrained(tmp_path) as reranker:
        again = reranker.model
        assert isinstance(again.visual, ConvTower)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
        assert len(reranker.rank("red", pictures, mode="fast")) == 3
        before = fingerprint(again, ours)
        next(
            m for m in again.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)
        ).running_mean.add_(1)
        assert fingerprint(again, ours) != before, "statistics count as weights do"


def test_a_config_without_the_tower_stays_as_it_was(model):
    assert model.config.tower_config is None and not isinstance(model.visual, ConvTower)
