"""Pictures for training: one array in memory, augmented and cut into patches in batches."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


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

    @classmethod
    def load(cls, root: Path) -> PictureBank:
        """Reads ``pictures.npy`` and ``pictures.jsonl`` of a built data set."""
        index = root / "pictures.jsonl"
        if not index.is_file():
            raise FileNotFoundError(
                f"{root} has no pictures.jsonl: build it with `retrv-r1 data pictographs {root}`"
            )
        lines = index.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        paths = [row["img_path"] for row in rows]
        concepts = [row.get("code") for row in rows]
        return cls(np.load(root / "pictures.npy", mmap_mode="r"), paths, concepts)

    def rgba(self, rows: Sequence[int]) -> Tensor:
        """``[b, 4, s, s]`` in [0, 1]."""
        return torch.from_numpy(self.pixels[np.asarray(rows)]).permute(0, 3, 1, 2).float() / 255


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
    out, side = rgba.clone(), rgba.shape[-1]
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    circle = (line[:, None].square() + line.square() <= 1).float()
    for number, opaque in enumerate(rgba[:, 3] > 0.5):
        across, down = opaque.any(0).nonzero().flatten(), opaque.any(1).nonzero().flatten()
        if len(across) <= 1.2 * len(down) or opaque.sum() < 0.9 * len(across) * len(down):
            continue
        top, high = int(down[0]), len(down)
        left = int(across[0]) + (len(across) - high) // 2
        cut = rgba[number : number + 1, :, top : top + high, left : left + high]
        cut = torch.nn.functional.interpolate(cut, size=(side, side), mode="bilinear")
        out[number] = cut[0] * torch.stack([torch.ones_like(circle)] * 3 + [circle])
    return out


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

    def rgba(self, pictures: Sequence[int], share: float, rng: np.random.Generator) -> Tensor:
        """``[b, 4, s, s]`` in [0, 1], a ``share`` of them blended."""
        rgba = self.bank.rgba(pictures)
        made_round = np.flatnonzero(rng.random(len(pictures)) < self.round_share)
        rgba[made_round] = rounded(rgba[made_round])
        chosen = np.flatnonzero(rng.random(len(pictures)) < share)
        if not len(chosen):
            return rgba
        others = []
        for place in chosen:
            row = pictures[int(place)]
            same = self.drawn.get(self.bank.concepts[row] or "", [row])
            others.append(same[int(rng.integers(len(same)))])
        amount = torch.from_numpy(rng.uniform(0.15, 0.5, len(chosen)).astype(np.float32))
        rgba[chosen] = blend(rgba[chosen], self.bank.rgba(others), amount)
        return rgba


def augment(rgba: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Random affine, background, colour and blur; ``[b, 4, s, s]`` → ``[b, 3, side, side]``.

    The style gap is what hurts a model trained on few styles (docs/LOG.md), so colours, strokes
    and proportions are all varied; pictures are never mirrored, since direction can matter.
    """
    size = len(rgba)

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
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    grid = torch.nn.functional.affine_grid(theta, [size, 4, side, side], align_corners=False)
    warped = torch.nn.functional.grid_sample(premultiplied, grid, align_corners=False)
    white = (uniform(0, 1, 1, 1, 1) < 0.7).float()
    background = white + (1 - white) * uniform(0.3, 1.0, 3, 1, 1)
    image = warped[:, :3] + background * (1 - warped[:, 3:])

    # Colour: a random linear mix of channels near the identity, contrast, brightness, grey.
    # Half of the pictures keep their channels: colour is often what tells two apart.
    strength = 0.15 * (uniform(0, 1, 1, 1) < 0.5)
    mix = torch.eye(3) + strength * torch.randn(size, 3, 3, generator=generator)
    mix = mix / mix.sum(-1, keepdim=True)
    image = torch.einsum("bij,bjhw->bihw", mix, image)
    grey = image.mean(1, keepdim=True)
    saturation = uniform(0.3, 1.3, 1, 1, 1)
    saturation = torch.where(uniform(0, 1, 1, 1, 1) < 0.06, 0.0, saturation)
    image = grey + (image - grey) * saturation
    image = (image - 0.5) * uniform(0.75, 1.25, 1, 1, 1) + 0.5 + uniform(-0.1, 0.1, 1, 1, 1)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    amount = uniform(-0.5, 1.0, 1, 1, 1).clamp(min=-0.5)
    amount = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, 0.0, amount)
    return (image + (blurred - image) * amount).clamp(0, 1)


def resized(image: Tensor, side: int) -> Tensor:
    """Square pictures ``[b, 3, s, s]`` at another side, as the processor does it."""
    if image.shape[-1] == side:
        return image
    return torch.nn.functional.interpolate(
        image, size=(side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(0, 1)


def augment_some(rgba: Tensor, side: int, generator: torch.Generator, clean: float) -> Tensor:
    """Augmented pictures, a ``clean`` share of them left as they will be seen when served."""
    image = augment(rgba, side, generator)
    left = torch.rand(len(rgba), generator=generator) < clean
    image[left] = resized(on_white(rgba[left]), side)
    return image


def to_patches(
    image: Tensor, processor: Qwen2VLImageProcessorPil, side: int
) -> tuple[Tensor, Tensor]:
    """Square pictures ``[b, 3, s, s]`` in [0, 1] → patches ``[b·g², dim]`` and grids ``[b, 3]``.

    The same patch order and normalisation as the processor's, for whole batches.
    """
    image = resized(image, side)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
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
