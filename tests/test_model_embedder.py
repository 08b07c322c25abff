"""The first-stage embedder: unit vectors that depend on their own item alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from transformers import BertConfig

from retrv_r1.model.embedder import RetrvEmbedder, RetrvEmbedderConfig
from retrv_r1.model.tokens import encode_text
from retrv_r1.model.tower import PACKED


@pytest.fixture(scope="module")
def embedder(backbone_config, tokenizer) -> RetrvEmbedder:
    torch.manual_seed(0)
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    vision = backbone_config.vision_config.to_dict()
    config = RetrvEmbedderConfig(vision_config=vision, text_config=text, embedding_dim=24)
    return RetrvEmbedder(config).eval()


@torch.no_grad()
def test_vectors_are_unit_and_independent_of_the_batch(embedder, processor, picture):
    shapes = [(48, 48), (64, 32), (32, 32)]
    parts = [processor.encode_picture(picture(i, *shape)) for i, shape in enumerate(shapes)]
    pixels, grid = torch.cat([p[0] for p in parts]), torch.tensor([p[1] for p in parts])
    together = embedder.embed_pictures(pixels, grid)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for vector, (patches, one, _) in zip(together, parts, strict=True):
        alone = embedder.embed_pictures(patches, torch.tensor([one]))[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-5)
    # The mean of the tower's rows, projected.
    rows = embedder.visual(parts[1][0], grid_thw=grid[1:2]).pooler_output.mean(0)
    torch.testing.assert_close(together[1], normalize(embedder.picture_projection(rows), dim=-1))


@torch.no_grad()
def test_padding_of_texts_is_not_read(embedder, tokenizer):
    ids = [torch.tensor(encode_text(tokenizer, text)) for text in ("a red apple", "bird")]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=7)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
    together = embedder.embed_texts(padded, mask)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(2))
    for vector, one in zip(together, ids, strict=True):
        alone = embedder.embed_texts(one[None], torch.ones_like(one)[None])[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-5)


def test_an_item_with_both_has_the_normed_sum_of_its_parts():
    pictures = normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    texts = normalize(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    fused = RetrvEmbedder.fuse(3, (torch.tensor([0, 2]), pictures), (torch.tensor([2, 1]), texts))
    both = normalize(pictures[1] + texts[0], dim=-1)
    torch.testing.assert_close(fused, torch.stack([pictures[0], texts[1], both]))
    only = RetrvEmbedder.fuse(2, None, (torch.tensor([1, 0]), texts))
    torch.testing.assert_close(only, texts.flip(0))
    with pytest.raises(ValueError, match="without pictures and texts"):
        RetrvEmbedder.fuse(1, None, None)


@torch.no_grad()
def test_an_embedder_comes_back_as_it_was_saved(embedder, tmp_path):
    embedder.save_pretrained(tmp_path)
    back = RetrvEmbedder.from_pretrained(tmp_path)
    expected, found = embedder.state_dict(), back.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert back.config.embedding_dim == 24
    assert back.config.vision_config.fullatt_block_indexes == [1]
    assert back.visual.config._attn_implementation == PACKED
    ids = torch.tensor([[9, 8, 7]])
    ones = torch.ones_like(ids)
    torch.testing.assert_close(embedder.embed_texts(ids, ones), back.embed_texts(ids, ones))
