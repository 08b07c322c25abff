"""The first stage of an evaluation: embeds pools and finds each query's nearest candidates."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from retrv_r1 import __version__
from retrv_r1.eval.metrics import CUTOFFS
from retrv_r1.eval.models import Models
from retrv_r1.eval.outcomes import Outcome, fingerprint
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.eval.vectors import VectorFile


class Retriever:
    """Ranks pools by the first stage; vectors and outcomes on disk are not computed again.

    Args:
        out: folder of the evaluation; None keeps vectors in a temporary folder, and outcomes in
            memory.
    """

    def __init__(self, models: Models, settings: EvalSettings, out: Path | None) -> None:
        self.models, self.settings, self.out = models, settings, out
        self._temporary = None if out else TemporaryDirectory(prefix="retrv-r1-")
        self._vectors = out / "vectors" if out else Path(self._temporary.name)

    def nearest(self, work: CellWork) -> list[Outcome]:
        """The nearest candidates of every query of a cell, in the order of its queries."""
        depth, task = max(*self.settings.k, *CUTOFFS), work.task
        model, name = self.models.fingerprint, f"first-stage-k{depth}"
        journal = work.journal(self.out, model, name, depth=depth)
        waiting = [query for query in work.queries if query.qid not in journal.outcomes]
        if waiting:
            stage = self.models.first_stage
            pool = self._pool(work)
            started = time.perf_counter()
            vectors = stage.embed([task.item(query) for query in waiting], what="queries")
            scores, indices = stage.search(vectors, pool, depth)
            seconds = (time.perf_counter() - started) / len(waiting)
            found = zip(waiting, indices.tolist(), scores.tolist(), strict=True)
            journal.add(
                [
                    Outcome(
                        qid=query.qid,
                        ranking=tuple(task.pool[index].did for index in nearest),
                        scores=tuple(similarities),
                        seconds=seconds,
                    )
                    for query, nearest, similarities in found
                ]
            )
        return [journal.outcomes[query.qid] for query in work.queries]

    def _pool(self, work: CellWork) -> Tensor:
        """Vectors of a cell's pool, ``[p, e]``, memory-mapped."""
        stage, task = self.models.first_stage, work.task
        model = {
            "model": self.models.first_stage_fingerprint,
            "device": self.settings.device,
            "version": __version__,
        }
        name, content = task.pool.path.stem, work.pool.content
        file = VectorFile(self._vectors, name, content, fingerprint(model), len(task.pool))
        return file.fill(
            stage.embed,
            lambda start, stop: [task.item(candidate) for candidate in task.pool[start:stop]],
            task.pool.path.name,
        )
