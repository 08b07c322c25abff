"""Items become packed tensors: order, sizes, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.types import Item, ItemError


def test_an_items_length_is_its_picture_rows_and_text_tokens(processor, picture):
    text = processor.encode(Item(text="a red apple"))
    both = processor.encode(Item(text="a red apple", image=picture(0, 64, 32)))
    assert (text.picture_rows, text.patches, text.grid) == (0, None, None)
    assert both.rows == (2, 4) and both.grid == (1, 4, 8) and both.picture_rows == 8
    assert both.text_ids == text.text_ids
    assert len(both) == 8 + len(text) and len(both.patches) == 32


def test_a_pack_has_pictures_before_texts_and_offsets_of_items(processor, picture):
    items = [
        processor.encode(Item(text="blue")),
        processor.encode(Item(text="red", image=picture(1, 64, 32))),
        processor.encode(Item(image=picture(2))),
    ]
    packed = processor.pack(items)
    pad = processor.tokens.image_pad
    assert packed.cu_seqlens.tolist() == [0, *np.cumsum([len(item) for item in items])]
    assert packed.ids.tolist() == [*items[0].text_ids, *[pad] * 8, *items[1].text_ids, *[pad] * 9]
    assert torch.equal(packed.pixel_values, torch.cat([items[1].patches, items[2].patches]))
    assert packed.image_grid_thw.tolist() == [[1, 4, 8], [1, 6, 6]]
    texts = processor.pack(items[:1])
    assert texts.pixel_values is None and texts.image_grid_thw is None


def test_text_that_names_the_picture_token_is_no_picture(processor, model):
    item = processor.encode(Item(text="<|image_pad|><|image_pad|>"))
    assert processor.tokens.image_pad not in processor.pack([item]).ids
    assert len(model.features(processor.pack([item]))) == len(item)


def test_blank_text_beside_a_picture_counts_for_nothing(processor, picture):
    assert processor.encode(Item(text=" \n", image=picture(0))).text_ids == ()


def test_very_long_text_is_cut(model, tokenizer, image_processor):
    processor = RetrvR1Processor(model.config, tokenizer, image_processor, max_text_tokens=10)
    long = processor.encode(Item(text="a red apple " * 1000))
    assert long.text_ids == processor.encode(Item(text="a red apple " * 5)).text_ids[:10]
    assert len(long) == 10


def test_squares_are_padded_with_white_on_both_sides(make_model, tokenizer, image_processor):
    square = RetrvR1Processor(make_model(pad_to_square=True).config, tokenizer, image_processor)
    wide = Image.new("RGB", (64, 16), "black")
    patches, grid, rows = square.encode_picture(wide)
    assert rows[0] == rows[1] and grid == (1, 2 * rows[0], 2 * rows[1])
    expected = Image.new("RGB", (64, 64), "white")
    expected.paste(wide, (0, 24))
    assert torch.equal(patches, square.encode_picture(expected)[0])


def test_a_damaged_picture_is_an_item_error(processor):
    with pytest.raises(ItemError, match="not a picture"):
        processor.encode(Item(image=b"nonsense"))


def test_a_saved_processor_encodes_the_same(processor, picture, tmp_path):
    processor.save_pretrained(tmp_path)
    back = RetrvR1Processor.from_pretrained(tmp_path, processor.config)
    item = Item(text="a blue bird", image=picture(5, 64, 48))
    ours, theirs = processor.encode(item), back.encode(item)
    assert torch.equal(ours.patches, theirs.patches)
    assert (ours.text_ids, ours.grid, ours.rows) == (theirs.text_ids, theirs.grid, theirs.rows)
    assert back.tokens == processor.tokens
