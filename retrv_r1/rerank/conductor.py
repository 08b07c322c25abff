"""Runs submitted rankings side by side in one engine.

Two threads prepare what the engine's own thread computes. One encodes items of all rankings that
wait, a portion of each in turn, so that a long list does not hold up a short one. The other takes
the steps between the engine's answers.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial

import torch

from retrv_engine import Engine, PlainEngine
from retrv_engine.request import Output
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.course import CLOSED, Course
from retrv_r1.rerank.events import Draft
from retrv_r1.rerank.feature_encoder import FeatureEncoder
from retrv_r1.rerank.narration import Narrator
from retrv_r1.types import RetrvError

PASS, PORTION = 64, 8
"""Items that are encoded before those of other rankings get their turn, and the least of each."""


class Conductor:
    """Takes rankings from any thread, and runs them; its threads start with the first.

    Args:
        engine: engine that answers; a plain one answers a ranking at a time.
        encoding: lock that is held while items are encoded.
    """

    def __init__(
        self,
        engine: Engine | PlainEngine,
        processor: RetrvR1Processor,
        encoder: FeatureEncoder,
        encoding: threading.RLock,
    ) -> None:
        self.engine, self.processor, self.encoder = engine, processor, encoder
        self._encoding = encoding
        self._news = threading.Condition()
        self._courses: set[Course] = set()  # that have not ended
        self._unencoded: list[Course] = []
        self._ready: deque[Course] = deque()  # for their next step
        self._turns = itertools.count()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, course: Course) -> None:
        """Takes a ranking.

        Raises:
            RetrvError: it is closed.
            ValueError: a plain engine cannot keep a budget.
        """
        if isinstance(self.engine, PlainEngine) and math.isfinite(course.budget):
            raise ValueError('the plain engine cannot be cut: use engine="local" with a budget')
        with self._news:
            if self._closed:
                raise RetrvError(CLOSED)
            self._start()
            course.turn = next(self._turns)
            self._courses.add(course)
            self._unencoded.append(course)
            self._news.notify_all()
        course.ranking.future.add_done_callback(lambda _: self._ended(course))

    def close(self) -> None:
        """Ends all rankings with an error, and the threads."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for course in list(self._courses):
            course.ranking.finish(RetrvError(CLOSED))

    def _start(self) -> None:
        if self._threads:
            return
        if isinstance(self.engine, Engine):
            self.engine.start()
        bodies = {"retrv-features": self._encode_all, "retrv-rankings": self._advance_all}
        for name, body in bodies.items():
            self._threads.append(threading.Thread(target=body, name=name, daemon=True))
            self._threads[-1].start()

    def _ended(self, course: Course) -> None:
        """Cleans up after a ranking, however it has ended; in any thread."""
        course.cancel()
        with self._news:
            self._courses.discard(course)
            self._news.notify_all()  # so that it is taken from those that wait

    # The thread that encodes.

    @torch.inference_mode()
    def _encode_all(self) -> None:
        while parts := self._next_pass():
            self._encode(parts)

    def _next_pass(self) -> dict[Course, range]:
        """Rankings with the places of the items that are encoded next; empty at the end."""
        with self._news:
            while not self._closed:
                self._unencoded = [one for one in self._unencoded if not one.ranking.done()]
                if self._unencoded:
                    break
                self._news.wait()
            else:
                return {}
            waiting = sorted(self._unencoded, key=lambda course: course.order)
        chosen: dict[Course, range] = {}
        portion = max(PORTION, PASS // len(waiting))
        for course in waiting:
            if sum(map(len, chosen.values())) >= PASS:
                break
            chosen[course] = range(len(course.features), len(course.items))[:portion]
        return chosen

    def _encode(self, parts: Mapping[Course, range]) -> None:
        """Encodes items of several rankings together; each ranking's alone if that fails."""
        began = time.perf_counter()
        items = [course.items[k] for course, part in parts.items() for k in part]
        try:
            with self._encoding:
                found = iter(self.encoder.encode(items, [k for p in parts.values() for k in p]))
        except Exception as error:
            if len(parts) > 1:
                for one in parts.items():  # so that only the broken one fails
                    self._encode(dict([one]))
            else:
                next(iter(parts)).ranking.finish(error)
            return
        seconds = time.perf_counter() - began
        for course, part in parts.items():
            course.meter.add("queue", began - course.since)
            course.meter.add("features", seconds)
            course.features += [next(found) for _ in part]
            course.since, course.turn = time.perf_counter(), next(self._turns)
            self._encoded(course)

    def _encoded(self, course: Course) -> None:
        """Passes a ranking on if its items are encoded, all with the same weights."""
        if any(one.version != self.encoder.version for one in course.features):
            course.features = []
        if len(course.features) == len(course.items):
            with self._news:
                self._unencoded.remove(course)
            self._post(course)

    # The thread that takes steps.

    def _post(self, course: Course) -> None:
        with self._news:
            self._ready.append(course)
            self._news.notify_all()

    @torch.inference_mode()
    def _advance_all(self) -> None:
        while (course := self._next_ready()) is not None:
            self._advance(course)

    def _next_ready(self) -> Course | None:
        """The next ranking that can take a step; None at the end. Fails those that are late."""
        while True:
            now = time.perf_counter()
            with self._news:
                if self._closed:
                    return None
                late = [course for course in self._courses if course.deadline < now]
                if not late and self._ready:
                    return self._ready.popleft()
                if not late:
                    ends = [course.deadline for course in self._courses]
                    left = min(ends, default=math.inf) - now
                    self._news.wait(min(left, threading.TIMEOUT_MAX))
            for course in late:
                course.ranking.finish(course.lateness())

    def _advance(self, course: Course) -> None:
        """Takes a ranking's steps up to the next that waits for the engine."""
        course.waited()
        try:
            outputs = None if course.round is None else course.outputs()
            while not course.ranking.done():
                course.check()
                if course.steps is None:
                    course.round = course.begin()
                else:
                    assert outputs is not None
                    course.round = course.steps.send(outputs)
                outputs = self._ask(course)
                if outputs is None:
                    return
        except StopIteration as end:
            course.ranking.finish(end.value)
        except Exception as error:
            course.ranking.finish(error)
        course.forget()

    def _ask(self, course: Course) -> list[Output | None] | None:
        """Asks the engine; None if its answers are to come, or else the outputs."""
        assert course.round is not None
        round, limit = course.round, course.limit
        requests = [prepared.request for prepared in round.prepared]
        if round.draft is not None:
            course.ranking.tell(Draft(round.draft))
        if isinstance(self.engine, PlainEngine):
            return [*self.engine.generate(requests)]
        left = limit - time.perf_counter()
        if left <= 0 and limit == course.budget:
            return [None] * len(requests)
        course.handles = []
        deadline = None if math.isinf(limit) else max(0.0, left)
        try:
            for request in requests:
                handle = self.engine.submit(request, priority=course.priority, deadline=deadline)
                course.handles.append(handle)
        except BaseException:
            course.cancel()
            raise
        course.open = len(course.handles)
        for vote, handle in enumerate(course.handles):
            if round.last and requests[vote].reason:
                narrator = Narrator(self.processor, round.numbers, vote)
                handle.listen(partial(self._tell, course, narrator))
        for handle in course.handles:
            handle.future.add_done_callback(partial(self._answered, course))
        if course.ranking.done():  # cancelled while prompts were submitted
            course.cancel()
        return None

    # The engine's thread.

    @staticmethod
    def _tell(course: Course, narrator: Narrator, tokens: Sequence[int]) -> None:
        course.ranking.tell((narrator, tokens))

    def _answered(self, course: Course, future: Future[Output]) -> None:
        """Notes the end of a prompt; the last one calls for the next step."""
        error = None if future.cancelled() else future.exception()
        failed = error is not None and not course.is_cut(error)  # while the round is still there
        with self._news:
            course.open -= 1
            last = course.open == 0
        if last:
            course.since = time.perf_counter()
            self._post(course)
            return
        if failed:
            course.cancel()
