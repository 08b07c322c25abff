"""Ranks the queries of a cell by the first stage, then reranks its best by every system."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from retrv_r1.data import mbeir
from retrv_r1.eval.calibration_lists import about, calibration_lists
from retrv_r1.eval.fusion import fuse, weight_of
from retrv_r1.eval.models import Models
from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.presentation import request, shown
from retrv_r1.eval.retrieval import Retriever
from retrv_r1.eval.settings import EvalSettings, System


@dataclass(frozen=True)
class CellRun:
    """A cell and its outcomes.

    Attributes:
        positives: relevant dids by qid, in the order of the queries.
        first: outcomes of the first stage, in the same order.
        reranked: outcomes in the same order, by system and candidate count.
        cut: number of candidates whose text the first stage has cut; None if that is not known.
        calibration: outcomes of each compressed system on the lists of
            :mod:`retrv_r1.eval.calibration_lists`; empty unless they are asked for.
        resemblance: what content tokens say of the candidates of these lists, by qid and did; empty
            but for a calibration.
    """

    work: CellWork
    positives: Mapping[str, Sequence[str]]
    first: Sequence[Outcome]
    reranked: Mapping[tuple[System, int], Sequence[Outcome]]
    cut: int | None = None
    calibration: Mapping[System, Sequence[Outcome]] = field(default_factory=dict)
    resemblance: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def resemblance_of(self, outcome: Outcome) -> Tensor:
        """What content tokens say of an outcome's candidates in their order, ``[k, 2]``."""
        known = self.resemblance[outcome.qid]
        return torch.tensor([known[did].tolist() for did in outcome.ranking]).view(-1, 2)


class CellRunner:
    """Ranks cells; outcomes on disk are not computed again.

    Args:
        out: folder for outcomes; None keeps them in memory only.
    """

    def __init__(self, models: Models, settings: EvalSettings, out: Path | None) -> None:
        self.models, self.settings, self.out = models, settings, out
        self.retriever = Retriever(models, settings, out)
        self.console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """Prints a line to standard error."""
        self.console.print(line, markup=False, soft_wrap=True)

    def run(self, work: CellWork) -> CellRun:
        """Ranks a cell's queries by the first stage and by every system and count."""
        first = self.retriever.nearest(work)
        nearest = {outcome.qid: outcome.ranking for outcome in first}
        reranked: dict[tuple[System, int], Sequence[Outcome]] = {}
        for k in self.settings.k:
            for system in self.settings.systems:
                if system.fused:
                    yes = reranked[System("fast", "pointwise"), k]
                    similar = {outcome.qid: outcome for outcome in first}
                    weight = weight_of(work.cell.dataset, self.settings)
                    reranked[system, k] = fuse(yes, similar, weight)
                else:
                    lists = {qid: found[:k] for qid, found in nearest.items()}
                    reranked[system, k] = self._rerank(work, lists, system, k)
        calibration = self._calibration(work, first) if self.settings.calibration else {}
        positives = {query.qid: query.positives for query in work.queries}
        cut = self.retriever.cut(work)
        return CellRun(work, positives, first, reranked, cut, calibration)

    def run_calibration(self, work: CellWork) -> CellRun:
        """Ranks the lists for calibration alone."""
        first = self.retriever.nearest(work)
        positives = {query.qid: query.positives for query in work.queries}
        outcomes, resemblance = self._calibration(work, first), self._resemblance(work, first)
        return CellRun(work, positives, first, {}, None, outcomes, resemblance)

    def _calibration(
        self, work: CellWork, first: Sequence[Outcome]
    ) -> dict[System, Sequence[Outcome]]:
        """Outcomes on lists of many lengths, some without the answer."""
        lists, k = calibration_lists(work, first, self.settings), max(self.settings.k)
        if not lists:
            return {}
        return {
            system: self._rerank(work, lists, system, k, **about(self.settings))
            for system in self.settings.systems
            if system.reading == "compressed"
        }

    def _resemblance(
        self, work: CellWork, first: Sequence[Outcome]
    ) -> dict[str, Mapping[str, Tensor]]:
        """What content tokens say of the candidates of the lists for calibration."""
        lists = calibration_lists(work, first, self.settings)
        found: dict[str, Mapping[str, Tensor]] = {}
        for query in work.queries:
            if dids := lists.get(query.qid):
                one = request(work.task, query, dids, self.settings)
                rows = self.models.reranker.resemblance(one)
                found[query.qid] = dict(zip(dids, rows, strict=True))
        return found

    def _rerank(
        self,
        work: CellWork,
        lists: Mapping[str, Sequence[str]],
        system: System,
        k: int,
        **special: object,
    ) -> list[Outcome]:
        """Outcomes of one system on lists of up to ``k`` candidates.

        Args:
            special: what decides the lists, if they are not the ``k`` nearest candidates.
        """
        options = {"reading": system.reading, **self.settings.ranking_options(system.mode, k)}
        model = self.models.fingerprint
        name = f"{system.slug}{'-calibration' if special else ''}-k{k}"
        journal = work.journal(self.out, model, name, **options, **special)
        queries = [query for query in work.queries if query.qid in lists]
        waiting = [query for query in queries if query.qid not in journal.outcomes]
        size = self.settings.batch_size
        label = f"{work.name}, {system.name}, K = {k}" + (", calibration" if special else "")
        batches = track(
            [waiting[start : start + size] for start in range(0, len(waiting), size)],
            label,
            console=self.console,
            transient=True,
            disable=not (waiting and self.console.is_terminal),
        )
        for batch in batches:
            journal.add(self._batch(work.task, batch, lists, system))
        outcomes = [journal.outcomes[query.qid] for query in queries]
        if waiting:
            pairs = zip(outcomes, queries, strict=True)
            right = sum(outcome.answer in query.positives for outcome, query in pairs)
            self.console.print(f"{label}: {right} of {len(outcomes)} right", markup=False)
        return outcomes

    def _batch(
        self,
        task: mbeir.Task,
        queries: Sequence[mbeir.Query],
        lists: Mapping[str, Sequence[str]],
        system: System,
    ) -> list[Outcome]:
        """Reranks a batch of queries."""
        settings, reranker = self.settings, self.models.reranker
        order = [shown(lists[query.qid], query.qid, settings) for query in queries]
        pairs = list(zip(queries, order, strict=True))
        requests = [request(task, query, dids, settings) for query, dids in pairs]
        started = time.perf_counter()
        results = reranker.rank_batch(
            requests, mode=system.mode, reading=system.reading, sampling=settings.sampling
        )
        seconds = time.perf_counter() - started - sum(r.timings["features"] for r in results)
        window = max(map(len, order)) if system.reading == "pointwise" else reranker.window
        return [
            Outcome.of(query.qid, dids, result, min(len(dids), window), seconds / len(queries))
            for (query, dids), result in zip(pairs, results, strict=True)
        ]
