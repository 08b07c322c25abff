"""The first stage of an evaluation: embeds pools and finds each query's nearest candidates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from retrv_r1 import __version__
from retrv_r1.data import mbeir
from retrv_r1.eval.candidates import GivenList
from retrv_r1.eval.metrics import CUTOFFS
from retrv_r1.eval.models import Models
from retrv_r1.eval.outcomes import Outcome, fingerprint
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.presentation import tie_seed, wording
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.eval.vectors import VectorFile
from retrv_r1.types import Item


class Retriever:
    """Ranks pools by the first stage; vectors and outcomes on disk are not computed again.

    Args:
        out: folder of the evaluation; None keeps vectors in a temporary folder, and outcomes in
            memory.
    """

    def __init__(self, models: Models, settings: EvalSettings, out: Path | None) -> None:
        self.models, self.settings, self.out = models, settings, out
        self._temporary = TemporaryDirectory(prefix="retrv-r1-") if out is None else None
        self._vectors = (
            Path(self._temporary.name) if self._temporary else Path(out or ".", "vectors")
        )

    def nearest(self, work: CellWork) -> list[Outcome]:
        """The nearest candidates of every query of a cell, in the order of its queries.

        They are those of the settings' files, if there are any.
        """
        depth, settings = max(*self.settings.k, *CUTOFFS), self.settings
        if work.given is not None:
            given = work.given.load()
            return [_given(query.qid, given[query.qid], depth) for query in work.queries]
        model, name = self.models.fingerprint, f"first-stage-k{depth}"
        about: dict[str, object] = {"depth": depth}
        about |= {"seed": settings.seed, "device": settings.device}
        if self.models.reads_instructions:
            about["instructions"] = settings.instructions
        journal = work.journal(self.out, model, name, **about)
        waiting = [query for query in work.queries if query.qid not in journal.outcomes]
        if waiting:
            pool = self._pool_file(work).fill(self._embed, work.items, work.task.pool.path.name)
            started = time.perf_counter()
            vectors, _ = self._embed([self._item(work, query) for query in waiting])
            cut = set(self.models.first_stage.cut_places)
            seeds = [tie_seed(query.qid, settings) for query in waiting]
            scores, indices = self.models.first_stage.search(vectors, pool, depth, seeds)
            seconds = (time.perf_counter() - started) / len(waiting)
            found = enumerate(zip(waiting, indices.tolist(), scores.tolist(), strict=True))
            journal.add(
                [
                    Outcome(
                        qid=query.qid,
                        ranking=tuple(work.task.pool[index].did for index in nearest),
                        scores=tuple(similarities),
                        seconds=seconds,
                        cut=place in cut,
                    )
                    for place, (query, nearest, similarities) in found
                ]
            )
        return [journal.outcomes[query.qid] for query in work.queries]

    def cut(self, work: CellWork) -> int | None:
        """Number of candidates whose text the first stage has cut; None if that is not known."""
        return None if work.given is not None else self._pool_file(work).cut

    def _pool_file(self, work: CellWork) -> VectorFile:
        """The file of a pool's vectors."""
        pool = work.task.pool
        model = {
            "model": self.models.first_stage_fingerprint,
            "device": self.settings.device,
            "version": __version__,
        }
        name, content = pool.path.stem, work.pool.content
        return VectorFile(self._vectors, name, content, fingerprint(model), len(pool))

    def _embed(self, items: Sequence[Item]) -> tuple[Tensor, int]:
        """Vectors of items, and how many of their texts were cut."""
        stage = self.models.first_stage
        before = stage.cut
        return stage.embed(items), stage.cut - before

    def _item(self, work: CellWork, query: mbeir.Query) -> Item:
        """A query, behind its instruction if the first stage was trained so."""
        item = work.task.item(query)
        said = wording(query, self.settings) if self.models.reads_instructions else None
        return item if said is None else replace(item, text=f"{said} {item.text or ''}".strip())


def _given(qid: str, known: GivenList, depth: int) -> Outcome:
    return Outcome(qid, known.dids[:depth], known.scores[:depth])
