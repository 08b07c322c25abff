"""The embedded engine: a continuous batch over a paged, radix-cached key-value cache.

One step is four calls: schedule → run → take → inspect.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrv_engine import decode, warming
from retrv_engine.base import DeadlineExceeded, Handle, Stats
from retrv_engine.config import EngineConfig
from retrv_engine.generation import Generation
from retrv_engine.job import Extend, Job, Scoring
from retrv_engine.model import LanguageModel
from retrv_engine.pages import PagePool
from retrv_engine.request import (
    Candidate,
    Output,
    Piece,
    Request,
    Sampling,
    Vocabulary,
    load_distinct,
)
from retrv_engine.runner import ModelRunner, Runner
from retrv_engine.sampler import Picked
from retrv_engine.scheduler import Scheduler
from retrv_engine.stepping import SteppingEngine

PATIENCE = 0.2
"""Seconds that the statistics wait for the end of a step; a prefill on a CPU may take many."""


class LocalEngine(SteppingEngine):
    """Serves requests with a model in this process; see :mod:`retrv_engine.base`.

    Args:
        model: model to serve; its weights are shared, not copied, and the module is not changed.
        config: sizes of the cache and of a step.
        runner: runner that computes the steps; by default one for ``model``.
        generation_type: class of the running requests; a subclass may steer them, for measurements.
    """

    def __init__(
        self,
        model: LanguageModel | None,
        vocabulary: Vocabulary,
        config: EngineConfig | None = None,
        *,
        runner: Runner | None = None,
        generation_type: type[Generation] = Generation,
    ) -> None:
        super().__init__()
        config = config or EngineConfig()
        if runner is None:
            if model is None:
                raise ValueError("LocalEngine needs a model or a runner")
            table: Any = model.get_input_embeddings().weight
            config = config.on(table.device.type)
            runner = ModelRunner(model, config)
        # Another runner has no device to ask: settings that are still open are those of a CPU.
        self.vocabulary, self.config = vocabulary, config.on("cpu")
        self.runner, self.generation_type = runner, generation_type
        self.scheduler = self._new_scheduler()
        self._reset_counts()

    # What callers do.

    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """See :meth:`retrv_engine.base.Engine.submit`."""
        self.runner.check([*request.prompt, *request.scored])
        return self._submit(self.generation_type(request, self.vocabulary), priority, deadline)

    def score(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> list[float]:
        """See :meth:`retrv_engine.base.Engine.score`."""
        self.runner.check([*prompt, *tokens])
        return self._submit(Scoring(prompt, tokens)).result()

    def warm(
        self,
        samplings: Sequence[Sampling] = (Sampling(),),
        sizes: Sequence[int] | None = None,
        rows: int = decode.TIER,
    ) -> None:
        """Compiles what requests launch, captures decode steps, and resets the statistics.

        On a GPU this takes seconds, which the first requests would take otherwise. On a CPU there
        is nothing to do.

        Args:
            samplings: ways in which tokens will be taken; temperature and top_p matter.
            sizes: numbers of requests that will run together; by default all sizes of a step.
            rows: rows of the longest context; steps for shorter ones are captured too.
        Raises:
            RuntimeError: the engine has requests, or its thread runs.
        """
        if not self.runner.fixed:
            return
        with self._turn:
            if self._jobs or self._thread is not None:
                raise RuntimeError("an engine is warmed before it has requests, and before start")
            self.runner.warm()
            sizes = self.runner.sizes if sizes is None else sizes
            most = self.scheduler.pool.count * self.config.page_size - 16  # with the tokens written
            warming.run(self, self.vocabulary, samplings, sizes, rows, most)
            self._reset_counts()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`retrv_engine.base.Engine.load_weights`."""
        with self._turn:
            try:
                self.runner.load_weights(weights)
            except ValueError:  # nothing has changed
                raise
            except BaseException:
                self.scheduler.clear()
                raise
            self.scheduler.clear()

    def flush(self) -> None:
        """See :meth:`retrv_engine.base.Engine.flush`."""
        with self._turn:
            self.scheduler.flush()

    def stats(self) -> Stats:
        """See :class:`retrv_engine.base.Stats`; in a long step, the counts so far.

        They may then be of different moments, but none is older than a result that was given.
        """
        whole = self._turn.acquire(timeout=PATIENCE)
        try:
            scheduler = self.scheduler
            return Stats(
                **self._counts,
                running=len(scheduler.running),
                waiting=len(scheduler.waiting) + len(self._inbox),
                preempted=scheduler.preempted,
                evicted_pages=scheduler.tree.evicted,
                pages=scheduler.pool.count,
                free_pages=len(scheduler.pool),
                cached_pages=scheduler.tree.size,
                seconds=dict(self._seconds),
                batches=dict(self._batches),
            )
        finally:
            if whole:
                self._turn.release()

    def check(self) -> None:
        """Raises AssertionError unless all invariants of the pages and the radix tree hold."""
        with self._turn:
            self.scheduler.check()

    def close(self) -> None:
        """See :meth:`retrv_engine.base.Engine.close`."""
        self._stop()
        with self._turn:
            for job in self._jobs:
                job.handle.cancel()
            self._collect()
            self.runner.reset()

    # A step.

    @torch.inference_mode()
    def step(self) -> bool:
        """Takes one step; False if there was nothing to do."""
        with self._turn:
            self._collect()
            began = time.perf_counter()
            with self._timed("schedule"):
                extends = self.scheduler.schedule()
            self._reject()
            if not extends:
                return bool(self.scheduler.waiting)
            phases = [job.phase for job, _, _ in extends]
            try:
                with self._timed("run"):
                    picks = self.runner.run(extends)
                with self._timed("take"):
                    inspected = self._take(extends, picks)
                with self._timed("inspect"):
                    self._inspect(inspected)
                self._count(extends, phases, began)
            except Exception as error:
                self._fail_all(error)
        self._notify()
        return True

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Adds the time inside to a part of the step in the statistics."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def _collect(self) -> None:
        """Accepts new jobs, and removes those that were cancelled or are late."""
        while self._inbox:
            self.scheduler.waiting.append(self._inbox.popleft())
        now = time.perf_counter()
        for job in self._jobs:
            if job.handle.future.cancelled():
                self.scheduler.remove(job)
                self._counts["cancelled"] += 1
            elif job.deadline is not None and now > job.deadline:
                seconds = job.deadline - job.submitted
                self._end(job, DeadlineExceeded(f"not done in {seconds:.3g} s", job.spent))

    def _take(
        self, extends: Sequence[Extend], picks: Sequence[Sequence[Picked]]
    ) -> dict[Job, Candidate]:
        """Gives each job its tokens; returns the candidates that jobs inspect next."""
        inspected = {}
        for extend, taken in zip(extends, picks, strict=True):
            if not self.scheduler.computed(extend, taken):
                continue
            job = extend.job
            try:
                candidate = job.advance()
            except Exception as error:  # the job's own: the others go on
                self._end(job, error)
                continue
            if candidate is not None:
                inspected[job] = candidate
        return inspected

    def _inspect(self, inspected: Mapping[Job, Candidate]) -> None:
        """Appends the rows of inspected candidates; each candidate is loaded once for all jobs."""
        pieces = load_distinct(list(inspected.values()))
        self._counts["inspections"] += len(inspected)
        self._counts["loaded"] += len(pieces)
        for job, candidate in inspected.items():
            found = pieces[candidate]
            try:
                if isinstance(found, Exception):
                    raise found
                self.runner.check(found)
                job.splice(found)
            except Exception as error:
                self._end(job, error)

    def _count(self, extends: Sequence[Extend], phases: Sequence[str], began: float) -> None:
        """Updates the statistics after a step, and ends the jobs that are done."""
        seconds = time.perf_counter() - began
        self._counts["steps"] += 1
        self._batches[len(extends)] += 1
        for (job, first, stop), phase in zip(extends, phases, strict=True):
            self._counts["computed_rows"] += stop - first
            if not job.timings:
                job.timings["queue"] = max(0.0, began - job.submitted)
            job.timings[phase] = job.timings.get(phase, 0.0) + seconds
            if job.work.done and job in self.scheduler.running:
                self._end(job)

    def _end(self, job: Job, error: Exception | None = None, *, keep: bool = True) -> None:
        """Takes a job out and tells its handle how it ended; ``keep`` leaves its rows cached."""
        self.scheduler.remove(job, keep=keep)
        self._counts["failed" if error else "finished"] += 1
        self._counts["cached_rows"] += job.found
        self._counts["written_tokens"] += len(job.work.tokens)
        result = error or job.work.output()
        if isinstance(result, Output):
            timings = dict(job.timings)
            result = replace(
                result, cached_rows=job.found, computed_rows=job.computed, timings=timings
            )
        job.handle.finish(result)

    def _reject(self) -> None:
        for job, error in self.scheduler.rejected:
            self._end(job, error)
        self.scheduler.rejected.clear()

    def _fail_all(self, error: Exception) -> None:
        """Ends all running jobs after an error of the model, which may have spoilt the pages."""
        self._counts["restarts"] += 1
        self.runner.reset()  # first: those that are told find the engine mended
        for job in list(self.scheduler.running):
            self._end(job, error, keep=False)
        self.scheduler.clear()

    def _give_up(self, error: Exception) -> None:
        with self._turn:
            self._counts["restarts"] += 1
            jobs = [*self.scheduler.running, *self.scheduler.waiting]
            self.scheduler = self._new_scheduler()  # what the error left of it is not known
            self.runner.reset()
            while self._inbox:  # one by one: another may come meanwhile, and none may be lost
                jobs.append(self._inbox.popleft())
            for job in jobs:
                self._end(job, error)

    def _new_scheduler(self) -> Scheduler:
        pool = PagePool(self.runner.pages, self.config.page_size)
        return Scheduler(pool, self.config, self.runner.copy, self.runner.fixed)

    def _reset_counts(self) -> None:
        self._counts, self._batches = Counter[str](), Counter[int]()
        self._seconds = dict.fromkeys(("schedule", "run", "take", "inspect"), 0.0)
        self.scheduler.preempted = self.scheduler.tree.evicted = 0
