"""What all integrations stand on: a list ranked for a query, and pairs scored list by list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from retrv_kernels.extras import install_command
from retrv_r1.images import content_hash
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import (
    Item,
    ItemError,
    ItemLike,
    ModeChoice,
    RankedResults,
    RankRequest,
    RetrvError,
)


class IntegrationMissing(RetrvError, ImportError):
    """The library of an integration is not installed; the message says how to install it."""


@contextmanager
def library(extra: str, package: str) -> Iterator[None]:
    """Around the import of a library: raises IntegrationMissing where it is not installed.

    A library that is there and cannot be imported raises its own error.

    Args:
        extra: the extra that installs it.
        package: name under which it is imported.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise IntegrationMissing(
            f"this integration needs the package {package}: {install_command(extra)}"
        ) from error


@dataclass(frozen=True)
class Ranker:
    """A reranker with the settings that an integration keeps from call to call.

    Args:
        reranker: the reranker; it may serve several rankers, and its owner closes it.
        mode: ``"fast"``, ``"reason"`` or ``"auto"``, as in ``Reranker.rank``.
        instruction: wording of the task; the checkpoint's own when None.
    """

    reranker: Reranker
    mode: ModeChoice = "fast"
    instruction: str | None = None

    @classmethod
    def of(
        cls, model: str | Reranker, mode: ModeChoice = "fast", instruction: str | None = None
    ) -> Ranker:
        """A ranker with this reranker, or with a checkpoint that is loaded now.

        Args:
            model: a reranker, ``"tiny"``, a directory, or a hub id.
        """
        loaded = Reranker.from_pretrained(model) if isinstance(model, str) else model
        return cls(loaded, mode, instruction)

    def rank(
        self,
        query: ItemLike,
        items: Iterable[ItemLike],
        *,
        top_k: int | None = None,
        instruction: str | None = None,
    ) -> RankedResults:
        """Ranks ``items`` for ``query``, best first.

        Args:
            top_k: number of items to return; all when None.
            instruction: wording of the task; the ranker's own when None.
        Raises:
            ItemError: an item cannot be used; the message names it.
        """
        return self.reranker.rank(
            query,
            items,
            top_k=top_k,
            mode=self.mode,
            instruction=self.instruction if instruction is None else instruction,
        )

    def score_pairs(
        self, pairs: Iterable[tuple[ItemLike, ItemLike]], *, instruction: str | None = None
    ) -> list[float]:
        """Scores of (query, item) pairs, in [0, 1] and in the order of the pairs.

        Pairs with equal queries are ranked as one list, because the model compares candidates: a
        score says how likely the item is the answer among those that came with the same query.

        Args:
            instruction: wording of the task; the ranker's own when None.
        Raises:
            ItemError: an item cannot be used, or a pair is none; the message names the pair.
        """
        asked: dict[str, Item] = {}
        lists: dict[str, list[tuple[int, Item]]] = {}
        for number, pair in enumerate(pairs):
            query, item = _items(number, pair)
            key = content_hash(query)
            asked.setdefault(key, query)
            lists.setdefault(key, []).append((number, item))
        wording = self.instruction if instruction is None else instruction
        requests = [
            RankRequest(asked[key], [item for _, item in found], wording)
            for key, found in lists.items()
        ]
        scores = [0.0] * sum(map(len, lists.values()))
        results = self.reranker.rank_batch(requests, mode=self.mode)
        for found, ranking in zip(lists.values(), results, strict=True):
            for row in ranking:
                scores[found[row.index][0]] = row.score
        return scores


def _items(number: int, pair: object) -> tuple[Item, Item]:
    """Query and item of a pair."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ItemError(f"pair {number}: a pair is (query, item), not {type(pair).__name__}")
    try:
        return Item.of(pair[0]), Item.of(pair[1])
    except ItemError as error:
        raise ItemError(f"pair {number}: {error}") from error
