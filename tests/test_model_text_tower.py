"""The text tower: texts are read alone, in pieces, and only by the compressor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig

from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.text_tower import TextTower
from retrv_r1.types import Item

SHAPE = dict(
    vocab_size=600,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=8,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,
)


@pytest.fixture(scope="module")
def towered(make_model) -> RetrvR1ForConditionalGeneration:
    return make_model(text_tower_config=BertConfig(**SHAPE, window=4))


@pytest.fixture(scope="module")
def tower(towered) -> TextTower:
    return towered.text_tower


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [[3], [1, 4, 2], [4, 0, 5, 9, 0], [12, 1]])
def test_each_piece_of_a_text_is_read_alone(tower, lengths):
    ids = torch.randint(600, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    rows = tower(ids, torch.tensor(lengths))
    alone = [
        tower.out(tower.encoder(input_ids=piece[None]).last_hidden_state[0])
        for text in ids.split(lengths)
        for piece in text.split(4)
        if len(piece)
    ]
    torch.testing.assert_close(rows, torch.cat(alone), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_no_text_has_no_rows(tower):
    assert tower(torch.empty(0, dtype=torch.long), torch.tensor([0, 0])).shape[0] == 0


def test_a_window_beyond_the_positions_is_refused():
    with pytest.raises(ValueError, match="a window of 9 tokens needs as many positions, not 8"):
        TextTower(BertConfig(**SHAPE, window=9), 16)


@torch.inference_mode()
def test_features_are_rows_of_both_towers_each_at_its_place(towered, processor, picture):
    encoded = [
        processor.encode(Item(text="a red apple")),
        processor.encode(Item(text="blue", image=picture(3, 64, 48))),
        processor.encode(Item(image=picture(4))),
    ]
    items = processor.pack(encoded)
    rows = towered.features(items)
    assert torch.equal(rows, towered.features(replace(items, text_lengths=None)))
    assert torch.equal(rows, towered.features(items.to("cpu")))
    first, second, _ = rows.split([len(item) for item in encoded])
    shown = encoded[1].picture_rows
    pictures = towered.encode_pictures(items.pixel_values, items.image_grid_thw)
    assert torch.equal(second[:shown], pictures[:shown])
    for text, item in ((first, encoded[0]), (second[shown:], encoded[1])):
        ids = torch.tensor(item.text_ids)
        alone = towered.text_tower(ids, torch.tensor([len(ids)]))
        torch.testing.assert_close(text, alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_order_of_words_reaches_a_content_token(towered, make_model):
    items = PackedItems(torch.tensor([300, 301, 301, 300]), torch.tensor([0, 2, 4]))
    for model, differs in ((towered, True), (make_model(), False)):
        one, other = model.icm.content(model.features(items), items.cu_seqlens)
        assert torch.allclose(one, other, atol=1e-5) != differs


def test_it_is_saved_and_loaded_and_frozen_but_for_its_last_layer(towered, tmp_path):
    towered.save_pretrained(tmp_path)
    back = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path)
    assert back.text_tower is not None and back.text_tower.window == 4
    for name, weight in towered.text_tower.state_dict().items():
        assert torch.equal(back.text_tower.state_dict()[name], weight), name
    back.freeze_towers()
    learned = [n for n, p in back.text_tower.named_parameters() if p.requires_grad]
    assert learned == ["out.weight", "out.bias"]
