"""Who computes what in the next step, and in which pages.

Sequences that write go first, with all they have to feed: a token, or the rows of an inspected
candidate. Prompts share what `chunk_rows` allows: the oldest gets at least half of it, the rest
goes to those that need least, so that a short prompt does not wait for a long one to be read.

When pages run out, cached ones that nobody holds are forgotten, least recently used first. Then the
last in rank gives its pages up and waits; what it had computed is cached, so that it may find it
again. The first in rank can therefore always go on, unless it does not fit at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from retrv_engine.base import Handle, RequestTooLarge
from retrv_engine.config import EngineConfig
from retrv_engine.context import Context
from retrv_engine.generation import Generation
from retrv_engine.pages import PagePool, pages_of
from retrv_engine.prefix import shared_prefix_length
from retrv_engine.radix import Match, Node, RadixTree
from retrv_engine.sampler import Choice, Picked
from retrv_engine.work import Scoring


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        number: of arrival.
        cached: rows of the context whose keys and values are in the pages.
        nodes: the tree's nodes of the first pages; the pages behind are the job's alone.
        writing: whether its prompt has been read.
        picks: what was taken from the wanted rows so far.
        found, computed: rows that the cache had, and rows that it had not.
    """

    generation: Generation | Scoring
    handle: Handle
    number: int
    submitted: float
    priority: int = 0
    deadline: float | None = None
    context: Context = field(default_factory=Context)
    pages: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    cached: int = 0
    writing: bool = False
    reported: int = 0
    picks: list[Picked] = field(default_factory=list)
    found: int = 0
    computed: int = 0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is served first."""
        return -self.priority, self.number

    @property
    def left(self) -> int:
        """Rows still to feed."""
        return len(self.context) - self.cached

    @property
    def logits_from(self) -> int:
        """The first row whose logits are needed."""
        return len(self.context) - self.generation.due


class Extend(NamedTuple):
    """Rows ``first`` to ``stop`` of a job's context, to be computed behind those before."""

    job: Job
    first: int
    stop: int

    @property
    def due(self) -> int:
        """From how many of the last rows a token is wanted."""
        return max(0, self.stop - max(self.first, self.job.logits_from))

    def choices(self) -> list[Choice]:
        """How those tokens are taken; asked once, when the rows are computed."""
        first = self.stop - self.due - self.job.logits_from
        return [self.job.generation.choice(first + i) for i in range(self.due)]


class Scheduler:
    """Plans steps. Not safe to call from several threads at once.

    Args:
        copy: copies the first rows of a page to another: source, target, rows.
        single: whether steps in which each sequence feeds one token are replayed, others not:
            ``</think>`` and ``<answer>`` are fed one after the other then.
    """

    def __init__(
        self,
        pool: PagePool,
        config: EngineConfig,
        copy: Callable[[int, int, int], None],
        single: bool = False,
    ) -> None:
        self.pool, self.config, self._copy, self._single = pool, config, copy, single
        self.tree = RadixTree(pool.size)
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.rejected: list[tuple[Job, Exception]] = []
        self.preempted = 0

    def check_size(self, job: Job) -> None:
        """Raises RequestTooLarge for a prompt longer than the cache; any thread may ask."""
        if pages_of(len(job.context), self.pool.size) > self.pool.count:
            raise self._too_large(job)

    def schedule(self) -> list[Extend]:
        """The next step, empty if there is nothing to do."""
        self._admit()
        plan: dict[Job, int] = {}
        for job in sorted(self.running, key=lambda job: job.rank):
            if job.writing and job in self.running:
                rows = 1 if self._single and job.left == 2 else job.left
                self._plan(job, rows, plan)
        for job, rows in self._share_budget([job for job in self.running if not job.writing]):
            if job in self.running:
                self._plan(job, rows, plan)
        return [Extend(job, job.cached, stop) for job, stop in plan.items()]

    def store(self, job: Job) -> None:
        """Makes a job's computed rows known to others."""
        if self.config.radix:
            keys = job.context.keys[: job.cached]
            self.pool.give(self.tree.insert(keys, job.pages, job.nodes))

    def release(self, job: Job, *, keep: bool = True) -> None:
        """Takes a job's pages; its rows stay cached if they are to be kept."""
        if keep:
            self.store(job)
        self.tree.unlock(job.nodes)
        self.pool.give(job.pages[len(job.nodes) :])
        job.pages, job.nodes, job.cached, job.writing = [], [], 0, False
        job.picks.clear()

    def remove(self, job: Job, *, keep: bool = True) -> None:
        """Takes a job out, wherever it is."""
        if job in self.running:
            self.release(job, keep=keep)
            self.running.remove(job)
        else:
            self.waiting.remove(job)

    def preempt(self, job: Job, *, keep: bool = True) -> None:
        """Makes a running job wait again and give its pages up."""
        self.release(job, keep=keep)
        self.running.remove(job)
        self.waiting.append(job)
        self.preempted += 1

    def check(self) -> None:
        """Raises AssertionError unless all invariants hold."""
        self.tree.check()
        own = [page for job in self.running for page in job.pages[len(job.nodes) :]]
        self.pool.check([*own, *(node.page for node in self.tree)])
        assert not any(job.pages or job.nodes or job.cached for job in self.waiting)
        users = {id(node): 0 for node in self.tree}
        for job in self.running:
            assert [node.page for node in job.nodes] == job.pages[: len(job.nodes)]
            assert job.cached <= len(job.pages) * self.pool.size
            for place, node in enumerate(job.nodes):
                start = place * self.pool.size
                assert node.keys == tuple(job.context.keys[start : start + len(node.keys)])
                users[id(node)] += 1
        assert all(users[id(node)] == node.users for node in self.tree)

    def _plan(self, job: Job, rows: int, plan: dict[Job, int]) -> None:
        stop = job.cached + rows
        if rows and self._allocate(job, stop, plan):
            plan[job] = stop

    def _allocate(self, job: Job, rows: int, plan: dict[Job, int]) -> bool:
        """Gets the pages for a job's first ``rows`` rows; False if it has to wait."""
        need = pages_of(rows, self.pool.size) - len(job.pages)
        while not self._make_free(need):
            last = max(self.running, key=lambda job: job.rank)
            if last is job and len(self.running) == 1:
                self.remove(job)
                self.rejected.append((job, self._too_large(job)))
                return False
            self.preempt(last)
            plan.pop(last, None)
            if last is job:
                return False
        job.pages += [self.pool.take() for _ in range(need)]
        return True

    def _make_free(self, pages: int) -> bool:
        """Whether so many pages are free, after forgetting cached ones."""
        if len(self.pool) < pages:
            self.pool.give(self.tree.evict(pages - len(self.pool)))
        return len(self.pool) >= pages

    def _admit(self) -> None:
        """Lets waiting jobs run, as many as there is room for."""
        for job in sorted(self.waiting, key=lambda job: job.rank):
            match = self.tree.match(job.context.keys, job.logits_from)
            if self._being_computed(job, match.rows):
                continue
            self.tree.lock(match.nodes)
            room = self._has_room(job, len(match.nodes))
            while not room and self._preempt_lower(job):
                room = self._has_room(job, len(match.nodes))
            if room:
                self._start(job, match)
                continue
            self.tree.unlock(match.nodes)
            if self.running:
                break  # the next in rank would overtake it for ever
            self.waiting.remove(job)
            self.rejected.append((job, self._too_large(job)))

    def _has_room(self, job: Job, found: int) -> bool:
        """Whether a job with ``found`` pages could be read to the end beside those that run."""
        if len(self.running) >= self.config.max_sequences:
            return False
        size = self.pool.size
        need = pages_of(len(job.context), size) - found
        for other in self.running:  # what it still has to get, and one to go on writing in
            need += pages_of(len(other.context), size) - len(other.pages) + 1
        return need <= len(self.pool) + self.tree.evictable

    def _preempt_lower(self, job: Job) -> bool:
        """Preempts the last in rank if its priority is lower than the job's."""
        last = max(self.running, key=lambda job: job.rank, default=None)
        if last is None or last.priority >= job.priority:
            return False
        self.preempt(last)
        return True

    def _start(self, job: Job, match: Match) -> None:
        """Gives a waiting job the cached rows, whose nodes it holds already, and lets it run."""
        job.nodes, job.cached = list(match.nodes), len(match.nodes) * self.pool.size
        job.pages = [node.page for node in match.nodes]
        if match.partial is not None:
            self.tree.lock([match.partial])  # so that it is not forgotten to make room for its copy
            if self._make_free(1):
                job.pages.append(self.pool.take())
                self._copy(match.partial.page, job.pages[-1], match.rest)
                job.cached = match.rows
            self.tree.unlock([match.partial])
        job.found += job.cached
        self.waiting.remove(job)
        self.running.append(job)

    def _being_computed(self, job: Job, found: int) -> bool:
        """Whether a page or more of what the job needs is being computed for another."""
        return self.config.radix and any(
            min(shared_prefix_length(job.context.keys, other.context.keys), job.logits_from) - found
            >= self.pool.size
            for other in self.running
            if not other.writing
        )

    def _share_budget(self, reading: Sequence[Job]) -> list[tuple[Job, int]]:
        """How many rows of its prompt each job gets to feed, the oldest first."""
        if not reading:
            return []
        oldest, *others = sorted(reading, key=lambda job: job.rank)
        budget = self.config.chunk_rows
        assert budget is not None, "EngineConfig.on has put a number there"
        least = min(oldest.left, -(-budget // 2))
        budget -= least
        rows = {}
        for job in sorted(others, key=lambda job: job.left):
            rows[job] = min(job.left, budget)
            budget -= rows[job]
        return [(oldest, min(oldest.left, least + budget)), *rows.items()]

    def _too_large(self, job: Job) -> RequestTooLarge:
        rows = self.pool.count * self.pool.size
        return RequestTooLarge(
            f"a request of {len(job.context)} rows does not fit a key-value cache of {rows} rows; "
            "raise the engine's cache_bytes, or send fewer or smaller candidates"
        )
