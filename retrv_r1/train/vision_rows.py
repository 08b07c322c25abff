"""Vision rows of training pictures; a stage with a frozen tower computes them once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.model.conv_tower import ConvTower
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tower import tower_rows
from retrv_r1.train.augment import Augmentation, PicturePlan
from retrv_r1.train.config import ConfigError
from retrv_r1.train.machine import ENCODED_AT_ONCE
from retrv_r1.train.pictures import PictureBank, normalized, side_of, to_patches
from retrv_r1.train.tensors import digest_of, to_device


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
) -> Tensor:
    """Tower rows of pictures without augmentation, ``[n, rows, d]``."""
    images, parts = processor.image_processor, []
    batch = ENCODED_AT_ONCE[model.device.type]
    for start in range(0, len(pictures), batch):
        plan = PicturePlan.of(pictures[start : start + batch])
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
        rows: vision rows, float16 ``[views, n, rows, d]``: a tensor on the model's device, or on a
            CPU one over a file, because there may be more of them than memory.
        place: place of each picture of the data sets in ``rows``, -1 for those without.
    """

    def __init__(self, rows: Tensor, place: Tensor) -> None:
        self.rows, self.place = rows, place

    @staticmethod
    def digest(
        visual: nn.Module, bank: PictureBank, used: Sequence[int], views: int, seed: int
    ) -> str:
        """A short hash of all that the rows depend on."""
        about = json.dumps([views, seed, [bank.paths[row] for row in used]])
        return digest_of(visual, about)

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        visual: nn.Module,
        images: Qwen2VLImageProcessorPil,
        bank: PictureBank,
        used: Sequence[int],
        views: int,
        seed: int,
        path: Path | None,
        batch: int | None = None,
    ) -> RowBank:
        """Encodes several views of pictures, or reads what another run has encoded.

        Args:
            visual: tower, which stays as it is.
            images: preprocessing of its pictures.
            used: rows of the bank that are encoded.
            views: views of each picture, all but the first augmented.
            path: file in which the rows are kept; without one they stay on the tower's device.
            batch: pictures that are encoded together; by default as many as the device takes.
        """
        if not used:
            raise ConfigError("queries and candidates show no pictures: this stage needs some")
        place = torch.full((len(bank.paths),), -1)
        place[torch.tensor(used)] = torch.arange(len(used))
        device = next(visual.parameters()).device
        if path is not None and path.is_file():
            return cls(torch.from_numpy(np.load(path, mmap_mode="r+")).to(device), place)
        batch = batch or ENCODED_AT_ONCE[device.type]
        generator = torch.Generator().manual_seed(seed)
        out: Tensor | None = None
        work = [(v, i) for v in range(views) for i in range(0, len(used), batch)]
        for view, start in track(work, "tower rows of the training pictures"):
            chosen = list(used[start : start + batch])
            changes = Augmentation.draw(len(chosen), generator) if view else None
            plan = to_device(PicturePlan.of(chosen, changes), device)
            rows = picture_rows(visual.eval(), plan.render(bank, side_of(images)), images)
            if out is None:
                out = _empty((views, len(used), *rows.shape[1:]), path, device)
            out[view, start : start + batch] = rows.half()
        assert out is not None
        if path is not None:
            path.with_suffix(".unfinished").replace(path)
        return cls(out, place)

    def clean(self, pictures: Sequence[int]) -> Tensor:
        """Rows of pictures without augmentation, ``[n, rows, d]``."""
        return self.rows[0, self.place[torch.as_tensor(pictures)]].float()

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
        places = self.place.to(drawn.pictures.device)[drawn.pictures]
        return self.rows[drawn.views, places].flatten(0, 1).float()


def _empty(shape: Sequence[int], path: Path | None, device: torch.device) -> Tensor:
    """A float16 tensor on a device, or over an ``.unfinished`` file beside ``path``."""
    if path is None:
        return torch.empty(*shape, dtype=torch.float16, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    return torch.from_numpy(np.lib.format.open_memmap(unfinished, "w+", np.float16, tuple(shape)))
