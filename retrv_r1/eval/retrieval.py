"""The first stage of an evaluation: embeds pools and finds each query's nearest candidates."""

from __future__ import annotations

import time
from pathlib import Path

from retrv_r1.eval.metrics import CUTOFFS
from retrv_r1.eval.models import Models
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.settings import EvalSettings


class Retriever:
    """Ranks pools by the first stage; outcomes on disk are not computed again.

    Args:
        out: folder of the evaluation; None keeps outcomes in memory only.
    """

    def __init__(self, models: Models, settings: EvalSettings, out: Path | None) -> None:
        self.models, self.settings, self.out = models, settings, out

    def nearest(self, work: CellWork) -> list[Outcome]:
        """The nearest candidates of every query of a cell, in the order of its queries."""
        depth, task = max(*self.settings.k, *CUTOFFS), work.task
        model, name = self.models.fingerprint, f"first-stage-k{depth}"
        journal = work.journal(self.out, model, name, depth=depth)
        waiting = [query for query in work.queries if query.qid not in journal.outcomes]
        if waiting:
            stage = self.models.first_stage
            what = f"the pool of {work.name}"
            pool = stage.embed([task.item(candidate) for candidate in task.pool], what=what)
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
