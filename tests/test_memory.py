"""Who takes a GPU's memory: shares of what is free once the engine has taken its own."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from retrv_r1 import memory
from retrv_r1.rerank.feature_encoder import FeatureEncoder
from retrv_r1.types import Item

GPU, GIB = torch.device("cuda", 0), 2**30
INSPECTED = 50 * 1280 * 3584 * 2  # fifty pictures of 1,280 rows at 7B in half precision: 459 MB


@pytest.fixture
def free(monkeypatch):
    """Says how much of a GPU is free, and how much of it PyTorch holds without use."""

    def there_is(free: float, held: float = 0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free - held), 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(GIB + held))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)

    return there_is


class Tower:
    """The sizes of Qwen2.5-VL's."""

    config = Qwen2_5_VLVisionConfig(hidden_size=1280, intermediate_size=3420)
    dtype = torch.bfloat16


@pytest.mark.parametrize("held", [0, GIB // 8])
def test_features_get_a_quarter_and_room_for_fifty_pictures_where_it_is_there(free, held):
    free(12 * GIB, held)
    assert memory.feature_bytes(GPU) == 3 * GIB
    free(GIB, held)
    assert INSPECTED < memory.feature_bytes(GPU) == GIB // 2
    free(GIB / 2, held)
    assert memory.feature_bytes(GPU) == GIB // 4
    assert memory.feature_bytes(torch.device("cpu")) == 256 * 2**20


def test_a_batch_of_the_tower_takes_a_quarter_at_most(free):
    free(12 * GIB)
    assert memory.tower_rows_at_once(Tower, GPU) == 2**14
    free(3 * GIB)
    rows = memory.tower_rows_at_once(Tower, GPU)
    assert 2**11 < rows < 2**14
    free(6 * GIB)
    assert memory.tower_rows_at_once(Tower, GPU) == pytest.approx(2 * rows, abs=1)
    free(0)
    assert memory.tower_rows_at_once(Tower, GPU) == 2**11
    assert memory.tower_rows_at_once(Tower, torch.device("cpu")) == 2**14


def test_the_encoder_asks_at_its_first_request_and_once(model, processor, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "feature_bytes", lambda device: asked.append(device) or 10**6)
    monkeypatch.setattr(memory, "tower_rows_at_once", lambda _, device: asked.append(device) or 64)
    encoder = FeatureEncoder(model, processor)
    assert asked == []
    for text in ("a", "b"):
        encoder.encode([Item(text=text)])
    assert asked == [model.device] * 2
    assert (encoder.capacity_bytes, encoder.batch_rows) == (10**6, 64)
    given = FeatureEncoder(model, processor, 0, 1)
    given.encode([Item(text="a")])
    assert (given.capacity_bytes, given.batch_rows) == (0, 1) and len(asked) == 2
