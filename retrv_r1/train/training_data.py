"""The data sets of a training run, and what is computed of their pictures once for all stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.train.corpus import Corpus, used_pictures
from retrv_r1.train.list_corpus import GivenLists, named_of_lists
from retrv_r1.train.named import NamedPictures, named_pictures
from retrv_r1.train.pictures import PictureBank
from retrv_r1.train.vision_rows import RowBank


@dataclass(frozen=True)
class TrainingData:
    """Data sets in memory, loaded when they are first used; the stages of a recipe share them.

    Attributes:
        roots: folders of the data sets.
        device: device of the pictures.
        lists: files of lists that are all that is read of the data sets; none for all of them.
        side: side in pixels to which picture files are fitted.
    """

    roots: tuple[Path, ...]
    device: torch.device
    lists: tuple[Path, ...] = ()
    side: int = 252
    _banks: dict[str, RowBank] = field(default_factory=dict)

    @cached_property
    def given(self) -> GivenLists | None:
        """The lists, if their files are named."""
        return GivenLists(self.roots, self.lists, self.side) if self.lists else None

    @cached_property
    def pictures(self) -> PictureBank:
        """All pictures of the data sets, or of the lists."""
        if self.given:
            return self.given.bank.to(self.device)
        return PictureBank.load(*self.roots).to(self.device)

    @cached_property
    def train(self) -> Corpus:
        """The split for training."""
        if self.given:
            return self.given.corpus("train")
        return Corpus(self.roots, "train", self.pictures)

    @cached_property
    def val(self) -> Corpus:
        """The split for validation."""
        if self.given:
            return self.given.corpus("val")
        return Corpus(self.roots, "val", self.pictures)

    @cached_property
    def named(self) -> NamedPictures:
        """The named training pictures."""
        return named_of_lists(self.train) if self.given else named_pictures(self.train)

    def rows(
        self,
        visual: nn.Module,
        images: Qwen2VLImageProcessorPil,
        views: int,
        seed: int,
        cache: Path,
    ) -> RowBank:
        """Rows of all training pictures by a tower at rest, computed once for all stages.

        They are kept in ``cache`` if they are computed on a CPU, and otherwise in memory.
        """
        used = sorted({*used_pictures(self.train), *self.named.pictures.tolist()})
        about = RowBank.digest(visual, self.pictures, used, views, seed)
        if about not in self._banks:
            self._banks.clear()  # those of another tower take several GB
            path = cache / f"rows-{about}.npy" if self.device.type == "cpu" else None
            self._banks[about] = RowBank.build(
                visual, images, self.pictures, used, views, seed, path
            )
        return self._banks[about]
