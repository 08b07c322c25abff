"""Assembling a checkpoint: half precision, and towers that both stages have are stored once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

from retrv_r1.command.ship import assemble
from retrv_r1.model.embedder import RetrvEmbedder, RetrvEmbedderConfig
from retrv_r1.model.first_stage import FirstStage
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.types import CheckpointError, Item


@pytest.fixture(params=["one tower differs", "both are shared"])
def runs(request, make_model, tokenizer, image_processor, tmp_path) -> tuple[Path, bool]:
    """Folder of one finished run, and whether the stages have the same towers."""
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    model = make_model(text_tower_config=text)
    embedder = RetrvEmbedder(
        RetrvEmbedderConfig(model.config.backbone_config.vision_config, text, 16)
    )
    embedder.visual.load_state_dict(model.visual.state_dict())
    shared = request.param == "both are shared"
    if shared:
        embedder.text.load_state_dict(model.text_tower.encoder.state_dict())
    out = tmp_path / "runs" / "sft" / "final"
    model.save_pretrained(out)
    RetrvR1Processor(model.config, tokenizer, image_processor).save_pretrained(out)
    embedder.save_pretrained(out / "embedder")
    (out.parent / "record.json").write_text("{}")
    (out.parent / "sft.jsonl").touch()
    (out.parent / "sft.png").touch()
    return tmp_path / "runs", shared


def test_the_first_stage_of_an_assembled_checkpoint_is_the_trained_one(runs, picture, tmp_path):
    folder, shared = runs
    before = FirstStage.from_pretrained(folder / "sft" / "final" / "embedder")
    assemble(folder, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "embedder" / "model.safetensors")
    assert any(name.startswith("text.") for name in stored) != shared
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    weights = (tmp_path / "out").rglob("model.safetensors")
    assert {oct(path.stat().st_mode & 0o777) for path in weights} == {"0o644"}
    config = json.loads((tmp_path / "out" / "embedder" / "config.json").read_text())
    assert config.get("shares_towers", False) == shared
    after = FirstStage.from_pretrained(tmp_path / "out" / "embedder")
    items = [Item(text="a red apple"), Item(image=picture(1)), Item(text="pear", image=picture(2))]
    torch.testing.assert_close(after.embed(items), before.embed(items), atol=5e-3, rtol=0)
    after.model.save_pretrained(tmp_path / "alone")  # whole again, without the folder above
    alone = RetrvEmbedder.from_pretrained(tmp_path / "alone")
    for name, weight in after.model.state_dict().items():
        assert torch.equal(alone.state_dict()[name], weight), name


def test_a_first_stage_without_its_towers_is_damaged(runs, tmp_path):
    folder, shared = runs
    if not shared:
        pytest.skip("nothing is shared")
    assemble(folder, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot load the first stage"):
        FirstStage.from_pretrained(tmp_path / "out" / "embedder")
