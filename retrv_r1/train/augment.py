"""Random changes of training pictures, and the plan of a batch's pictures.

What is changed is drawn on the host as numbers, which processes that make batches send; the pixels
are made where the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrv_r1.train.pictures import PictureBank, on_white, resized


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
    """

    theta: Tensor
    background: Tensor
    channels: Tensor
    saturation: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    ink: Tensor

    @classmethod
    def draw(cls, size: int, generator: torch.Generator) -> Augmentation:
        """Draws for ``size`` pictures."""

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
        return cls(theta, background, channels, saturation, contrast, brightness, blur, ink)

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
        return (image + (blurred - image) * self.blur).clamp(0, 1)


@dataclass(frozen=True)
class PicturePlan:
    """The pictures of a batch as numbers; :meth:`render` makes the pixels.

    The numbers are a function of the step alone, so that a GPU gets the same pictures as a CPU.

    Attributes:
        pictures: rows of the bank, ``[b]``.
        changes: how each is changed; None for pictures as a served model sees them.
    """

    pictures: Tensor
    changes: Augmentation | None = None

    @classmethod
    def of(cls, pictures: Sequence[int], changes: Augmentation | None = None) -> PicturePlan:
        """The plan of pictures by their rows of the bank."""
        return cls(torch.tensor(pictures, dtype=torch.long), changes)

    def render(self, bank: PictureBank, side: int) -> Tensor:
        """Pictures ``[b, 3, side, side]`` in [0, 1], on the device of bank and numbers."""
        rgba = bank.rgba(self.pictures)
        if self.changes is None:
            return resized(on_white(rgba), side)
        glyphs = torch.from_numpy(bank.is_glyph[self.pictures.cpu().numpy()]).to(rgba.device)
        rgba[:, :3] = torch.where(glyphs[:, None, None, None], self.changes.ink, rgba[:, :3])
        return self.changes.apply(rgba, side)
