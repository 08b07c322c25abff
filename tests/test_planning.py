"""Plans: the arithmetic agrees with models that are built, and with sums made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.model.config import ICMConfig
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.planning.cards import CARDS
from retrv_r1.planning.estimates import Assumptions, lora_parameters, query, training
from retrv_r1.planning.shapes import MODELS, CompressorShape, TextShape, TowerShape

OFFICIAL = {"3b": 3_754_622_976, "7b": 8_292_166_656}
"""Parameters of the published checkpoints."""


def build(text: TextShape, tower: TowerShape) -> Any:
    """The transformers model of a shape, without memory."""
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": text.hidden,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "intermediate_size": text.intermediate,
            "vocab_size": text.vocabulary,
            "tie_word_embeddings": text.tied,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": tower.depth,
            "hidden_size": tower.hidden,
            "intermediate_size": tower.intermediate,
            "num_heads": 16,
            "out_hidden_size": tower.out,
        },
        tie_word_embeddings=text.tied,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


@pytest.mark.parametrize("name", list(MODELS))
def test_parameters_are_those_of_the_built_model(name):
    shape = MODELS[name]
    model = build(shape.text, shape.tower)
    if shape.text.tied:
        model.tie_weights()
    parts = model.model.visual, model.model.language_model
    tower, text = (sum(p.numel() for p in part.parameters()) for part in parts)
    assert shape.tower.parameters == tower
    head = 0 if shape.text.tied else model.lm_head.weight.numel()
    assert shape.text.parameters == text + head
    assert shape.text.parameters + shape.tower.parameters == OFFICIAL[name]


def test_the_compressor_is_the_built_one():
    with torch.device("meta"):
        built = InformationCompressor(2048, ICMConfig())
    assert CompressorShape(2048).parameters == sum(p.numel() for p in built.parameters())


def test_operations_are_those_that_are_counted():
    text = TextShape(512, 2, 4, 2, 640, 1000, False)
    model = build(text, TowerShape(512, depth=1))
    for rows in (1, 32):
        embeds = torch.empty(1, rows, 512, device="meta")
        positions = torch.zeros(3, 1, rows, dtype=torch.long, device="meta")
        mask = torch.zeros(1, 1, rows, rows, device="meta")
        with FlopCounterMode(display=False) as counted:
            model.model.language_model(
                inputs_embeds=embeds,
                position_ids=positions,
                attention_mask={"full_attention": mask},
            )
        skipped = rows * rows - rows * (rows + 1) / 2  # a causal kernel leaves these pairs out
        rotary = 2 * rows * 3 * 64  # angles by position
        ours = text.flops(rows, logits=0) + 4 * 2 * 4 * 128 * skipped
        assert counted.get_total_flops() == pytest.approx(ours, abs=2 * rotary)
    assert text.flops(1, before=31) - text.flops(1) == 4 * 2 * 4 * 128 * 31
    assert text.flops(1, logits=3) - text.flops(1) == 2 * 2 * 1000 * 512


def test_a_row_of_cache_by_hand():
    assert MODELS["3b"].text.cache_bytes(1) == 2 * 36 * 2 * 128 * 2
    assert MODELS["7b"].text.cache_bytes(10) == 10 * 2 * 28 * 4 * 128 * 2


def test_rows_of_prompts_by_hand():
    assumed = Assumptions(k=50, rows=100, query_rows=40, fixed_rows=120, tokens=150)
    assert assumed.prompt(full=False) == 120 + 40 + 1 + 150
    assert assumed.prompt(full=True) == 120 + 40 + 1 + 50 * 103
    assert assumed.context(full=False) == 311 + 150 + 102


def test_a_query_by_hand():
    model, card, assumed = MODELS["3b"], CARDS["h100"], Assumptions(batch=1, inspections=0)
    found = query(model, card, assumed, full=False)
    text = model.text
    assert found.flops[2] == text.flops(311)
    assert found.cache_bytes == 461 * 36_864
    assert found.step_bytes == 2 * (text.multiplied + 151936 * 2048) + (311 + 461) // 2 * 36_864
    products, bandwidth = 989e12 * 0.4, 3350e9 * 0.6
    assert found.seconds[0] == pytest.approx(sum(found.flops[:3]) / products)
    assert found.seconds[1] == pytest.approx(150 * found.step_bytes / bandwidth)
    assert found.per_second == pytest.approx(1 / sum(found.seconds))


def test_what_compression_and_an_index_save():
    model, card, assumed = MODELS["7b"], CARDS["a100"], Assumptions()
    full, compressed, indexed = (
        query(model, card, assumed, full=f, indexed=i)
        for f, i in ((True, False), (False, False), (False, True))
    )
    assert indexed.per_second > compressed.per_second > full.per_second
    assert full.cache_bytes > 9 * compressed.cache_bytes
    assert compressed.flops[0] - indexed.flops[0] == 49 * model.tower.flops(100)


def test_what_does_not_fit_has_no_speed():
    small = replace(CARDS["l4"], memory=8.0)
    assert query(MODELS["7b"], small, Assumptions(), full=False).per_second == 0.0
    assert not any(stage.fits for stage in training(MODELS["7b"], small, Assumptions()))
    full = query(MODELS["7b"], CARDS["l4"], Assumptions(), full=True)
    assert 0 < full.batch < 32, "as many as the cache holds"


def test_training_by_hand():
    model, card, assumed = MODELS["3b"], CARDS["h100"], Assumptions(lists=(1, 1, 1))
    text = model.text
    lora = 36 * 64 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    assert lora_parameters(model, 64) == lora
    align, sft, grpo = training(model, card, assumed)
    pictures = 50 * model.tower.flops(100)
    assert sft.flops == pictures + 3 * text.flops(563, logits=150)
    assert align.flops == pictures + text.flops(5311) + 3 * text.flops(311)
    assert sft.hours == pytest.approx(sft.flops / (989e12 * 0.4) / 3600)
    assert grpo.hours > grpo.flops / (989e12 * 0.4) / 3600, "decode steps come on top"
    twice = training(model, card, replace(assumed, lists=(2, 2, 2)))
    assert [one.hours for one in twice] == pytest.approx([2 * x.hours for x in (align, sft, grpo)])
    least = 2 * model.parameters + 16 * (lora + model.compressor.parameters)
    assert least < sft.bytes < 1.3 * least


@pytest.mark.parametrize("wrong", [{"k": 0}, {"mfu": 0.0}, {"inspections": 51}, {"reserve": 1.0}])
def test_assumptions_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match="must be"):
        Assumptions(**wrong)


def test_the_command_prints_what_it_assumes():
    done = CliRunner().invoke(app, ["plan", "--model", "3b", "--card", "h100", "--k", "20"])
    assert done.exit_code == 0
    for part in ("Nothing of this was measured", "k = 20", "mfu = 0.4", "3350 GB/s", "grpo"):
        assert part in done.output
    done = CliRunner().invoke(app, ["plan", "--model", "7b", "--json"])
    report = json.loads(done.output)
    assert len(report["queries"]) == 3 * len(CARDS) and report["estimate"]
    assert report["models"]["7b"]["parameters"] == MODELS["7b"].parameters
    for options in (["--card", "v100"], ["--mfu", "2"]):
        assert CliRunner().invoke(app, ["plan", *options]).exit_code != 0
