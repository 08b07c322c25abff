"""Training pictures: blended with another style, augmented, or as they will be served."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retrv_r1.train.augment import Augmentation, StyleMixer, blend, rounded
from retrv_r1.train.pictures import PictureBank, on_white, resized

SIDE = 12


def bank_of(concepts: list[str | None]) -> PictureBank:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, size=(len(concepts), 16, 16, 4), dtype=np.uint8)
    return PictureBank(pixels, [f"{n}.png" for n in range(len(concepts))], concepts)


def test_a_blend_lies_between_its_pictures_and_transparency_has_no_colour():
    red = torch.tensor([1.0, 0, 0, 1]).view(1, 4, 1, 1)
    clear_green = torch.tensor([0, 1.0, 0, 0]).view(1, 4, 1, 1)
    blue = torch.tensor([0, 0, 1.0, 1]).view(1, 4, 1, 1)
    mixed = blend(red, blue, torch.tensor([0.25])).flatten()
    assert torch.allclose(mixed, torch.tensor([0.75, 0, 0.25, 1.0]))
    faded = blend(red, clear_green, torch.tensor([0.25])).flatten()
    assert torch.allclose(faded, torch.tensor([1.0, 0, 0, 0.75]))
    assert torch.equal(blend(red, blue, torch.zeros(1)), red)


def test_only_filled_rectangles_wider_than_high_become_round():
    pictures = torch.zeros(4, 4, 24, 24)
    pictures[0, :, 6:18, 2:22] = 1  # a flag: white, its middle red
    pictures[0, 1:3, 6:18, 10:14] = 0
    pictures[1, :, 2:22, 2:22] = 1  # a square
    pictures[2, :, 6:18, 2:22] = torch.eye(12, 20)  # a line across
    out = rounded(pictures)
    assert torch.equal(out[1:], pictures[1:]), "nor does an empty picture"
    assert out[0, 3].mean() == pytest.approx(math.pi / 4, abs=0.02)
    assert out[0, :, 12, 12].tolist() == [1, 0, 0, 1] and out[0, :, 12, 2].tolist() == [1, 1, 1, 1]
    assert not out[0, 3, 0, 0] and out[0, 3, 12, 0]


def test_only_the_same_thing_is_blended_in():
    bank = bank_of(["cat", "dog", "cat", None, "owl"])
    mixer, rng = StyleMixer(bank, range(5)), np.random.default_rng(0)
    pictures = [0, 1, 3, 4] * 10
    plain = bank.rgba(pictures)
    assert torch.equal(mixer.draw(pictures, 0.0, rng).rgba(bank), plain)
    mixed = mixer.draw(pictures, 1.0, rng).rgba(bank)
    changed = (mixed - plain).abs().flatten(1).amax(1) > 1e-3
    assert set(np.flatnonzero(changed) % 4) == {0}, "the others have nobody but themselves"
    assert 10 > changed.sum() > 0, "a cat is blended with itself or with the other"
    assert not StyleMixer(bank, [1]).drawn.keys() & {"cat", "owl"}


def test_a_share_of_the_pictures_is_left_as_it_will_be_served():
    rgba = bank_of([None] * 60).rgba(range(60))
    served = resized(on_white(rgba), SIDE)

    def left(share: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        out = Augmentation.draw(60, generator, share).apply(rgba, SIDE)
        assert out.shape == (60, 3, SIDE, SIDE) and out.min() >= 0 and out.max() <= 1
        return (out == served).flatten(1).all(1)

    assert left(1.0).all() and not left(0.0).any()
    assert 20 < left(0.5).sum() < 40
