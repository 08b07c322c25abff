"""Vision rows that a frozen tower computes at every step: those of all may be too many to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.train.augment import PicturePlan
from retrv_r1.train.pictures import PictureBank, side_of
from retrv_r1.train.vision_rows import Views, picture_rows

_AT_ONCE = 64
"""Pictures that the tower reads together."""


class LiveRows:
    """Rows of pictures as they are; in the form of a :class:`RowBank`.

    Args:
        visual: tower, which stays as it is.
        images: preprocessing of its pictures.
        bank: the pictures.
    """

    def __init__(self, visual: Any, images: Qwen2VLImageProcessorPil, bank: PictureBank) -> None:
        self.visual, self.images, self.bank = visual, images, bank

    def draw(self, pictures: Sequence[int], rng: np.random.Generator) -> Views | None:
        """The pictures themselves; None if there are none."""
        if not len(pictures):
            return None
        shown = torch.tensor(pictures, dtype=torch.long)
        return Views(torch.zeros_like(shown), shown)

    def clean(self, pictures: Sequence[int]) -> Tensor:
        """Rows of pictures, ``[n, rows, d]``."""
        rows = self.rows_of(self.draw(pictures, np.random.default_rng(0)))
        assert rows is not None
        return rows.unflatten(0, (len(pictures), -1))

    @torch.no_grad()
    def rows_of(self, drawn: Views | None) -> Tensor | None:
        """Vision rows of the pictures, ``[pictures · rows, d]``."""
        if drawn is None:
            return None
        side, parts = side_of(self.images), []
        device = next(self.visual.parameters()).device
        training = self.visual.training
        self.visual.eval()
        for shown in drawn.pictures.cpu().split(_AT_ONCE):
            pixels = PicturePlan(shown).render(self.bank, side).to(device)
            parts.append(picture_rows(self.visual, pixels, self.images).flatten(0, 1).float())
        self.visual.train(training)
        return torch.cat(parts)
