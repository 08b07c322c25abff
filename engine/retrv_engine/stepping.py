"""Who takes the steps of an engine: a thread of its own, or a thread that waits for a result."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable

from retrv_engine.base import Engine, Handle
from retrv_engine.job import Job, Work
from retrv_engine.scheduler import Scheduler

logger = logging.getLogger(__name__)


class SteppingEngine(Engine):
    """Base class of an engine that computes in steps, one thread at a time.

    A subclass holds ``_turn`` while it changes anything, and accepts the jobs in ``_inbox`` when it
    takes a step.

    Attributes:
        scheduler: plans the steps; the subclass makes it.
    """

    scheduler: Scheduler

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count()
        self._inbox: deque[Job] = deque()
        self._turn = threading.RLock()  # held while a step is taken
        self._thread: threading.Thread | None = None
        self._closed = False

    @abstractmethod
    def step(self) -> bool:
        """Takes one step; False if there was nothing to do."""

    @abstractmethod
    def _give_up(self, error: Exception) -> None:
        """Ends all jobs after an error of the engine itself, and makes it usable again."""

    @property
    def alive(self) -> bool:
        """See :attr:`retrv_engine.base.Engine.alive`."""
        return not self._closed

    def start(self) -> None:
        """Starts a thread that takes the steps from now on."""
        with self._news:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._serve, name="retrv-engine")
                self._thread.daemon = True
                self._thread.start()

    def _stop(self) -> None:
        """Accepts no more jobs, and ends the thread."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _submit(self, work: Work, priority: int = 0, deadline: float | None = None) -> Handle:
        handle = self._handle(self.start)
        now = time.perf_counter()
        late = None if deadline is None else now + deadline
        job = Job(work, handle, next(self._numbers), now, priority, late)
        self.scheduler.check_size(job)
        self._post(job)
        return handle

    @property
    def _jobs(self) -> list[Job]:
        return [*self.scheduler.running, *self.scheduler.waiting, *self._inbox]

    def _post(self, job: Job) -> None:
        with self._news:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._inbox.append(job)
            self._news.notify_all()

    def _serve(self) -> None:
        """Takes steps until the engine is closed: the body of its thread."""
        while not self._closed:
            try:
                busy = self.step()
            except Exception as error:  # else all would wait for a thread that has ended
                self._mend(error)
                continue
            if not busy:
                with self._news:
                    self._news.wait_for(lambda: self._inbox or self._closed)

    def _mend(self, error: Exception) -> None:
        """Goes on after an error of the engine itself; closes the engine if that fails as well."""
        jobs = self._jobs
        try:
            self._give_up(error)
        except Exception:
            logger.exception("the engine cannot be mended and is closed")
            with self._news:
                self._closed = True  # none comes after those that are told now
            for job in [*jobs, *self._jobs]:
                job.handle.finish(error)

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
                    self._news.wait(0.05)  # bounded: the thread that takes the steps may stop
        left = None if timeout is None else max(0.0, end - time.perf_counter())
        return super()._drive(reached, left)
