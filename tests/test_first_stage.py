"""The first stage: the vectors of training, errors that say the fix, exact search."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from retrv_r1 import Item
from retrv_r1.model.first_stage import MAX_TEXT, FirstStage, local_checkpoint
from retrv_r1.train.corpus import Entry
from retrv_r1.train.entry_vectors import EntryEmbedder
from retrv_r1.train.pictures import PictureBank
from retrv_r1.types import CheckpointError, ItemError

SIDE = 32
WORDS = "a red apple and a blue bird high in the sky over one two three four five"


@pytest.fixture(scope="module")
def stage(two_stages):
    return FirstStage.from_pretrained(two_stages / "embedder")


def in_training(stage, rgba, entries):
    """The vectors that training's own code gives entries."""
    names = [f"{i}.png" for i in range(len(rgba))]
    bank = PictureBank(rgba, names)
    processor = stage.processor
    embedder = EntryEmbedder(
        stage.model,
        processor.tokenizer,
        processor.image_processor,
        SimpleNamespace(bank=bank),
        MAX_TEXT,
    )
    return embedder.embed_all(entries)


def pictures(rng, side, opaque, folder):
    rgba = rng.integers(0, 256, (3, side, side, 4), dtype=np.uint8)
    if opaque:
        rgba[..., 3] = 255
    for i, pixels in enumerate(rgba):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return rgba


@pytest.mark.parametrize(("opaque", "tolerance"), [(True, 1e-5), (False, 5e-3)])
def test_vectors_are_those_of_training(stage, tmp_path, opaque, tolerance):
    """Transparency differs by the rounding of a picture file's eight bits."""
    rgba = pictures(np.random.default_rng(0), SIDE, opaque, tmp_path)
    long = " ".join([WORDS] * 5)
    entries = [
        Entry("a red apple", None, {}),
        Entry(None, 0, {}),
        Entry("a blue bird", 1, {}),
        Entry(long, None, {}),
        Entry(None, 2, {}),
    ]
    items = [
        Item(text=e.text, image=None if e.picture is None else tmp_path / f"{e.picture}.png")
        for e in entries
    ]
    vectors = stage.embed(items, batch_size=2)
    assert vectors.shape == (5, 16)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(5))
    assert (vectors - in_training(stage, rgba, entries)).abs().max() < tolerance


def test_resizing_changes_little(stage, tmp_path):
    smooth = np.linspace(0, 255, 2 * SIDE)[None, :, None, None].repeat(2 * SIDE, 2)
    rgba = np.concatenate([smooth.repeat(3, 3), np.full_like(smooth, 255)], 3).astype(np.uint8)
    Image.fromarray(rgba[0]).save(tmp_path / "0.png")
    trained = in_training(stage, rgba, [Entry(None, 0, {})])
    assert (stage.embed([tmp_path / "0.png"]) * trained).sum() > 0.999


def test_search_is_exact_and_takes_small_pools(stage):
    pool = torch.eye(16)[:4]
    queries = torch.eye(16)[:3] + 0.5 * torch.eye(16)[1:4]
    scores, numbers = stage.search(queries, pool, 2)
    assert numbers.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert scores.tolist() == [[1.0, 0.5]] * 3
    assert stage.search(queries, pool, 50)[1].shape == (3, 4)
    assert stage.search(queries[:0], pool, 2)[0].shape == (0, 2)
    assert stage.embed([]).shape == (0, 16)
    with pytest.raises(ValueError, match="k must be"):
        stage.search(queries, pool, 0)


@pytest.mark.parametrize("block", [1, 2, 4, 6])
def test_equal_similarities_are_drawn_and_not_the_pools_first(stage, monkeypatch, block):
    monkeypatch.setattr("retrv_r1.model.first_stage._BLOCK", block)
    pool = torch.eye(16)[[0, 1, 0, 0, 0, 2]]  # four candidates alike
    query = torch.eye(16)[:1] + 0.5 * torch.eye(16)[2:3]
    drawn = [0] * 6
    for seed in range(400):
        scores, (numbers,) = stage.search(query, pool, 2, [seed])
        assert scores.tolist() == [[1.0, 1.0]]
        assert torch.equal(numbers, stage.search(query, pool, 2, [seed])[1][0])
        drawn[numbers[0]] += 1
    assert drawn[1] == drawn[5] == 0
    assert all(65 <= drawn[number] <= 135 for number in (0, 2, 3, 4)), drawn
    (numbers,) = stage.search(query, pool, 5, [0])[1]
    assert sorted(numbers[:4].tolist()) == [0, 2, 3, 4] and numbers[4] == 5


def test_a_seeds_order_of_ties_is_no_shifted_copy_of_its_neighbours(stage):
    pool, query = torch.eye(16)[:1].expand(50, 16), torch.eye(16)[:1]
    one, other = stage.search(query.expand(2, 16), pool, 50, [7, 8])[1].tolist()
    shifted = {(a - 1, b - 1) for a, b in pairwise(one)}
    assert len(shifted & set(pairwise(other))) < 10


def test_texts_that_are_cut_are_counted(stage):
    before = stage.cut
    stage.embed(["short", "long " * 30, "long " * 40])
    assert stage.cut == before + 2
    assert stage.cut_places == [1, 2]
    stage.embed(["long " * 30, "short"] * 33)
    assert stage.cut_places == list(range(0, 66, 2))  # in more than one batch


def test_a_search_in_blocks_finds_what_one_in_all_finds(stage, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, pool = (torch.randn(n, 16, generator=generator) for n in (7, 101))
    whole = (queries @ pool.T).topk(20)
    for block, together in ((9, 3), (25, 100), (101, 7)):
        monkeypatch.setattr("retrv_r1.model.first_stage._BLOCK", block)
        monkeypatch.setattr("retrv_r1.model.first_stage._QUERIES", together)
        scores, numbers = stage.search(queries, pool, 20)
        assert torch.equal(numbers, whole.indices)
        assert torch.allclose(scores, whole.values, atol=1e-6)
        assert stage.search(queries, pool, 200)[1].shape == (7, 101)


def test_the_text_limit_is_the_configs(two_stages, stage, tmp_path):
    assert stage.max_text == MAX_TEXT
    stage.model.config.max_text = 2
    try:
        short = FirstStage(stage.model, stage.processor)
        near, far = short.embed(["a red apple", "a red bird"])
        assert torch.equal(near, far)
        stage.model.save_pretrained(tmp_path / "embedder")
    finally:
        stage.model.config.max_text = MAX_TEXT
    again = FirstStage.from_pretrained(tmp_path / "embedder", processor=stage.processor)
    assert again.max_text == 2


def test_a_bad_item_is_named(stage, tmp_path):
    missing = Item(image=tmp_path / "none.png", id="9:1")
    with pytest.raises(ItemError, match="9:1: no such picture file"):
        stage.embed(["a", missing])
    with pytest.raises(ItemError, match="item 1: "):
        stage.embed(["a", tmp_path / "none.png"])


def test_what_cannot_be_loaded_says_so(two_stages, tmp_path):
    with pytest.raises(CheckpointError, match="no first stage"):
        FirstStage.from_pretrained(tmp_path / "embedder")
    folder = tmp_path / "embedder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((two_stages / "embedder" / name).read_bytes()[:-40])
    with pytest.raises(CheckpointError):
        FirstStage.from_pretrained(folder)
    (folder / "config.json").write_bytes((two_stages / "embedder" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="copy or download it again"):
        FirstStage.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        local_checkpoint(tmp_path / "nowhere")


def test_a_hubs_checkpoint_is_downloaded_whole(monkeypatch, tmp_path):
    names = "retrv_r1.model.first_stage.snapshot_download"
    monkeypatch.setattr(names, {"owner/name": str(tmp_path)}.__getitem__)
    assert local_checkpoint("owner/name") == tmp_path


@pytest.mark.parametrize("name", ["owner/none", "owner/no name"])
def test_a_hubs_checkpoint_that_cannot_be_downloaded(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"cannot get {name}: ") as caught:
        local_checkpoint(name)
    assert "\n" not in str(caught.value)
