"""The embedded engine: a continuous batch over a paged, radix-cached key-value cache.

step = schedule → run → take what came of it
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from retrv_engine import decode, warming
from retrv_engine.base import DeadlineExceeded, Engine, Handle, Stats
from retrv_engine.config import EngineConfig
from retrv_engine.generation import Generation
from retrv_engine.model import LanguageModel
from retrv_engine.pages import PagePool
from retrv_engine.request import Output, Piece, Request, Sampling, Vocabulary, load_distinct
from retrv_engine.runner import ModelRunner, Runner
from retrv_engine.sampler import Picked
from retrv_engine.scheduler import Extend, Job, Scheduler
from retrv_engine.work import Scoring

T = TypeVar("T")
logger = logging.getLogger(__name__)


class LocalEngine(Engine):
    """Serves requests with a model in this process; see :mod:`retrv_engine.base`.

    Args:
        model: its weights are shared, not copied, and the module itself is left as it is.
        runner: what computes; of the model when None.
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
                raise ValueError("an engine needs a model, or what runs one")
            table: Any = model.get_input_embeddings().weight
            config = config.on(table.device.type)
            runner = ModelRunner(model, config)
        # A runner of other makes has no device to ask: what is left open is as on a CPU.
        self.vocabulary, self.config = vocabulary, config.on("cpu")
        self.runner, self.generation_type = runner, generation_type
        pool = PagePool(runner.pages, self.config.page_size)
        self.scheduler = Scheduler(pool, self.config, runner.copy, runner.single)
        self._numbers = itertools.count()
        self._inbox: deque[Job] = deque()
        self._turn = threading.RLock()  # held while a step is taken
        self._thread: threading.Thread | None = None
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._seconds = dict.fromkeys(("schedule", "run", "sample", "inspect"), 0.0)

    # What callers do.

    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """See :meth:`retrv_engine.base.Engine.submit`."""
        self.runner.check([*request.prompt, *request.labels])
        return self._submit(self.generation_type(request, self.vocabulary), priority, deadline)

    def score(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> list[float]:
        """See :meth:`retrv_engine.base.Engine.score`."""
        self.runner.check([*prompt, *tokens])
        handle: Handle[list[float]] = self._submit(Scoring(prompt, tokens), 0, None)
        return handle.result()

    def warm(
        self,
        samplings: Sequence[Sampling] = (Sampling(),),
        sizes: Sequence[int] | None = None,
        rows: int = decode.TIER,
    ) -> None:
        """Compiles what requests launch, captures decode steps, and forgets that anything ran.

        On a GPU that takes seconds, which the first requests would take otherwise; call it before
        there are any. On a CPU there is nothing to do.

        Args:
            samplings: how tokens will be taken; temperature and top_p matter.
            sizes: numbers of requests that will run together; all that steps are made for if None.
            rows: of the longest context; steps are captured for shorter ones too.
        Raises:
            RuntimeError: there are requests already, or the engine's thread runs.
        """
        if not self.runner.single:
            return
        with self._turn:
            waiting = self.scheduler.running or self.scheduler.waiting or self._inbox
            if waiting or self._thread is not None:
                raise RuntimeError("an engine is warmed before it has requests, and before start")
            self.runner.warm()
            sizes = self.runner.sizes if sizes is None else sizes
            most = self.scheduler.pool.count * self.scheduler.pool.size - 16  # with what is written
            lengths = [warming.SHORT, *(tier + 1 for tier in decode.tiers(rows) if tier < rows)]
            for sampling in samplings:
                prompts = warming.Prompts(self.vocabulary, sampling)
                for size, length in itertools.product(sizes, lengths):
                    self.generate([prompts.of(min(length, most))] * size)
                # Two that write, and share a prompt, while another is read.
                long = min(warming.LONG, most)
                writing = [self.submit(prompts.of(long, 9)) for _ in range(2)]
                while self._inbox or self.scheduler.waiting or self._reads:
                    self.step()
                self.generate([prompts.of(long, other=True)])
                for handle in writing:
                    handle.result()
                self.flush()
            self._counts.clear()
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self.scheduler.preempted = self.scheduler.tree.evicted = 0

    @property
    def _reads(self) -> bool:
        """Whether a prompt is being read."""
        return any(not job.writing for job in self.scheduler.running)

    def start(self) -> None:
        """Takes steps in a thread of the engine's own from now on."""
        with self._news:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._serve, name="retrv-engine")
                self._thread.daemon = True
                self._thread.start()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`retrv_engine.base.Engine.load_weights`."""
        with self._turn:
            try:
                self.runner.load_weights(weights)
            except ValueError:  # nothing has changed
                raise
            except BaseException:
                self._drop_cache()
                raise
            self._drop_cache()

    def flush(self) -> None:
        """See :meth:`retrv_engine.base.Engine.flush`."""
        with self._turn:
            tree = self.scheduler.tree
            self.scheduler.pool.give(tree.evict(tree.evictable))

    def stats(self) -> Stats:
        """See :class:`retrv_engine.base.Stats`."""
        with self._turn:
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
            )

    def check(self) -> None:
        """Raises AssertionError unless all invariants of pages and tree hold."""
        with self._turn:
            self.scheduler.check()

    def close(self) -> None:
        """See :meth:`retrv_engine.base.Engine.close`."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._turn:
            jobs = [*self.scheduler.running, *self.scheduler.waiting, *self._inbox]
            for job in jobs:
                job.handle.cancel()
            self._collect()
            self.runner.reset()

    # A step.

    @torch.inference_mode()
    def step(self) -> bool:
        """Takes a step; False if there was nothing to do."""
        with self._turn:
            self._collect()
            began = time.perf_counter()
            extends = self.scheduler.schedule()
            self._reject()
            if not extends:
                return bool(self.scheduler.waiting)
            ran = time.perf_counter()
            self._seconds["schedule"] += ran - began
            phases = [_phase(extend) for extend in extends]
            try:
                picks = self.runner.run(extends)
                sampled = time.perf_counter()
                self._seconds["run"] += sampled - ran
                asking = self._take(extends, picks)
                spliced = time.perf_counter()
                self._seconds["sample"] += spliced - sampled
                self._splice(asking)
                now = time.perf_counter()
                self._seconds["inspect"] += now - spliced
                self._count(extends, phases, now - began, now)
            except Exception as error:
                self._fail_all(error)
        self._notify()
        return True

    def _collect(self) -> None:
        """Takes new requests in, and those out that were cancelled or are late."""
        while self._inbox:
            self.scheduler.waiting.append(self._inbox.popleft())
        now = time.perf_counter()
        for job in [*self.scheduler.running, *self.scheduler.waiting]:
            if job.handle.future.cancelled():
                self.scheduler.remove(job)
                self._counts["cancelled"] += 1
            elif job.deadline is not None and now > job.deadline:
                self.scheduler.remove(job)
                seconds = job.deadline - job.submitted
                self._end(job, DeadlineExceeded(f"not done in {seconds:.3g} s"))

    def _take(self, extends: Sequence[Extend], picks: Sequence[Sequence[Picked]]) -> list[Job]:
        """Lets every sequence go on; those that want to inspect are returned."""
        asking = []
        for (job, _, stop), taken in zip(extends, picks, strict=True):
            job.picks += taken
            job.cached = stop
            if not job.writing:
                self.scheduler.store(job)
            if job.left:
                continue
            job.writing = True
            try:
                self._advance(job)
            except Exception as error:  # its own fault: others go on
                self._drop(job, error)
                continue
            if job.generation.inspecting is not None:
                asking.append(job)
        return asking

    def _advance(self, job: Job) -> None:
        """Lets a sequence take its token, and hands on what it has written."""
        job.generation.advance(job.picks)
        job.picks.clear()
        job.context.extend(job.generation.take_pending())
        job.handle.add(job.generation.tokens[job.reported :])
        job.reported = len(job.generation.tokens)

    def _splice(self, asking: Sequence[Job]) -> None:
        """Gives sequences the candidates that they asked for: each is loaded once for all."""
        wanted = [job.generation.inspecting for job in asking]
        pieces = load_distinct([one for one in wanted if one is not None])
        self._counts["inspections"] += len(asking)
        self._counts["loaded"] += len(pieces)
        for job, one in zip(asking, wanted, strict=True):
            found = pieces[one]  # type: ignore[index]
            try:
                if isinstance(found, Exception):
                    raise found
                self.runner.check(found)
                job.generation.splice(found)
                job.context.extend(job.generation.take_pending())
            except Exception as error:
                self._drop(job, error)

    def _drop(self, job: Job, error: Exception) -> None:
        """Ends a running job that has failed."""
        self.scheduler.remove(job)
        self._end(job, error)

    def _count(
        self, extends: Sequence[Extend], phases: Sequence[str], seconds: float, now: float
    ) -> None:
        """Keeps the books of a step, and hands out what is done."""
        self._counts["steps"] += 1
        for (job, first, stop), phase in zip(extends, phases, strict=True):
            self._counts["computed_rows"] += stop - first
            job.computed += stop - first
            if not job.timings:
                job.timings["queue"] = max(0.0, now - seconds - job.submitted)
            job.timings[phase] = job.timings.get(phase, 0.0) + seconds
            if job.generation.done and job in self.scheduler.running:
                self.scheduler.remove(job)
                self._end(job, None)

    def _end(self, job: Job, error: Exception | None) -> None:
        """Tells a job's handle how it ended."""
        self._counts["failed" if error else "finished"] += 1
        self._counts["cached_rows"] += job.found
        self._counts["written_tokens"] += len(job.generation.tokens)
        result: Any = None if error else job.generation.output()
        if isinstance(result, Output):
            timings = dict(job.timings)
            result = replace(
                result, cached_rows=job.found, computed_rows=job.computed, timings=timings
            )
        try:
            if error:
                job.handle.future.set_exception(error)
            else:
                job.handle.future.set_result(result)
        except InvalidStateError:  # cancelled this moment
            logger.debug("request %d was cancelled when it was done", job.number)

    def _reject(self) -> None:
        for job, error in self.scheduler.rejected:
            self._end(job, error)
        self.scheduler.rejected.clear()

    def _fail_all(self, error: Exception) -> None:
        """After an error of the model: nobody knows what is in the pages."""
        for job in list(self.scheduler.running):
            self.scheduler.remove(job, keep=False)
            self._end(job, error)
        self._drop_cache()
        self.runner.reset()

    def _drop_cache(self) -> None:
        for job in list(self.scheduler.running):
            self.scheduler.preempt(job, keep=False)
        self.scheduler.pool.give(self.scheduler.tree.flush())

    # Who takes the steps.

    def _submit(self, generation: Any, priority: int, deadline: float | None) -> Handle:
        handle = self._handle(self.start)
        now = time.perf_counter()
        late = None if deadline is None else now + deadline
        job = Job(generation, handle, next(self._numbers), now, priority, late)
        job.context.extend(generation.take_pending())
        self.scheduler.check_size(job)
        with self._news:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.append(job)
            self._news.notify_all()
        return handle

    def _serve(self) -> None:
        """The engine's own thread."""
        while not self._closed:
            if not self.step():
                with self._news:
                    self._news.wait_for(lambda: self._inbox or self._closed)

    def _drive(self, reached: Callable[[], bool], timeout: float | None) -> bool:
        """Waits as the base class does, and takes the steps if no other thread takes them."""
        end = math.inf if timeout is None else time.perf_counter() + timeout
        while self._thread is None and not reached() and time.perf_counter() < end:
            if self._turn.acquire(blocking=False):
                try:
                    self.step()
                finally:
                    self._turn.release()
            else:
                with self._news:
                    self._news.wait(0.05)  # whoever takes the steps may have stopped
        left = None if timeout is None else max(0.0, end - time.perf_counter())
        return super()._drive(reached, left)


def _phase(extend: Extend) -> str:
    """What a job does with its rows; more than </think> and <answer> are an inspection's."""
    if not extend.job.writing:
        return "prefill"
    return "inspection" if extend.stop - extend.first > 2 else "decode"
