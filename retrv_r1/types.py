"""The values that cross the public interface: items in, ranked results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

EngineName: TypeAlias = Literal["local", "plain", "sglang"]
Mode: TypeAlias = Literal["reason", "fast"]
Reading: TypeAlias = Literal["compressed", "full", "pointwise"]
ImageSource: TypeAlias = Image.Image | str | Path | bytes

_NAME_LENGTH = 60


class RetrvError(Exception):
    """Base of the errors a caller can mend; the message says how."""


class ItemError(RetrvError, ValueError):
    """A query or candidate that cannot be used: empty, unreadable, of a wrong type."""


class CheckpointError(RetrvError, ValueError):
    """A model directory that is missing, of another format, or damaged."""


class DeviceError(RetrvError, ValueError):
    """A device that is not there, or a dtype or weights that it has no use for."""


@dataclass(frozen=True)
class Item:
    """A query or a candidate: text, a picture, or both.

    Args:
        text: plain text; never interpreted as special tokens.
        image: a PIL picture, a path, or the encoded bytes of a picture file.
        id: the caller's name for the item, echoed in results.
    """

    text: str | None = None
    image: ImageSource | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.image is None and not (self.text and self.text.strip()):
            raise ItemError("an item needs a non-empty text, a picture, or both")

    @classmethod
    def of(cls, value: ItemLike) -> Item:
        """Coerces what callers hold into an item: text, picture, path or ``{"text", "image"}``.

        A ``str`` is text; use ``Path`` (or ``{"image": …}``) for a picture file.
        """
        if isinstance(value, Item):
            return value
        if isinstance(value, str):
            return cls(text=value)
        if isinstance(value, Image.Image | Path | bytes):
            return cls(image=value)
        if isinstance(value, Mapping):
            unknown = set(value) - {"text", "image", "id"}
            if unknown:
                raise ItemError(f"unknown item fields {sorted(unknown)}; use text, image, id")
            return cls(text=value.get("text"), image=value.get("image"), id=value.get("id"))
        raise ItemError(f"cannot make an item of {type(value).__name__}")


ItemLike: TypeAlias = Item | str | Path | bytes | Image.Image | Mapping[str, Any]


@dataclass(frozen=True)
class RankRequest:
    """A query with its candidates, for :meth:`Reranker.rank_batch`.

    Args:
        query: text, picture, or both.
        candidates: items to rank, in any order; duplicates are kept.
        instruction: wording of the task; the checkpoint's own when None.
    """

    query: ItemLike
    candidates: Iterable[ItemLike]
    instruction: str | None = None

    def items(self) -> list[Item]:
        """The query, then the candidates.

        Raises:
            ItemError: a value is not an item, or the candidates are not a list; the message names
                the value.
        """
        values = self.candidates
        single = str | bytes | Mapping | Item | Image.Image
        if isinstance(values, single) or not isinstance(values, Iterable):
            raise ItemError(
                f"candidates must be a list of items, not {type(values).__name__}; "
                "put a single one into a list"
            )
        items = []
        for number, value in enumerate((self.query, *values), -1):
            try:
                items.append(Item.of(value))
            except ItemError as error:
                name = "the query" if number < 0 else f"candidate {number}"
                raise ItemError(f"{name}: {error}") from error
        return items


@dataclass(frozen=True)
class RankedItem:
    """One line of a ranking.

    Args:
        index: position of the candidate in the caller's list, from 0.
        score: calibrated relevance in [0, 1]; never increases down the ranking.
        item: the candidate itself.
        inspected: whether the model looked at the candidate in full.
    """

    index: int
    score: float
    item: Item
    inspected: bool = False

    @property
    def name(self) -> str:
        """File name of the picture, else the start of the text, the id, or ``candidate N``."""
        if isinstance(self.item.image, str | Path):
            return Path(self.item.image).name
        text = " ".join(self.text.split())
        if len(text) > _NAME_LENGTH:
            text = text[: _NAME_LENGTH - 1] + "…"
        return text or self.item.id or f"candidate {self.index}"

    @property
    def text(self) -> str:
        """Text of the candidate; empty where it is only a picture."""
        return self.item.text or ""


@dataclass(frozen=True)
class TokenCounts:
    """Rows that a language model read, and tokens it wrote.

    Args:
        prompt: rows of the prompt; of all prompts together where each candidate has its own.
        candidates: of them those of the candidates.
        inspected: rows of inspected candidates.
        generated: tokens written.
        cached: of all rows those that the engine had in its cache, and did not compute.
    """

    prompt: int = 0
    candidates: int = 0
    inspected: int = 0
    generated: int = 0
    cached: int = 0


@dataclass(frozen=True)
class RankedResults:
    """A ranking of candidates for one query, best first; the answer is always rank 1.

    Args:
        answer: index of the chosen candidate in the caller's list; None for no candidates.
        ranking: every candidate, or the ``top_k`` best.
        reasoning: the model's text with candidate labels written as ``[k]``, k the index + 1;
            empty in fast mode.
        inspected: indices of the candidates that the model looked at in full, in order.
        timings: seconds per phase.
        device, dtype: where the model ran, and in which numbers: ``"cpu"``, ``"float32"``.
    """

    query: Item
    answer: int | None
    ranking: tuple[RankedItem, ...]
    reasoning: str = ""
    inspected: tuple[int, ...] = ()
    mode: Mode = "reason"
    model: str = ""
    well_formed: bool = True
    timings: Mapping[str, float] = field(default_factory=dict)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    device: str = ""
    dtype: str = ""

    def __len__(self) -> int:
        return len(self.ranking)

    def __iter__(self) -> Iterator[RankedItem]:
        return iter(self.ranking)

    def __getitem__(self, rank: int) -> RankedItem:
        return self.ranking[rank]

    def top(self, n: int) -> list[RankedItem]:
        """The ``n`` best candidates, fewer where the ranking is shorter."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return list(self.ranking[:n])
