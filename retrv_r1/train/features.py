"""Tower rows of all training pictures, computed once: stages with a frozen tower read from here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.train.pictures import PictureBank, StyleMixer, augment, on_white, side_of, to_patches


@torch.no_grad()
def clean_rows(
    model: RetrvR1ForConditionalGeneration,
    processor: RetrvR1Processor,
    bank: PictureBank,
    pictures: Sequence[int],
    batch: int = 256,
) -> Tensor:
    """Tower rows of pictures as they are, ``[n, rows, d]``."""
    side, parts = side_of(processor.image_processor), []
    for start in range(0, len(pictures), batch):
        image = on_white(bank.rgba(pictures[start : start + batch]))
        rows = model.encode_pictures(*to_patches(image, processor.image_processor, side))
        parts.append(rows.view(len(image), -1, rows.shape[-1]))
    return torch.cat(parts)


class FeatureBank:
    """Several views of every picture: the clean one first, then augmented ones.

    Args:
        rows: float16 ``[views, n, rows, d]``.
    """

    def __init__(self, rows: np.ndarray) -> None:
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
    ) -> FeatureBank:
        """Encodes the ``used`` rows of the bank ``views`` times; other rows stay NaN.

        Args:
            blend: share of augmented pictures blended with the same thing in another style.
        """
        side = side_of(processor.image_processor)
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        mixer = StyleMixer(bank, used)
        out: np.ndarray | None = None
        work = [(v, i) for v in range(views) for i in range(0, len(used), batch)]
        for view, start in track(work, "tower rows of the training pictures"):
            chosen = list(used[start : start + batch])
            if view:
                image = augment(mixer.rgba(chosen, blend, rng), side, generator)
            else:
                image = on_white(bank.rgba(chosen))
            rows = model.encode_pictures(*to_patches(image, processor.image_processor, side))
            kept = rows.view(len(chosen), -1, rows.shape[-1]).half().numpy()
            if out is None:
                out = np.full((views, len(bank.paths), *kept.shape[1:]), np.nan, np.float16)
            out[view, chosen] = kept
        if out is None:
            raise ValueError("no pictures to encode")
        return cls(out)

    def draw(self, pictures: Sequence[int], rng: np.random.Generator) -> Tensor | None:
        """Rows of pictures, each in a random view: ``[pictures · rows, d]``; None for none."""
        if not len(pictures):
            return None
        views = rng.integers(len(self.rows), size=len(pictures))
        rows = self.rows[views, np.asarray(pictures)]
        return torch.from_numpy(rows.reshape(-1, rows.shape[-1])).float()
