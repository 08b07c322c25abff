"""The model around the backbone: untouched where nothing of ours is used, exact where it is, and
fresh weights that leave nothing as memory was."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, Qwen2_5_VLForConditionalGeneration

from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.config import DEFAULT_PROMPTS, RetrvR1Config
from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.prompts import Prompt, TableLayout
from retrv_r1.model.tokens import encode_text
from retrv_r1.model.tower import PACKED
from retrv_r1.types import Item


@pytest.fixture(scope="module")
def plain(model, backbone_config) -> Qwen2_5_VLForConditionalGeneration:
    """The backbone as transformers runs it: its own class, its own attention."""
    qwen = Qwen2_5_VLForConditionalGeneration(copy.deepcopy(backbone_config)).eval()
    qwen.load_state_dict(model.backbone.state_dict())
    assert qwen.model.visual.config._attn_implementation != PACKED
    return qwen


def with_pictures(processor, picture, sizes) -> dict[str, torch.Tensor]:
    """Text, picture, text, picture, … as a Qwen-VL processor would give it."""
    tokens = processor.tokens
    ids, kinds, pixels, grids = [], [], [], []
    for seed, (width, height) in enumerate(sizes):
        patches, grid, (h, w) = processor.encode_picture(picture(seed, width, height))
        text = encode_text(processor.tokenizer, f"picture {seed}:")
        ids += [*text, tokens.vision_start, *[tokens.image_pad] * (h * w), tokens.vision_end]
        kinds += [0] * (len(text) + 1) + [1] * (h * w) + [0]
        pixels.append(patches)
        grids.append(grid)
    end = encode_text(processor.tokenizer, "the end")
    return {
        "input_ids": torch.tensor([ids + end]),
        "mm_token_type_ids": torch.tensor([kinds + [0] * len(end)]),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.tensor(grids),
    }


@torch.inference_mode()
def test_text_alone_runs_exactly_as_the_backbone_does(model, plain):
    ids = torch.randint(200, 400, (3, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    ours = model(input_ids=ids, attention_mask=mask)
    assert torch.equal(ours.logits, plain(input_ids=ids, attention_mask=mask).logits)
    assert torch.equal(
        model(input_ids=ids, logits_to_keep=2).logits, plain(input_ids=ids, logits_to_keep=2).logits
    )


@pytest.mark.parametrize("sizes", [[(48, 48)], [(48, 48)] * 3, [(64, 32), (32, 64), (64, 64)]])
@torch.inference_mode()
def test_pictures_run_as_the_backbone_does(model, plain, processor, picture, sizes):
    inputs = with_pictures(processor, picture, sizes)
    ours, theirs = model(**inputs).logits, plain(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    blind = plain(**inputs | {"pixel_values": torch.zeros_like(inputs["pixel_values"])}).logits
    assert not torch.allclose(blind, theirs, atol=1e-2), "the pictures must matter to the test"


@torch.inference_mode()
def test_a_sequence_written_as_rows_of_the_table_equals_the_plain_forward(
    model, plain, processor, picture
):
    """Features at full length through ``row_refs`` are what the backbone makes of the picture."""
    inputs = with_pictures(processor, picture, [(48, 32)])
    item = processor.encode(Item(image=picture(0, 48, 32)))
    layout = TableLayout([item])
    before, after = (encode_text(processor.tokenizer, t) for t in ("picture 0:", "the end"))
    prompt = Prompt().add([*before, processor.tokens.vision_start])
    prompt.add_slot("picture", 0, processor.tokens.image_pad, item.rows)
    prompt.add([processor.tokens.vision_end, *after])
    ids, refs = torch.tensor([prompt.ids]), torch.tensor([prompt.refs(layout)])
    assert torch.equal(ids, inputs["input_ids"])
    none = torch.zeros(0, dtype=torch.long)
    embeds = model.embed(ids, refs, model.row_table(processor.pack([item]), none, none))
    out = model(inputs_embeds=embeds, position_ids=prompt.positions()[:, None])
    torch.testing.assert_close(out.logits, plain(**inputs).logits, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_row_table_holds_features_then_content_then_relation_tokens(model, processor, picture):
    encoded = [
        processor.encode(Item(text="a red apple")),
        processor.encode(Item(text="blue", image=picture(3, 64, 48))),
        processor.encode(Item(image=picture(4))),
    ]
    items = processor.pack(encoded)
    candidate, query = torch.tensor([1, 2]), torch.tensor([0, 0])
    table = model.row_table(items, candidate, query)
    n = sum(map(len, encoded))
    assert len(table) == n + 3 + 2
    features = table[:n]
    alone = torch.cat([model.features(processor.pack([item])) for item in encoded])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(table[n : n + 3], model.icm.content(features, items.cu_seqlens))
    relation = model.icm.relation(features, items.cu_seqlens, candidate, query)
    assert torch.equal(table[n + 3 :], relation)
    # A picture's rows come before its text, which the layout and the prompt rely on.
    text = model.get_input_embeddings()(torch.tensor(encoded[1].text_ids))
    first = TableLayout(encoded).first_row[1]
    assert torch.equal(features[first + encoded[1].picture_rows : first + len(encoded[1])], text)


@torch.inference_mode()
def test_vision_rows_stand_in_for_pixels(model, processor, picture):
    items = processor.pack([processor.encode(Item(text="x", image=picture(i))) for i in range(2)])
    rows = model.encode_pictures(items.pixel_values, items.image_grid_thw)
    cached = replace(items, pixel_values=None, image_grid_thw=None, vision_rows=rows)
    assert torch.equal(model.features(cached), model.features(items))
    with pytest.raises(ValueError, match="18 image tokens for 9 vision rows"):
        model.features(replace(cached, vision_rows=rows[:9]))


def test_gradients_of_a_listwise_loss_reach_every_part(make_model, processor, picture):
    model = make_model(seed=3)
    encoded = [processor.encode(Item(text="a red apple"))]
    encoded += [processor.encode(Item(image=picture(i))) for i in range(2)]
    layout = TableLayout(encoded)
    prompt = Prompt().add(encode_text(processor.tokenizer, "which?"))
    for number in (1, 2):
        prompt.add_slot("content", number, processor.tokens.content)
        prompt.add_slot("relation", number - 1, processor.tokens.relation)
    prompt.add([processor.tokens.labels[0]])
    ids, refs = torch.tensor([prompt.ids]), torch.tensor([prompt.refs(layout)])
    labels = torch.full_like(ids, -100)
    labels[0, -1] = ids[0, -1]
    table = model.row_table(processor.pack(encoded), torch.tensor([1, 2]), torch.tensor([0, 0]))
    embeds, positions = model.embed(ids, refs, table), prompt.positions()[:, None]
    model(inputs_embeds=embeds, position_ids=positions, labels=labels).loss.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_a_checkpoint_comes_back_as_it_was_saved(make_model, tmp_path):
    model = make_model(
        seed=5,
        icm={
            **{"heads_pool": 2, "relate_dim": 16, "separate_relation_pool": True},
            **{"memory_size": 5, "agreement": True},
        },
        prompts={"instruction": "Which one?"},
        calibration={"fast": {"temperature": 1.7}, "reason": {"none_bias": 0.5}},
        pad_to_square=True,
        max_inspections=2,
    )
    with torch.no_grad():  # as after training: nothing is as it begins
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text(), "how to attend is not saved"
    back = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path)
    expected, found = model.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    assert [n for n in expected if not torch.equal(expected[n], found[n])] == []
    assert back.get_output_embeddings().weight is back.get_input_embeddings().weight
    assert back.visual.config._attn_implementation == PACKED
    assert not back.training
    config = back.config
    assert config.calibration_of("fast") == ModeCalibration(1.7)
    assert config.calibration_of("reason") == ModeCalibration(none_bias=0.5)
    assert config.pad_to_square
    assert config.max_inspections == 2
    assert config.prompts == {**DEFAULT_PROMPTS, "instruction": "Which one?"}
    assert config.icm == model.config.icm
    assert config.icm["relate_dim"] == 16 and back.icm.relation_pool is not None
    assert config.hidden_size == 64
    ids = torch.randint(200, 400, (1, 8))
    assert torch.equal(model(input_ids=ids).logits, back(input_ids=ids).logits)


def test_auto_classes_know_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, RetrvR1Config)
    assert config.backbone_config.model_type == "qwen2_5_vl"
    assert config.backbone_config.vision_config.fullatt_block_indexes == [1]
    assert isinstance(AutoModel.from_pretrained(tmp_path), RetrvR1ForConditionalGeneration)


def test_packed_items_move_between_devices(processor, picture):
    items = processor.pack([processor.encode(Item(text="x", image=picture(0)))])
    moved = items.to("meta")
    assert moved.ids.device.type == moved.pixel_values.device.type == "meta"
    assert moved.cu_seqlens is items.cu_seqlens and moved.image_grid_thw is items.image_grid_thw
    text = processor.pack([processor.encode(Item(text="x"))])
    assert text.to("meta").pixel_values is None
    assert isinstance(moved, PackedItems)


ICM = {"relate_dim": 16, "memory_size": 300, "agreement": True, "separate_relation_pool": True}
SPREAD = 0.15  # of the configs here


@pytest.mark.usefixtures("poisoned")
def test_a_model_made_from_a_config_is_initialized_throughout(make_model):
    model = make_model(icm=ICM)
    assert [name for name, value in model.state_dict().items() if value.isnan().any()] == []
    icm = model.icm
    for linear in (
        icm.pool.attention.q_proj,
        icm.relation_pool.attention.o_proj,
        icm.relate.k_proj,
    ):
        assert linear.weight.std().item() == pytest.approx(SPREAD, rel=0.1)
    for drawn in (icm.memory.prototypes, icm.memory.codes):
        assert drawn.std().item() == pytest.approx(1, rel=0.05)
    for embedding in (icm.pool.embedding, icm.relation_pool.embedding):
        assert embedding.std().item() == pytest.approx(1, rel=0.4)  # of 64 numbers
    assert icm.row_norm.weight.eq(1).all()
    for norm in (icm.content_norm, icm.relation_token_norm):
        assert norm.weight.allclose(torch.tensor(SPREAD))
    assert icm.agree.weight.allclose(torch.tensor(3 * SPREAD / 64))
    words = model.get_input_embeddings().weight
    assert words.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_fresh_weights_are_drawn_once_and_follow_the_seed(make_model):
    first, again, other = make_model(3), make_model(3), make_model(4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.icm.pool.embedding, other.icm.pool.embedding)


@pytest.mark.usefixtures("poisoned")
def test_what_a_checkpoint_lacks_is_made_and_the_rest_stays(make_model, tmp_path):
    model = make_model(icm=ICM)
    with torch.no_grad():  # as after training: nothing is as it begins
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = {"icm.pool.embedding", "icm.memory.out.weight", "icm.content_norm.weight"}
    kept = {name: value for name, value in weights.items() if name not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    back = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, back[name]) == (name not in lost), name
        assert back[name].isfinite().all()
    assert back["icm.content_norm.weight"].allclose(torch.tensor(SPREAD))
