"""Turns items into the tensors that the models take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retrv_r1.images import load_image, pad_to_square
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import PackedItems
from retrv_r1.model.tokens import TokenIds, encode_start, encode_text
from retrv_r1.types import Item, ItemError

MAX_TEXT_TOKENS = 4096


@dataclass(frozen=True)
class EncodedItem:
    """One item, ready to be packed.

    Args:
        text_ids: token ids of its text, without special tokens.
        patches: flattened patches of its picture, ``[p, patch_dim]``, or None.
        grid: patch grid (t, h, w) of the picture, or None.
        rows: grid (h, w) of the picture's merged rows, or None.
        truncated: whether the text has more tokens than these.
    """

    text_ids: tuple[int, ...]
    patches: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    rows: tuple[int, int] | None = None
    truncated: bool = False

    @property
    def picture_rows(self) -> int:
        return self.rows[0] * self.rows[1] if self.rows else 0

    def __len__(self) -> int:
        """Number of feature rows, which the language model reads at full length."""
        return self.picture_rows + len(self.text_ids)


class RetrvR1Processor:
    """Tokenizes texts, preprocesses pictures, and packs items.

    Args:
        max_text_tokens: tokens of an item's text that are read; the rest is cut.
    """

    def __init__(
        self,
        config: RetrvR1Config,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Qwen2VLImageProcessorPil,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.tokens = TokenIds.of(tokenizer)
        self.max_text_tokens = max_text_tokens

    @classmethod
    def from_pretrained(
        cls, path: str | Path, config: RetrvR1Config, max_text_tokens: int = MAX_TEXT_TOKENS
    ) -> RetrvR1Processor:
        """Loads what :meth:`save_pretrained` wrote."""
        return cls(
            config,
            AutoTokenizer.from_pretrained(path),
            Qwen2VLImageProcessorPil.from_pretrained(path),
            max_text_tokens,
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Writes tokenizer and preprocessing beside the weights."""
        self.tokenizer.save_pretrained(path)
        self.image_processor.save_pretrained(path)

    def encode(self, item: Item) -> EncodedItem:
        """Encodes one item.

        Raises:
            ItemError: the picture is unreadable, or the text has no tokens.
        """
        start: list[int] = []
        truncated = False
        if item.text and item.text.strip():
            start, truncated = encode_start(self.tokenizer, item.text, self.max_text_tokens)
        ids = tuple(start)
        if item.image is None:
            if not ids:
                raise ItemError("the text of an item has no tokens")
            return EncodedItem(ids, truncated=truncated)
        return EncodedItem(ids, *self.encode_picture(load_image(item.image)), truncated)

    def count_tokens(self, text: str) -> int:
        """Tokens that a text has, before it is cut."""
        return len(encode_text(self.tokenizer, text)) if text.strip() else 0

    def encode_picture(
        self, image: Image.Image
    ) -> tuple[Tensor, tuple[int, int, int], tuple[int, int]]:
        """Patches ``[p, patch_dim]``, patch grid (t, h, w) and merged grid (h, w) of a picture."""
        if self.config.pad_to_square:
            image = pad_to_square(image)
        out = self.image_processor(images=[image], return_tensors="pt")
        t, h, w = out["image_grid_thw"][0].tolist()
        merge = self.image_processor.merge_size
        return out["pixel_values"], (t, h, w), (h // merge, w // merge)

    def pack(self, items: Sequence[EncodedItem], *, pin: bool = False) -> PackedItems:
        """Packs encoded items; of each item the picture's rows come first, then the text.

        Args:
            pin: whether patches are put into pinned memory, from which a GPU copies while the CPU
                continues.
        """
        image_pad = self.tokens.image_pad
        ids = [i for item in items for i in [image_pad] * item.picture_rows + list(item.text_ids)]
        lengths = torch.tensor([0, *(len(item) for item in items)])
        patches = [item.patches for item in items if item.patches is not None]
        grids = [item.grid for item in items if item.grid is not None]
        return PackedItems(
            ids=torch.tensor(ids, dtype=torch.long),
            cu_seqlens=lengths.cumsum(0),
            pixel_values=_cat(patches, pin) if patches else None,
            image_grid_thw=torch.tensor(grids) if grids else None,
            picture_rows=sum(item.picture_rows for item in items),
            text_lengths=torch.tensor([len(item.text_ids) for item in items], dtype=torch.long),
        )


def _cat(parts: Sequence[Tensor], pin: bool) -> Tensor:
    if not pin:
        return torch.cat(list(parts))
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(list(parts), out=pinned)
