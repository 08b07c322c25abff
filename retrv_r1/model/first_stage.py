"""The first stage: embeds items as unit vectors and finds the nearest of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from rich.progress import track
from torch import Tensor

from retrv_r1.model.checkpoint import resolve
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.types import CheckpointError, Item, ItemError, ItemLike

FOLDER = "embedder"
"""Folder of the first stage in a reranker's checkpoint."""

MAX_TEXT = 24
"""Tokens to which a text is cut, if the embedder's config has no ``max_text``."""

_LONG = 1000
_BLOCK = 2**16
_QUERIES = 2**9
"""Vectors of a pool, and of queries, that are compared at once: 128 MiB of scores."""


class FirstStage:
    """Embeds items with a checkpoint's first stage; the dot product is the similarity.

    Args:
        processor: the reranker's processor: both stages share tokenizer and preprocessing.
    Attributes:
        max_text: tokens to which a text is cut.
        cut: number of texts that were cut so far.
        cut_places: places, in the items of the last call of :meth:`embed`, of texts that it cut.
    """

    def __init__(self, model: RetrvEmbedder, processor: RetrvR1Processor) -> None:
        self.model, self.processor = model.eval(), processor
        if not hasattr(model.config, "max_text"):
            model.config.max_text = MAX_TEXT
        self.max_text = int(model.config.max_text)
        self.cut = 0
        self.cut_places: list[int] = []

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        processor: RetrvR1Processor | None = None,
        device: str | torch.device = "cpu",
    ) -> FirstStage:
        """Loads the ``embedder`` folder of a reranker's checkpoint.

        Args:
            processor: the reranker's processor; None loads it from the folder above.
        Raises:
            CheckpointError: there is no embedder, or it or the checkpoint around it is damaged.
        """
        path = Path(path)
        config = path / "config.json"
        if not config.is_file():
            raise CheckpointError(
                f"no first stage: {path} has no config.json; train one with `retrv-r1 train embed` "
                f"and copy its result to a folder {FOLDER!r} beside the reranker's files"
            )
        try:
            model, info = RetrvEmbedder.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
            if processor is None:
                around = RetrvR1Config.from_pretrained(path.parent)
                processor = RetrvR1Processor.from_pretrained(path.parent, around)
        except Exception as error:  # transformers raises almost any error for damaged files
            raise CheckpointError(
                f"cannot load the first stage {path} ({type(error).__name__}: {error}); "
                "copy or download it again"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise CheckpointError(f"{path} lacks {len(missing)} weights, {missing[0]} among them")
        return cls(model.to(device), processor)

    @torch.no_grad()
    def embed(self, items: Sequence[ItemLike], *, batch_size: int = 64, what: str = "") -> Tensor:
        """Unit vectors ``[m, e]`` on the CPU, in the items' order.

        For many items a progress bar is shown if standard error is a terminal.

        Args:
            what: name of the items for the bar.
        Raises:
            ItemError: an item cannot be used; the message names it.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        console = Console(stderr=True)
        starts = track(
            range(0, len(items), batch_size),
            f"embedding {what or 'items'}",
            console=console,
            transient=True,
            disable=len(items) < _LONG or not console.is_terminal,
        )
        self.cut_places = []
        parts = [self._batch(items[start : start + batch_size], start) for start in starts]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embedding_dim)

    def search(
        self, queries: Tensor, pool: Tensor, k: int, tie_seeds: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest of a pool, or all of a smaller one.

        Searches block by block, so a pool may be a tensor over a memory-mapped file.

        Args:
            queries: unit vectors of the queries, ``[q, e]``.
            pool: unit vectors of the pool, ``[p, e]``.
            tie_seeds: seed for each query, ``[q]``, that draws among equal similarities; the same
                for all queries if empty.
        Returns:
            Scores and pool numbers, both ``[q, min(k, p)]``, best first.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        scores = torch.empty(len(queries), 0)
        numbers = torch.empty(len(queries), 0, dtype=torch.long)
        seeds = torch.tensor(tie_seeds or [0] * len(queries), dtype=torch.long)
        for start in range(0, len(pool), _BLOCK):
            block = pool[start : start + _BLOCK]
            columns = [x.split(_QUERIES) for x in (queries, seeds, scores, numbers)]
            found = [
                _nearest(*part, block=block, start=start, k=k)
                for part in zip(columns[0], columns[1], columns[2], columns[3], strict=True)
            ]
            scores, numbers = (torch.cat(column) for column in zip(*found, strict=True))
        return scores, numbers

    def _batch(self, items: Sequence[ItemLike], start: int) -> Tensor:
        encoded = [self._encode(item, start + i) for i, item in enumerate(items)]
        device = self.model.device
        pictures = texts = None
        patches = {i: e.patches for i, e in enumerate(encoded) if e.patches is not None}
        if patches:
            grids = torch.tensor([encoded[i].grid for i in patches])
            pixels = torch.cat(list(patches.values())).to(device)
            vectors = self.model.embed_pictures(pixels, grids)
            pictures = (torch.tensor(list(patches), device=device), vectors)
        cut = [start + i for i, e in enumerate(encoded) if len(e.text_ids) > self.max_text]
        self.cut_places += cut
        self.cut += len(cut)
        ids = {i: e.text_ids[: self.max_text] for i, e in enumerate(encoded) if e.text_ids}
        if ids:
            rows = [torch.tensor(row) for row in ids.values()]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
            padded = padded.to(device)
            vectors = self.model.embed_texts(padded.clamp(min=0), (padded >= 0).long())
            texts = (torch.tensor(list(ids), device=device), vectors)
        return self.model.fuse(len(items), pictures, texts).cpu()

    def _encode(self, item: ItemLike, number: int) -> EncodedItem:
        item = Item.of(item)
        try:
            return self.processor.encode(item)
        except ItemError as error:
            raise ItemError(f"{item.id_text or f'item {number}'}: {error}") from error


def _nearest(
    queries: Tensor,
    seeds: Tensor,
    scores: Tensor,
    numbers: Tensor,
    block: Tensor,
    start: int,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The best so far, ``[q, ≤ k]``, merged with those of a block that begins at ``start``."""
    similar = queries @ block.T
    found, places = similar.topk(min(k, len(block)), dim=1)
    _draw_last(similar, found, places, seeds, start)
    scores, numbers = torch.cat([scores, found], 1), torch.cat([numbers, places + start], 1)
    by_key = _tie_keys(seeds[:, None], numbers).argsort(1)
    scores, numbers = scores.gather(1, by_key), numbers.gather(1, by_key)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, best), numbers.gather(1, best)


def _draw_last(similar: Tensor, found: Tensor, places: Tensor, seeds: Tensor, start: int) -> None:
    """Draws which are found where more have the smallest found similarity; changes ``places``."""
    last = found[:, -1:]
    more = (similar >= last).sum(1) > found.shape[1]
    for row in more.nonzero()[:, 0].tolist():
        equal = (similar[row] == last[row]).nonzero()[:, 0]
        wanted = int((found[row] == last[row]).sum())
        drawn = _tie_keys(seeds[row], equal + start).argsort()[:wanted]
        places[row, -wanted:] = equal[drawn]


def _tie_keys(seeds: Tensor, numbers: Tensor) -> Tensor:
    """Random-looking integers, one for each seed and candidate.

    Seeds are mixed before numbers are added, or seed s + 1 would have the order of s, shifted.
    """
    return _mix(_mix(seeds) + numbers)


def _mix(bits: Tensor) -> Tensor:
    """The last steps of splitmix64."""
    bits = bits * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ ((bits >> shift) & ((1 << 64 - shift) - 1))) * factor
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def local_checkpoint(name: str | Path) -> Path:
    """The directory of a checkpoint; one on the hub is downloaded whole.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    source = resolve(name)
    if isinstance(source, Path):
        return source
    try:
        return Path(snapshot_download(source))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot get {source}: {why}; check name and network, or name a local directory"
        ) from error
