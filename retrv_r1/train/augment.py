"""Changes of training pictures: blended styles, round flags, random augmentation.

What is changed is drawn on the host as numbers, which processes that make batches send; the pixels
are made where the model is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrv_r1.train.pictures import PictureBank, on_white, resized


def blend(rgba: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    """Pictures blended with ``amount [b]`` of others: ``[b, 4, s, s]``, each."""
    amount = amount.view(-1, 1, 1, 1)
    ours, theirs = (1 - amount) * rgba[:, 3:], amount * other[:, 3:]
    alpha = ours + theirs
    colour = (ours * rgba[:, :3] + theirs * other[:, :3]) / alpha.clamp(min=1e-6)
    return torch.cat([colour, alpha], 1)


def rounded(rgba: Tensor) -> Tensor:
    """Pictures ``[b, 4, s, s]`` with filled rectangles wider than high cut to inscribed circles.

    Icon sets show flags in either form.
    """
    opaque = rgba[:, 3] > 0.5
    columns, rows = opaque.any(1), opaque.any(2)
    wide, high = columns.sum(1), rows.sum(1)
    filled = opaque.sum((1, 2)) >= 0.9 * wide.double() * high
    flags = ((wide > 1.2 * high.double()) & filled).nonzero().squeeze(1)
    out = rgba.clone()
    if not len(flags):
        return out
    high, side = high[flags], rgba.shape[-1]
    top = rows[flags].int().argmax(1)
    left = columns[flags].int().argmax(1) + (wide[flags] - high) // 2
    line = (torch.arange(side, device=rgba.device) + 0.5) * 2 / side - 1
    circle = (line[:, None].square() + line.square() <= 1).float()
    cut = _resampled(rgba[flags], top, left, high)
    out[flags] = torch.cat([cut[:, :3], cut[:, 3:] * circle], 1)
    return out


def _resampled(pictures: Tensor, top: Tensor, left: Tensor, size: Tensor) -> Tensor:
    """Squares cut out of pictures ``[b, c, s, s]`` and resized to their side, bilinearly.

    The same as ``interpolate`` for each square alone, because their sizes differ.

    Args:
        top, left, size: place and side of each square in pixels, ``[b]``.
    """
    side = pictures.shape[-1]
    place = (torch.arange(side, device=pictures.device) + 0.5) * size[:, None] / side - 0.5
    place = place.clamp(min=0)
    low = place.long()
    high = torch.minimum(low + 1, size[:, None] - 1)
    share = place - low

    def along(values: Tensor, start: Tensor, dim: int) -> Tensor:
        shape = [len(values), 1, 1, 1]
        shape[dim] = side
        full = list(values.shape)
        full[dim] = side
        first, second = (
            values.gather(dim, (start[:, None] + n).view(shape).expand(full)) for n in (low, high)
        )
        weight = share.view(shape)
        return first * (1 - weight) + second * weight

    return along(along(pictures, left, 3), top, 2)


@dataclass(frozen=True)
class StyleMix:
    """Pictures of a batch, some of them changed into another style.

    Attributes:
        pictures: rows of the bank, ``[b]``.
        made_round: indices in the batch whose rectangles become circles.
        blended: indices in the batch that are blended.
        others: rows of the bank that those are blended with.
        amount: amounts of the others, 0 to 1.
    """

    pictures: Tensor
    made_round: Tensor
    blended: Tensor
    others: Tensor
    amount: Tensor

    @classmethod
    def plain(cls, pictures: Sequence[int]) -> StyleMix:
        """The pictures unchanged."""
        none = torch.empty(0, dtype=torch.long)
        return cls(torch.tensor(pictures, dtype=torch.long), none, none, none, none.float())

    def rgba(self, bank: PictureBank) -> Tensor:
        """``[b, 4, s, s]`` in [0, 1]."""
        rgba = bank.rgba(self.pictures)
        if len(self.made_round):
            rgba[self.made_round] = rounded(rgba[self.made_round])
        if len(self.blended):
            rgba[self.blended] = blend(rgba[self.blended], bank.rgba(self.others), self.amount)
        return rgba


class StyleMixer:
    """Draws changes of pictures that imitate styles which no training picture has.

    Some pictures are blended with the same concept in another style, some rectangles become round.

    Args:
        pictures: rows of the bank that others may be blended with.
        round_share: share of filled rectangles that become circles.
    """

    def __init__(
        self, bank: PictureBank, pictures: Sequence[int], round_share: float = 0.3
    ) -> None:
        self.bank, self.round_share = bank, round_share
        self.drawn: dict[str, list[int]] = defaultdict(list)
        for row in pictures:
            if (concept := bank.concepts[row]) is not None:
                self.drawn[concept].append(row)

    def draw(self, pictures: Sequence[int], share: float, rng: np.random.Generator) -> StyleMix:
        """The changes of pictures, a ``share`` of them blended."""
        made_round = np.flatnonzero(rng.random(len(pictures)) < self.round_share)
        blended = np.flatnonzero(rng.random(len(pictures)) < share)
        others = []
        for index in blended:
            row = pictures[int(index)]
            same = self.drawn.get(self.bank.concepts[row] or "", [row])
            others.append(same[int(rng.integers(len(same)))])
        amount = rng.uniform(0.15, 0.5, len(blended)).astype(np.float32)
        return StyleMix(
            torch.tensor(pictures, dtype=torch.long),
            torch.from_numpy(made_round),
            torch.from_numpy(blended),
            torch.tensor(others, dtype=torch.long),
            torch.from_numpy(amount),
        )


@dataclass(frozen=True)
class Augmentation:
    """Random affine map, background, colours and blur of the pictures of a batch.

    A model trained on few styles fails on others (docs/LOG.md), so colours, strokes and
    proportions are all varied. Pictures are never mirrored, because direction can matter.

    Attributes:
        theta: affine maps from output to input, ``[b, 2, 3]``.
        background: background colours, ``[b, 3, 1, 1]``.
        channels: linear mixes of the colours, ``[b, 3, 3]``.
        saturation, contrast, brightness, blur: strengths, ``[b, 1, 1, 1]``.
        ink: colours of those that are glyphs, ``[b, 3, 1, 1]``; most are dark on a light ground
            or the reverse.
        clean: indices of the pictures that are not augmented but look as at inference.
    """

    theta: Tensor
    background: Tensor
    channels: Tensor
    saturation: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    ink: Tensor
    clean: Tensor

    @classmethod
    def draw(
        cls, size: int, generator: torch.Generator, clean: float | None = None
    ) -> Augmentation:
        """Draws for ``size`` pictures, of which a share ``clean`` is not augmented."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(size, *shape, generator=generator) * (high - low) + low

        angle, shear = uniform(-0.26, 0.26), uniform(-0.15, 0.15)
        scale_x, scale_y = uniform(0.95, 1.35), uniform(0.95, 1.35)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack(
            [
                torch.stack([scale_x * cos, -scale_y * sin + shear, uniform(-0.12, 0.12)], -1),
                torch.stack([scale_x * sin, scale_y * cos, uniform(-0.12, 0.12)], -1),
            ],
            1,
        )
        white = (uniform(0, 1, 1, 1, 1) < 0.7).float()
        dark = (uniform(0, 1, 1, 1, 1) < 0.2).float()
        ground = (1 - dark) * uniform(0.3, 1.0, 3, 1, 1) + dark * uniform(0.0, 0.3, 3, 1, 1)
        background = white + (1 - white) * ground
        # A random linear mix of channels near the identity. Half of the pictures keep their
        # channels, because often only colour distinguishes two.
        strength = 0.15 * (uniform(0, 1, 1, 1) < 0.5)
        channels = torch.eye(3) + strength * torch.randn(size, 3, 3, generator=generator)
        channels = channels / channels.sum(-1, keepdim=True)
        saturation = uniform(0.3, 1.3, 1, 1, 1)
        saturation = torch.where(uniform(0, 1, 1, 1, 1) < 0.06, 0.0, saturation)
        contrast, brightness = uniform(0.75, 1.25, 1, 1, 1), uniform(-0.1, 0.1, 1, 1, 1)
        blur = uniform(-0.5, 1.0, 1, 1, 1).clamp(min=-0.5)
        blur = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, 0.0, blur)
        # Half of the glyphs are nearly black, the others of any colour that their ground leaves
        # visible.
        light = (background.mean(1, keepdim=True) > 0.5).float()
        ink = uniform(0, 0.75, 3, 1, 1)
        ink = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, ink * 0.25, ink)
        ink = light * ink + (1 - light) * (1 - ink)
        left = torch.empty(0, dtype=torch.long)
        if clean is not None:
            left = (torch.rand(size, generator=generator) < clean).nonzero().squeeze(1)
        return cls(theta, background, channels, saturation, contrast, brightness, blur, ink, left)

    def apply(self, rgba: Tensor, side: int) -> Tensor:
        """``[b, 4, s, s]`` → ``[b, 3, side, side]``, both in [0, 1]."""
        functional = torch.nn.functional
        premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
        grid = functional.affine_grid(self.theta, [len(rgba), 4, side, side], align_corners=False)
        warped = functional.grid_sample(premultiplied, grid, align_corners=False)
        image = warped[:, :3] + self.background * (1 - warped[:, 3:])
        image = torch.einsum("bij,bjhw->bihw", self.channels, image)
        grey = image.mean(1, keepdim=True)
        image = grey + (image - grey) * self.saturation
        image = (image - 0.5) * self.contrast + 0.5 + self.brightness
        blurred = functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
        image = (image + (blurred - image) * self.blur).clamp(0, 1)
        if len(self.clean):
            image[self.clean] = resized(on_white(rgba[self.clean]), side)
        return image


@dataclass(frozen=True)
class PicturePlan:
    """The pictures of a batch as numbers; :meth:`render` makes the pixels.

    The numbers are a function of the step alone, so that a GPU gets the same pictures as a CPU.
    """

    mix: StyleMix
    changes: Augmentation | None = None

    def render(self, bank: PictureBank, side: int) -> Tensor:
        """Pictures ``[b, 3, side, side]`` in [0, 1], on the device of bank and numbers."""
        rgba = self.mix.rgba(bank)
        if self.changes is None:
            return resized(on_white(rgba), side)
        glyphs = torch.from_numpy(bank.is_glyph[self.mix.pictures.cpu().numpy()]).to(rgba.device)
        glyphs[self.changes.clean] = False  # which stay black
        rgba[:, :3] = torch.where(glyphs[:, None, None, None], self.changes.ink, rgba[:, :3])
        return self.changes.apply(rgba, side)
