"""Pictures for training: one array in memory, augmented and cut into patches in batches."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.types import RetrvError


class NoPictures(RetrvError, FileNotFoundError):
    """A folder that is no data set with pictures."""


class PictureBank:
    """All pictures of a data set, square RGBA, by their path in the data set.

    Args:
        pixels: ``uint8 [n, s, s, 4]`` (a memory map will do).
        paths: the picture's path in the data set, one per row of ``pixels``.
        concepts: what each picture shows, the same for every style; None if not known.
    """

    def __init__(
        self, pixels: np.ndarray, paths: Sequence[str], concepts: Sequence[str | None]
    ) -> None:
        if pixels.ndim != 4 or pixels.shape[-1] != 4 or len(paths) != len(pixels):
            raise ValueError(f"{len(paths)} paths for pictures of shape {pixels.shape}")
        self.pixels = pixels
        self.paths = list(paths)
        self.concepts = list(concepts)
        self.row_of = {path: row for row, path in enumerate(self.paths)}
        self._store: Tensor | None = None

    @classmethod
    def load(cls, root: Path) -> PictureBank:
        """Reads ``pictures.npy`` and ``pictures.jsonl`` of a built data set."""
        index = root / "pictures.jsonl"
        if not index.is_file():
            what = "has no pictures.jsonl" if root.is_dir() else "is no folder"
            raise NoPictures(f"{root} {what}: `retrv-r1 data pictographs DIR` builds a data set")
        lines = index.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        paths = [row["img_path"] for row in rows]
        concepts = [row.get("code") for row in rows]
        return cls(np.load(root / "pictures.npy", mmap_mode="r"), paths, concepts)

    def to(self, device: torch.device) -> PictureBank:
        """This bank, its pictures on a GPU too, as bytes; nothing changes on a CPU."""
        if device.type != "cpu":
            self._store = torch.from_numpy(np.array(self.pixels)).to(device)
        return self

    def rgba(self, rows: Sequence[int] | Tensor) -> Tensor:
        """``[b, 4, s, s]`` in [0, 1], on the bank's device."""
        if self._store is None:
            pixels = torch.from_numpy(self.pixels[np.asarray(rows)])
        else:
            pixels = self._store[torch.as_tensor(rows, device=self._store.device)]
        return pixels.permute(0, 3, 1, 2).float() / 255


def on_white(rgba: Tensor) -> Tensor:
    """Composites ``[b, 4, s, s]`` over white, as picture files are read: ``[b, 3, s, s]``."""
    alpha = rgba[:, 3:]
    return rgba[:, :3] * alpha + (1 - alpha)


def blend(rgba: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    """Pictures with ``amount [b]`` of others laid over them: ``[b, 4, s, s]``."""
    amount = amount.view(-1, 1, 1, 1)
    ours, theirs = (1 - amount) * rgba[:, 3:], amount * other[:, 3:]
    alpha = ours + theirs
    colour = (ours * rgba[:, :3] + theirs * other[:, :3]) / alpha.clamp(min=1e-6)
    return torch.cat([colour, alpha], 1)


def rounded(rgba: Tensor) -> Tensor:
    """Pictures ``[b, 4, s, s]``, filled rectangles wider than high cut to the circle in them.

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
    """Squares cut out of pictures ``[b, c, s, s]`` and brought to their side, bilinear.

    What ``interpolate`` gives for each square alone, whose sizes differ: ``top``, ``left`` and
    ``size`` are in pixels, ``[b]``.
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
class Mix:
    """Which pictures of the bank a batch shows, some of them changed into another style.

    Attributes:
        pictures: bank rows, ``[b]``.
        made_round: places in the batch whose rectangles become circles.
        blended: places in the batch that are blended, with the bank rows ``others`` by ``amount``.
    """

    pictures: Tensor
    made_round: Tensor
    blended: Tensor
    others: Tensor
    amount: Tensor

    @classmethod
    def plain(cls, pictures: Sequence[int]) -> Mix:
        """Pictures as they are."""
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
    """Draws pictures as styles that no training picture has may show them.

    Some are blended with the same thing in another style, some rectangles are made round.

    Args:
        pictures: rows of the bank that may be blended in.
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

    def draw(self, pictures: Sequence[int], share: float, rng: np.random.Generator) -> Mix:
        """What becomes of pictures, a ``share`` of them blended: numbers alone, on the host."""
        made_round = np.flatnonzero(rng.random(len(pictures)) < self.round_share)
        blended = np.flatnonzero(rng.random(len(pictures)) < share)
        others = []
        for place in blended:
            row = pictures[int(place)]
            same = self.drawn.get(self.bank.concepts[row] or "", [row])
            others.append(same[int(rng.integers(len(same)))])
        amount = rng.uniform(0.15, 0.5, len(blended)).astype(np.float32)
        return Mix(
            torch.tensor(pictures, dtype=torch.long),
            torch.from_numpy(made_round),
            torch.from_numpy(blended),
            torch.tensor(others, dtype=torch.long),
            torch.from_numpy(amount),
        )

    def rgba(self, pictures: Sequence[int], share: float, rng: np.random.Generator) -> Tensor:
        """``[b, 4, s, s]`` in [0, 1], a ``share`` of them blended."""
        return self.draw(pictures, share, rng).rgba(self.bank)


@dataclass(frozen=True)
class Augmentation:
    """Random affine, background, colour and blur of a batch: what was drawn, on the host.

    The style gap is what hurts a model trained on few styles (docs/LOG.md), so colours, strokes
    and proportions are all varied; pictures are never mirrored, since direction can matter.

    Attributes:
        theta: where pixels come from, ``[b, 2, 3]``.
        background: ``[b, 3, 1, 1]``.
        channels: linear mix of the colours, ``[b, 3, 3]``.
        saturation, contrast, brightness, blur: ``[b, 1, 1, 1]``.
        clean: places of the pictures that are left as they will be seen when served.
    """

    theta: Tensor
    background: Tensor
    channels: Tensor
    saturation: Tensor
    contrast: Tensor
    brightness: Tensor
    blur: Tensor
    clean: Tensor

    @classmethod
    def draw(
        cls, size: int, generator: torch.Generator, clean: float | None = None
    ) -> Augmentation:
        """Draws for ``size`` pictures, of which a ``clean`` share is left alone."""

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
        background = white + (1 - white) * uniform(0.3, 1.0, 3, 1, 1)
        # A random linear mix of channels near the identity. Half of the pictures keep their
        # channels: colour is often what tells two apart.
        strength = 0.15 * (uniform(0, 1, 1, 1) < 0.5)
        channels = torch.eye(3) + strength * torch.randn(size, 3, 3, generator=generator)
        channels = channels / channels.sum(-1, keepdim=True)
        saturation = uniform(0.3, 1.3, 1, 1, 1)
        saturation = torch.where(uniform(0, 1, 1, 1, 1) < 0.06, 0.0, saturation)
        contrast, brightness = uniform(0.75, 1.25, 1, 1, 1), uniform(-0.1, 0.1, 1, 1, 1)
        blur = uniform(-0.5, 1.0, 1, 1, 1).clamp(min=-0.5)
        blur = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, 0.0, blur)
        left = torch.empty(0, dtype=torch.long)
        if clean is not None:
            left = (torch.rand(size, generator=generator) < clean).nonzero().squeeze(1)
        return cls(theta, background, channels, saturation, contrast, brightness, blur, left)

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
class Shown:
    """The pictures of a batch as numbers, which workers send; :meth:`paint` makes the pixels.

    They are a function of the step alone, drawn on the host: a GPU sees what a CPU would.
    """

    mix: Mix
    changes: Augmentation | None = None

    def paint(self, bank: PictureBank, side: int) -> Tensor:
        """``[b, 3, side, side]`` in [0, 1], where bank and numbers are."""
        rgba = self.mix.rgba(bank)
        if self.changes is None:
            return resized(on_white(rgba), side)
        return self.changes.apply(rgba, side)


def augment(rgba: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Augmented pictures, ``[b, 4, s, s]`` → ``[b, 3, side, side]``."""
    return Augmentation.draw(len(rgba), generator).apply(rgba, side)


def resized(image: Tensor, side: int) -> Tensor:
    """Square pictures ``[b, 3, s, s]`` at another side, as the processor does it."""
    if image.shape[-1] == side:
        return image
    return torch.nn.functional.interpolate(
        image, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def augment_some(rgba: Tensor, side: int, generator: torch.Generator, clean: float) -> Tensor:
    """Augmented pictures, a ``clean`` share of them left as they will be seen when served."""
    return Augmentation.draw(len(rgba), generator, clean).apply(rgba, side)


def to_patches(
    image: Tensor, processor: Qwen2VLImageProcessorPil, side: int
) -> tuple[Tensor, Tensor]:
    """Square pictures ``[b, 3, s, s]`` in [0, 1] → patches ``[b·g², dim]`` and grids ``[b, 3]``.

    The same patch order and normalisation as the processor's, for whole batches.
    """
    image = resized(image, side)
    mean, std = (
        torch.tensor(values, device=image.device).view(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    image = (image - mean) / std
    patch, merge = processor.patch_size, processor.merge_size
    batch, grid = len(image), side // patch
    x = image.view(batch, 3, grid // merge, merge, patch, grid // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    x = x.expand(*x.shape[:6], processor.temporal_patch_size, *x.shape[7:])
    return x.reshape(batch * grid * grid, -1), torch.tensor([[1, grid, grid]] * batch)


def side_of(processor: Qwen2VLImageProcessorPil) -> int:
    """Side in pixels to which the processor brings a square picture."""
    return math.isqrt(processor.size["longest_edge"])


def merged_grid(processor: Qwen2VLImageProcessorPil) -> tuple[int, int]:
    """Rows (h, w) that a square picture has after the tower's merging."""
    rows = side_of(processor) // processor.patch_size // processor.merge_size
    return rows, rows
