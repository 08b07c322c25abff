"""Training pictures: of several data sets, augmented, or as they will be served; and their rows,
which a frozen tower computes once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from retrv_r1.train import vision_rows
from retrv_r1.train.augment import Augmentation, PicturePlan
from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Corpus, used_pictures
from retrv_r1.train.pictures import PictureBank, on_white, resized
from retrv_r1.train.vision_rows import RowBank

pytest_plugins = ["training_fixtures"]


def changes(count: int, seed: int = 0) -> Augmentation:
    return Augmentation.draw(count, torch.Generator().manual_seed(seed))


def test_pictures_of_two_data_sets_and_glyphs_lie_in_one_bank(pictographs, icons):
    bank = PictureBank.load(pictographs, icons)
    own, pixels, glyphs = (
        np.load(path) / np.float32(255)
        for path in (pictographs / "pictures.npy", icons / "pictures.npy", icons / "glyphs.npy")
    )
    before = len(own) + len(pixels)
    assert bank.is_glyph.tolist() == [False] * before + [True] * len(glyphs)
    assert bank.parts == [(pictographs, 0), (icons, len(own))]
    assert bank.row_of["icons/mdi/bell.png"] >= before
    # In any order, a picture twice.
    rgba = bank.rgba([before + 1, 3, len(own), before + 1]).numpy()
    np.testing.assert_array_equal(rgba[1], own[3].transpose(2, 0, 1))
    np.testing.assert_array_equal(rgba[2], pixels[0].transpose(2, 0, 1))
    for place in (0, 3):
        np.testing.assert_array_equal(rgba[place, 3], glyphs[1])
        assert not rgba[place, :3].any(), "a glyph is black"


def test_cells_of_two_data_sets_show_pictures_of_one_bank(pictographs, icons):
    bank = PictureBank.load(pictographs, icons)
    corpus = Corpus([pictographs, icons], "train", bank)
    assert set(corpus.cells) == {"made_t2i", "made_i2t", "made_i2i", "icons_t2i"}
    asked = corpus.cells["icons_t2i"]
    for query, known in zip(asked.queries, asked.positives, strict=True):
        shown = [bank.paths[asked.pool[n].picture or 0] for n in known]
        assert shown and all(path.endswith(f"/{query.text}.png") for path in shown)
    assert used_pictures(corpus)[:20] == list(range(20))
    tents = {row for path, row in bank.row_of.items() if "tent" in path}
    assert len(tents) == 3 and not tents & set(used_pictures(corpus))
    with pytest.raises(ConfigError, match="two data sets have a cell made_i2i: leave one out"):
        Corpus([pictographs, pictographs], "train", bank)


def test_ink_is_dark_on_a_light_ground_and_light_on_a_dark_one():
    drawn = changes(4000)
    light = drawn.background.mean((1, 2, 3)) > 0.5
    dark_ink, light_ink = drawn.ink[light].flatten(1), drawn.ink[~light].flatten(1)
    assert 0.03 < len(light_ink) / 4000 < 0.3, "some grounds are dark"
    assert dark_ink.max() <= 0.75 and light_ink.min() >= 0.25
    # Half of them, and some by chance, are nearly black or white.
    assert 0.45 < (dark_ink.amax(1) <= 0.1876).float().mean() < 0.6
    assert 0.4 < (light_ink.amin(1) >= 0.8124).float().mean() < 0.65


def test_glyphs_take_ink_and_other_pictures_keep_their_colours(pictographs, icons):
    bank = PictureBank.load(pictographs, icons)
    glyph = int(np.flatnonzero(bank.is_glyph)[0])
    drawn = changes(2)
    other = replace(drawn, ink=1 - drawn.ink)
    plain, inked = (PicturePlan.of([0, glyph], one).render(bank, 16) for one in (drawn, other))
    assert torch.equal(plain[0], inked[0])
    assert not torch.equal(plain[1], inked[1])


def test_without_changes_pictures_are_as_they_will_be_served(pictographs, icons):
    bank = PictureBank.load(pictographs, icons)
    rows = [0, 5, int(np.flatnonzero(bank.is_glyph)[0])]
    served = resized(on_white(bank.rgba(rows)), 12)
    assert torch.equal(PicturePlan.of(rows).render(bank, 12), served)
    changed = PicturePlan.of(rows, changes(3)).render(bank, 12)
    assert changed.shape == (3, 3, 12, 12) and changed.min() >= 0 and changed.max() <= 1
    assert (changed != served).flatten(1).any(1).all()
    assert torch.equal(PicturePlan.of(rows, changes(3)).render(bank, 12), changed)


# Rows of a frozen tower.


@pytest.fixture
def encoded(corpus, model, processor, tmp_path, monkeypatch) -> Callable[..., tuple[RowBank, int]]:
    """Builds a row bank in a folder; returns it, and how many pictures the tower saw."""
    seen: list[int] = []
    rows_of, images = vision_rows.picture_rows, processor.image_processor

    def counted(visual: Any, image: torch.Tensor, images: Any) -> torch.Tensor:
        seen.append(len(image))
        return rows_of(visual, image, images)

    monkeypatch.setattr(vision_rows, "picture_rows", counted)

    def build(
        used: tuple[int, ...] = (0, 3, 7),
        views: int = 2,
        seed: int = 0,
        of: Any = model,
        kept: bool = True,
    ) -> tuple[RowBank, int]:
        before = sum(seen)
        about = RowBank.digest(of.visual, corpus.bank, used, views, seed)
        path = tmp_path / f"rows-{about}.npy" if kept else None
        bank = RowBank.build(of.visual, images, corpus.bank, used, views, seed, path, batch=2)
        return bank, sum(seen) - before

    return build


def test_rows_are_encoded_once_for_all_stages(encoded, make_model, tmp_path):
    first, count = encoded()
    again, none = encoded()
    assert (count, none) == (6, 0) and torch.equal(first.rows, again.rows)
    assert first.rows.shape[:2] == (2, 3) and first.rows.dtype == torch.float16
    assert not torch.equal(first.rows[0], first.rows[1]), "the second view is augmented"
    assert first.place[[0, 3, 7]].tolist() == [0, 1, 2] and (first.place >= 0).sum() == 3
    assert torch.equal(first.clean([7, 0]), first.rows[0, [2, 0]].float())
    others = [{"used": (0, 3)}, {"views": 1}, {"seed": 1}, {"of": make_model(1)}]
    assert all(encoded(**changed)[1] > 0 for changed in others)
    assert len(list(tmp_path.glob("rows-*.npy"))) == 5
    in_memory, count = encoded(kept=False)
    assert count == 6 and torch.equal(in_memory.rows, first.rows)


def test_rows_that_were_not_finished_are_encoded_again(encoded, tmp_path, monkeypatch):
    whole, _ = encoded()
    (path,) = tmp_path.glob("rows-*.npy")
    path.unlink()
    rows_of, calls = vision_rows.picture_rows, []

    def dies(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows_of(*arguments)

    with monkeypatch.context() as cut:
        cut.setattr(vision_rows, "picture_rows", dies)
        with pytest.raises(KeyboardInterrupt):
            encoded()
    assert not list(tmp_path.glob("rows-*.npy")) and list(tmp_path.glob("*.unfinished"))
    again, count = encoded()
    assert count == 6 and torch.equal(again.rows, whole.rows)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_view_of_each_picture_is_drawn(encoded):
    bank, rng = encoded()[0], np.random.default_rng(0)
    assert bank.draw([], rng) is None and bank.rows_of(None) is None
    drawn = bank.draw([7] * 40, rng)
    rows = bank.rows_of(drawn).view(40, *bank.rows.shape[2:])
    assert set(drawn.views.tolist()) == {0, 1}
    for view, row in zip(drawn.views, rows, strict=True):
        assert torch.equal(row, bank.rows[view, 2].float())


def test_data_without_pictures_are_refused(corpus, model, processor, tmp_path):
    with pytest.raises(ConfigError, match="show no pictures"):
        RowBank.build(model.visual, processor.image_processor, corpus.bank, [], 1, 0, None)
