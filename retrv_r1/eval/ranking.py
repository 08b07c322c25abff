"""Ranks the queries of a cell by the first stage, then reranks its best by every system."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import track

from retrv_engine import EngineConfig
from retrv_r1 import __version__
from retrv_r1.data import mbeir
from retrv_r1.eval.cells import EvalError, part_of, prompt_order, sample, shape_of
from retrv_r1.eval.metrics import CUTOFFS
from retrv_r1.eval.outcomes import Journal, Outcome, file_hash
from retrv_r1.eval.settings import EvalSettings, System
from retrv_r1.model.first_stage import FOLDER, FirstStage, local_checkpoint
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import CheckpointError, RankRequest

_MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json"),
    *("tokenizer*", "vocab.json", "merges.txt"),
)


class Models:
    """The two stages of a checkpoint, each loaded when first used.

    Args:
        name: ``"tiny"``, a directory, or a hub id.
    Raises:
        CheckpointError: there is no such checkpoint, or it has no first stage.
    """

    def __init__(self, name: str | Path, settings: EvalSettings) -> None:
        self.name, self.settings = str(name), settings
        self.folder = local_checkpoint(name)
        if not (self.folder / FOLDER / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} has no first stage, which evaluation needs: train one with "
                f"`retrv-r1 train embed` and copy its result to {FOLDER}/ in that folder"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, configuration, tokenizer and picture preprocessing."""
        folders = (self.folder, self.folder / FOLDER)
        paths = {p for folder in folders for name in _MODEL_FILES for p in folder.glob(name)}
        return file_hash(self.folder, sorted(paths))

    @cached_property
    def reranker(self) -> Reranker:
        settings = self.settings
        config = EngineConfig(max_sequences=settings.batch_size, weights=settings.weights)
        reranker = Reranker.from_pretrained(
            self.folder, device=settings.device, dtype=settings.dtype, config=config
        )
        if settings.int8_keys:
            reranker.model.icm.int8_keys = True
        return reranker

    @cached_property
    def first_stage(self) -> FirstStage:
        return FirstStage.from_pretrained(self.folder / FOLDER, device=self.settings.device)


@dataclass(frozen=True)
class CellRun:
    """A cell and its outcomes.

    Attributes:
        positives: relevant dids by qid, in the order of the queries.
        first: outcomes of the first stage, in the same order.
        reranked: outcomes in the same order, by system and candidate count.
    """

    cell: mbeir.Cell
    shape: str
    pool_size: int
    positives: Mapping[str, Sequence[str]]
    first: Sequence[Outcome]
    reranked: Mapping[tuple[System, int], Sequence[Outcome]]

    @property
    def part(self) -> str:
        return part_of(self.cell)


@dataclass(frozen=True)
class _CellWork:
    """A cell that is being ranked; ``data`` is the hash of its files."""

    cell: mbeir.Cell
    task: mbeir.Task
    queries: Sequence[mbeir.Query]
    data: str

    @property
    def name(self) -> str:
        return f"{part_of(self.cell)} {shape_of(self.queries)}"


class CellRunner:
    """Ranks cells; outcomes on disk are not computed again.

    Args:
        root: directory of the data set.
        out: folder for outcomes; None keeps them in memory only.
    """

    def __init__(
        self, root: Path, models: Models, settings: EvalSettings, out: Path | None
    ) -> None:
        self.root, self.models, self.settings, self.out = root, models, settings, out
        self.console = Console(stderr=True, highlight=False)

    def run(self, cell: mbeir.Cell) -> CellRun:
        """Ranks a cell's queries by the first stage and by every system and count."""
        settings = self.settings
        task = mbeir.load(self.root, cell.dataset, cell.split, settings.pool)
        if not task.queries:
            raise EvalError(f"{cell.queries} has no queries: choose another --split")
        queries = sample(task.queries, settings.limit, settings.seed)
        work = _CellWork(cell, task, queries, self._data_hash(cell))
        first = self._first_stage(work)
        nearest = {outcome.qid: outcome.ranking for outcome in first}
        reranked = {
            (system, k): self._rerank(work, nearest, system, k)
            for k in settings.k
            for system in settings.systems
        }
        return CellRun(
            cell=cell,
            shape=shape_of(queries),
            pool_size=len(task.pool),
            positives={query.qid: query.positives for query in queries},
            first=first,
            reranked=reranked,
        )

    def _data_hash(self, cell: mbeir.Cell) -> str:
        """Hash of queries, candidates, relevance, instructions, and the data set's manifest."""
        qrels = f"qrels/{cell.split}/mbeir_{cell.dataset}_{cell.split}_qrels.txt"
        others = (qrels, "instructions/query_instructions.tsv", "manifest.json")
        paths = [cell.queries, *(self.root / name for name in others)]
        if self.settings.pool in cell.pools:
            paths.append(cell.pools[self.settings.pool])
        return file_hash(self.root, [path for path in paths if path.is_file()])

    def _journal(self, work: _CellWork, name: str, **about: object) -> Journal:
        cell = work.cell
        folder = self.out and self.out / "outcomes" / f"{cell.dataset}_{cell.split}"
        about |= {"cell": cell.dataset, "split": cell.split, "data": work.data}
        about |= {"model": self.models.fingerprint, "version": __version__}
        return Journal(folder, name, about)

    def _first_stage(self, work: _CellWork) -> list[Outcome]:
        depth, task = max(*self.settings.k, *CUTOFFS), work.task
        journal = self._journal(work, f"first-stage-k{depth}", depth=depth)
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

    def _rerank(
        self, work: _CellWork, nearest: Mapping[str, Sequence[str]], system: System, k: int
    ) -> list[Outcome]:
        """Outcomes of one system over each query's ``k`` nearest candidates."""
        options = {"mode": system.mode, "reading": system.reading, **self.settings.ranking_options}
        journal = self._journal(work, f"{system.slug}-k{k}", k=k, **options)
        waiting = [query for query in work.queries if query.qid not in journal.outcomes]
        size = self.settings.batch_size
        label = f"{work.name}, {system.name}, K = {k}"
        batches = track(
            [waiting[start : start + size] for start in range(0, len(waiting), size)],
            label,
            console=self.console,
            transient=True,
            disable=not (waiting and self.console.is_terminal),
        )
        for batch in batches:
            journal.add(self._batch(work.task, batch, nearest, system, k))
        outcomes = [journal.outcomes[query.qid] for query in work.queries]
        if waiting:
            pairs = zip(outcomes, work.queries, strict=True)
            right = sum(outcome.answer in query.positives for outcome, query in pairs)
            self.console.print(f"{label}: {right} of {len(outcomes)} right", markup=False)
        return outcomes

    def _batch(
        self,
        task: mbeir.Task,
        queries: Sequence[mbeir.Query],
        nearest: Mapping[str, Sequence[str]],
        system: System,
        k: int,
    ) -> list[Outcome]:
        """Reranks a batch of queries."""
        seed, reranker = self.settings.seed, self.models.reranker
        shown = [prompt_order(nearest[query.qid][:k], query.qid, seed) for query in queries]
        requests = [
            RankRequest(
                task.item(query),
                [task.item(task.candidate(did)) for did in dids],
                mbeir.instruction(query),
            )
            for query, dids in zip(queries, shown, strict=True)
        ]
        started = time.perf_counter()
        results = reranker.rank_batch(
            requests, mode=system.mode, reading=system.reading, sampling=self.settings.sampling
        )
        seconds = time.perf_counter() - started - sum(r.timings["features"] for r in results)
        return [
            Outcome.of(
                query.qid, dids, result, min(len(dids), reranker.window), seconds / len(queries)
            )
            for query, dids, result in zip(queries, shown, results, strict=True)
        ]
