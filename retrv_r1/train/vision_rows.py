"""Vision rows of training pictures; a stage with a frozen tower computes them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.conv_tower import ConvTower
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tower import tower_rows
from retrv_r1.train.augment import Augmentation, PicturePlan, StyleMix, StyleMixer
from retrv_r1.train.config import ConfigError
from retrv_r1.train.pictures import PictureBank, normalized, side_of, to_patches
from retrv_r1.train.tensors import to_device


def picture_rows(visual: Any, image: Tensor, processor: Qwen2VLImageProcessorPil) -> Tensor:
    """Tower rows of square pictures: ``[b, 3, s, s]`` in [0, 1] → ``[b, rows, d]``.

    A convolutional tower takes them at the side that they have, another at the processor's.
    """
    if isinstance(visual, ConvTower):
        return visual.rows(normalized(image, processor))
    rows = tower_rows(visual, *to_patches(image, processor, side_of(processor)))
    return rows.view(len(image), -1, rows.shape[-1])


@torch.no_grad()
def clean_rows(
    model: RetrvR1ForConditionalGeneration,
    processor: RetrvR1Processor,
    bank: PictureBank,
    pictures: Sequence[int],
    batch: int = 256,
) -> Tensor:
    """Tower rows of pictures without augmentation, ``[n, rows, d]``."""
    images, parts = processor.image_processor, []
    for start in range(0, len(pictures), batch):
        plan = PicturePlan(StyleMix.plain(pictures[start : start + batch]))
        parts.append(picture_rows(model.visual, plan.render(bank, side_of(images)), images))
    return torch.cat(parts)


@dataclass(frozen=True)
class Views:
    """Views of pictures: number of the view, and the picture's row in the bank, ``[n]`` each."""

    views: Tensor
    pictures: Tensor


class RowBank:
    """Vision rows of several views of every picture, the clean view first.

    Args:
        rows: vision rows on the model's device, float16 ``[views, n, rows, d]``.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        bank: PictureBank,
        used: Sequence[int],
        views: int,
        seed: int,
        blend: float = 0.0,
        batch: int = 256,
    ) -> RowBank:
        """Encodes several views of pictures.

        Args:
            used: rows of the bank that are encoded; the others stay NaN.
            views: views of each picture, all but the first augmented.
            blend: share of augmented pictures blended with the same concept in another style.
        """
        images = processor.image_processor
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        mixer = StyleMixer(bank, used)
        out: Tensor | None = None
        work = [(v, i) for v in range(views) for i in range(0, len(used), batch)]
        for view, start in track(work, "tower rows of the training pictures"):
            chosen = list(used[start : start + batch])
            plan = PicturePlan(StyleMix.plain(chosen))
            if view:
                mix = mixer.draw(chosen, blend, rng)
                plan = PicturePlan(mix, Augmentation.draw(len(chosen), generator))
            image = to_device(plan, model.device).render(bank, side_of(images))
            kept = picture_rows(model.visual, image, images).half()
            if out is None:
                shape = (views, len(bank.paths), *kept.shape[1:])
                out = torch.full(shape, torch.nan, dtype=torch.half, device=kept.device)
            out[view, chosen] = kept
        if out is None:
            raise ConfigError("queries and candidates show no pictures: this stage needs some")
        return cls(out)

    def draw(self, pictures: Sequence[int], rng: np.random.Generator) -> Views | None:
        """A random view of each picture; None if there are no pictures."""
        if not len(pictures):
            return None
        views = torch.from_numpy(rng.integers(len(self.rows), size=len(pictures)))
        return Views(views, torch.tensor(pictures, dtype=torch.long))

    def rows_of(self, drawn: Views | None) -> Tensor | None:
        """Vision rows of the views, ``[pictures · rows, d]``."""
        if drawn is None:
            return None
        return self.rows[drawn.views, drawn.pictures].flatten(0, 1).float()
