"""Values of the public interface: items in, ranked results out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from PIL import Image

from retrv_r1.item_values import Array, id_of, is_picture, picture_of, text_of

EngineName: TypeAlias = Literal["local", "plain", "sglang"]
Mode: TypeAlias = Literal["reason", "fast"]
ModeChoice: TypeAlias = Mode | Literal["auto"]
EarlierWindows: TypeAlias = Literal["fast", "same"]
Reading: TypeAlias = Literal["compressed", "full", "pointwise"]
ImageSource: TypeAlias = Image.Image | str | Path | bytes

_NAME_LENGTH = 60


class RetrvError(Exception):
    """Base of the errors that a caller can fix; the message says how."""


class ItemError(RetrvError, ValueError):
    """A query or candidate that cannot be used: empty, unreadable, or of a wrong type."""


class CheckpointError(RetrvError, ValueError):
    """A checkpoint that is missing, damaged, or of another format."""


class DeviceError(RetrvError, ValueError):
    """A device that does not exist here, or a dtype or weights that it cannot use."""


@dataclass(frozen=True)
class Item:
    """A query or a candidate: text, a picture, or both.

    Args:
        text: plain text; special tokens in it are read as ordinary characters.
        image: PIL picture, path, or encoded bytes of a picture file. Other forms become one of
            these: see :func:`retrv_r1.item_values.picture_of`.
        id: the caller's name for the item, a string or a number, repeated in results.
    Raises:
        ItemError: there is neither a text nor a picture, or a value of another type.
    """

    text: str | None = None
    image: ImageSource | None = None
    id: str | int | float | None = None

    def __post_init__(self) -> None:
        try:
            values = text_of(self.text), picture_of(self.image), id_of(self.id)
        except ValueError as error:
            raise ItemError(str(error)) from error
        for name, value in zip(("text", "image", "id"), values, strict=True):
            object.__setattr__(self, name, value)
        if self.image is None and not (self.text and self.text.strip()):
            raise ItemError("an item needs a non-empty text, a picture, or both")

    @property
    def id_text(self) -> str:
        """The id as text; empty without one."""
        return "" if self.id is None else str(self.id)

    @classmethod
    def of(cls, value: ItemLike) -> Item:
        """Makes an item from a text, a picture, a path, or a mapping with ``text`` and ``image``.

        A ``str`` is a text; use ``Path`` (or ``{"image": …}``) for a picture file. Pictures may
        have any form that :func:`retrv_r1.item_values.picture_of` takes.

        Raises:
            ItemError: another type, or an unknown field of a mapping.
        """
        if isinstance(value, Item):
            return value
        if isinstance(value, str):
            return cls(text=value)
        if is_picture(value):
            return cls(image=value)  # type: ignore[arg-type]
        if isinstance(value, Mapping):
            unknown = set(value) - {"text", "image", "id"}
            if unknown:
                raise ItemError(f"unknown item fields {sorted(unknown)}; use text, image, id")
            return cls(text=value.get("text"), image=value.get("image"), id=value.get("id"))
        raise ItemError(
            f"cannot make an item of {type(value).__name__}; pass text, a picture or a Path"
        )


Buffer: TypeAlias = bytes | bytearray | memoryview
# What `Item.of` makes an item of; wherever an item is asked for, these are taken too.
ItemLike: TypeAlias = (
    Item | str | Path | Buffer | IO[bytes] | Array | Image.Image | Mapping[str, Any]
)


@dataclass(frozen=True)
class RankRequest:
    """A query with its candidates, for :meth:`Reranker.rank_batch`.

    Args:
        query: text, picture, or both.
        candidates: items to rank, in any order; duplicates are kept.
        instruction: wording of the task; the checkpoint's own when None.
        tie_seed: seed that orders candidates of equal scores at random; they keep the caller's
            order when None.
    """

    query: ItemLike
    candidates: Iterable[ItemLike]
    instruction: str | None = None
    tie_seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str | None):
            raise ValueError(f"instruction must be a text or None, got {self.instruction!r}")

    def items(self) -> list[Item]:
        """The query, then the candidates.

        Raises:
            ItemError: a value is not an item, or the candidates are not a list; the message names
                the value.
        """
        values = self.candidates
        single = isinstance(values, str | Mapping | Item) or is_picture(values)
        if hasattr(values, "__array__") and getattr(values, "ndim", 1) in (1, 4):
            single = False  # a column of texts, or an array of pictures
        if single or not isinstance(values, Iterable):
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
    """A candidate with its place in a ranking.

    Args:
        index: position of the candidate in the caller's list, from 0.
        score: calibrated relevance in [0, 1]; never increases down the ranking.
        item: the candidate itself.
        inspected: whether the model looked at the candidate in full.
        truncated: whether only the start of the candidate's text was read, because it has more
            tokens than the reranker's ``max_text_tokens``.
    """

    index: int
    score: float
    item: Item
    inspected: bool = False
    truncated: bool = False

    @property
    def name(self) -> str:
        """File name of the picture, else the start of the text, the id, or ``candidate N``."""
        if isinstance(self.item.image, str | Path):
            return Path(self.item.image).name
        text = " ".join(self.text.split())
        if len(text) > _NAME_LENGTH:
            text = text[: _NAME_LENGTH - 1] + "…"
        return text or self.item.id_text or f"candidate {self.index}"

    @property
    def text(self) -> str:
        """Text of the candidate; empty where it is only a picture."""
        return self.item.text or ""


@dataclass(frozen=True)
class TokenCounts:
    """Rows that the language model read, and tokens that it wrote.

    Args:
        prompt: rows of the prompt, or of all prompts where each candidate has its own.
        candidates: rows of the prompt that candidates take.
        inspected: rows of inspected candidates.
        generated: written tokens.
        cached: rows found in the engine's cache instead of computed.
        pictures: rows of pictures among those of ``prompt`` and ``inspected``: of the query, and of
            candidates that were read in full.
    """

    prompt: int = 0
    candidates: int = 0
    inspected: int = 0
    generated: int = 0
    cached: int = 0
    pictures: int = 0


@dataclass(frozen=True)
class Bill:
    """What a ranking cost, all its windows, votes and early answers together.

    Args:
        seconds: seconds by phase: ``queue``, ``features``, ``compression``, ``prefill``,
            ``decode``, ``inspection``, and ``total`` from the request to the result; a server adds
            ``pictures``, their reading. A step of the engine counts in full for every request
            that took part in it.
        tokens: rows read and tokens written.
        prompts: prompts that the engine read.
        inspections: candidates that were looked at in full.
        remembered: distinct items whose features were in memory.
        stored: distinct items whose features were on disk.
        encoded: distinct items that had to be encoded.
        pictures: pictures of the query and the candidates, duplicates included.
        picture_bytes: their bytes as files, or decoded where they came as decoded pictures.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: TokenCounts = field(default_factory=TokenCounts)
    prompts: int = 0
    inspections: int = 0
    remembered: int = 0
    stored: int = 0
    encoded: int = 0
    pictures: int = 0
    picture_bytes: int = 0


@dataclass(frozen=True)
class RankedResults:
    """A ranking of candidates for one query, best first; the answer is always rank 1.

    Args:
        query: the query as an item.
        answer: index of the chosen candidate in the caller's list; None without candidates.
        ranking: all candidates, or the ``top_k`` best.
        reasoning: text that the model wrote, where ``[k]`` is the candidate of index k - 1; empty
            in fast mode.
        inspected: indices of the candidates that the model looked at in full, in order.
        mode: mode that gave the answer.
        model: name of the model.
        well_formed: whether the model produced the format of the answer unaided; the engine
            enforces it in every case.
        timings: seconds per phase.
        tokens: rows read and tokens written.
        device: device of the model, such as ``"cpu"``.
        dtype: dtype of its weights, such as ``"float32"``.
        query_truncated: whether only the start of the query's text was read.
        auto: whether the mode was chosen by the reranker.
        cut: whether reasoning was cut off by the budget, so that this is the best answer until
            then.
        bill: what the ranking cost, with all its windows and votes.
        refused: number of inspections that the model wished for beyond the permitted ones.
        none_of_these: probability that no candidate fits; in a list longer than one window, none
            of the last one. The scores there are the probabilities of the candidates, and all of
            them sum to 1. None without candidates, with the reading ``"pointwise"``, and for older
            checkpoints.
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
    query_truncated: bool = False
    auto: bool = False
    cut: bool = False
    bill: Bill = field(default_factory=Bill)
    none_of_these: float | None = None
    refused: int = 0

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
