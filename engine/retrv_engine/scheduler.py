"""Decides which rows the next step computes, and in which pages.

Jobs past their prompt go first, with all rows that they have left: a token, or an inspected
candidate. Prompts share a budget of ``chunk_rows``: the first gets at least half of it, and
the rest goes to those that need least, so that a short prompt does not wait for a long one.

When pages run out, unlocked cached pages are evicted, least recently used first. Then the last
running job is preempted; its rows stay cached, so that it may find them again. So the first can
always go on, unless it does not fit at all.

First and last are meant in priority order: higher priorities first, then in order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrv_engine.base import RequestTooLarge
from retrv_engine.config import EngineConfig
from retrv_engine.job import Extend, Job
from retrv_engine.pages import PagePool, pages_of
from retrv_engine.prefix import shared_prefix_length
from retrv_engine.radix import Match, RadixTree
from retrv_engine.sampler import Picked


class Scheduler:
    """Plans steps, and owns the state of all jobs; not thread-safe.

    Args:
        copy: function that copies the first rows of a page to another: source, target, rows.
        fixed: whether decode steps have fixed shapes, one row a job. Then ``</think>`` and
            ``<answer>`` are computed one after the other.
    """

    def __init__(
        self,
        pool: PagePool,
        config: EngineConfig,
        copy: Callable[[int, int, int], None],
        fixed: bool = False,
    ) -> None:
        self.pool, self.config, self._copy, self._fixed = pool, config, copy, fixed
        self.tree = RadixTree(pool.size)
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.rejected: list[tuple[Job, Exception]] = []
        self.preempted = 0

    def check_size(self, job: Job) -> None:
        """Raises RequestTooLarge for a prompt longer than the cache; thread-safe."""
        if pages_of(len(job.context), self.pool.size) > self.pool.count:
            raise self._too_large(job)

    def schedule(self) -> list[Extend]:
        """Plans the next step; empty if there is nothing to do."""
        self._admit()
        plan: dict[Job, int] = {}
        for job in sorted(self.running, key=lambda job: job.order):
            if job.phase != "prefill" and job in self.running:
                rows = 1 if self._fixed and job.left == 2 else job.left
                self._plan(job, rows, plan)
        for job, rows in self._prefill_rows():
            if job in self.running:
                self._plan(job, rows, plan)
        return [Extend(job, job.cached, stop) for job, stop in plan.items()]

    def computed(self, extend: Extend, picks: Sequence[Picked]) -> bool:
        """Moves a job on after a step; True if no rows are left to compute.

        Args:
            picks: tokens taken from those rows.
        """
        job, first, stop = extend
        job.picks += picks
        job.cached = stop
        job.computed += stop - first
        if job.phase == "prefill":
            self._cache_rows(job)
        if job.left:
            return False
        job.phase = "decode"
        return True

    def remove(self, job: Job, *, keep: bool = True) -> None:
        """Removes a job, if it is still there; ``keep`` leaves its rows cached."""
        if job in self.running:
            self._release(job, keep=keep)
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def preempt(self, job: Job, *, keep: bool = True) -> None:
        """Takes a running job's pages and makes it wait; ``keep`` leaves its rows cached."""
        self._release(job, keep=keep)
        self.running.remove(job)
        self.waiting.append(job)
        self.preempted += 1

    def flush(self) -> None:
        """Evicts all cached pages that no job holds."""
        self.pool.give(self.tree.evict(self.tree.evictable))

    def clear(self) -> None:
        """Evicts all pages; running jobs wait and compute their rows again."""
        for job in list(self.running):
            self.preempt(job, keep=False)
        self.pool.give(self.tree.flush())

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

    def _cache_rows(self, job: Job) -> None:
        """Puts a job's computed rows into the tree, where other jobs find them."""
        if self.config.radix:
            keys = job.context.keys[: job.cached]
            self.pool.give(self.tree.insert(keys, job.pages, job.nodes))

    def _release(self, job: Job, *, keep: bool = True) -> None:
        """Takes a job's pages; its rows stay cached if ``keep``."""
        if keep:
            self._cache_rows(job)
        self.tree.unlock(job.nodes)
        self.pool.give(job.pages[len(job.nodes) :])
        job.pages, job.nodes, job.cached, job.phase = [], [], 0, "prefill"
        job.picks.clear()

    def _plan(self, job: Job, rows: int, plan: dict[Job, int]) -> None:
        stop = job.cached + rows
        if rows and self._allocate(job, stop, plan):
            plan[job] = stop

    def _allocate(self, job: Job, rows: int, plan: dict[Job, int]) -> bool:
        """Allocates the pages for a job's first ``rows`` rows; False if the job has to wait."""
        need = pages_of(rows, self.pool.size) - len(job.pages)
        while not self._make_free(need):
            last = max(self.running, key=lambda job: job.order)
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
        """Evicts pages until so many are free; False if there are too few."""
        if len(self.pool) < pages:
            self.pool.give(self.tree.evict(pages - len(self.pool)))
        return len(self.pool) >= pages

    def _admit(self) -> None:
        """Starts waiting jobs, as many as there is room for."""
        for job in sorted(self.waiting, key=lambda job: job.order):
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
                break  # or later jobs could overtake it forever
            self.waiting.remove(job)
            self.rejected.append((job, self._too_large(job)))

    def _has_room(self, job: Job, found: int) -> bool:
        """Whether the prompt of a job with ``found`` pages fits beside the running jobs."""
        if len(self.running) >= self.config.max_sequences:
            return False
        size = self.pool.size
        need = pages_of(len(job.context), size) - found
        for other in self.running:  # the pages it still needs, and one for its next tokens
            need += pages_of(len(other.context), size) - len(other.pages) + 1
        return need <= len(self.pool) + self.tree.evictable

    def _preempt_lower(self, job: Job) -> bool:
        """Preempts the last running job, if its priority is lower than the job's."""
        last = max(self.running, key=lambda job: job.order, default=None)
        if last is None or last.priority >= job.priority:
            return False
        self.preempt(last)
        return True

    def _start(self, job: Job, match: Match) -> None:
        """Runs a waiting job from its cached rows, whose nodes are locked already."""
        job.nodes, job.cached = list(match.nodes), len(match.nodes) * self.pool.size
        job.pages = [node.page for node in match.nodes]
        if match.partial is not None:
            self.tree.lock([match.partial])  # so that its copy does not evict it
            if self._make_free(1):
                job.pages.append(self.pool.take())
                self._copy(match.partial.page, job.pages[-1], match.rest)
                job.cached = match.rows
            self.tree.unlock([match.partial])
        job.found += job.cached
        self.waiting.remove(job)
        self.running.append(job)

    def _being_computed(self, job: Job, found: int) -> bool:
        """Whether a page or more of the rows that a job needs is being computed for another."""
        return self.config.radix and any(
            min(shared_prefix_length(job.context.keys, other.context.keys), job.logits_from) - found
            >= self.pool.size
            for other in self.running
            if other.phase == "prefill"
        )

    def _prefill_rows(self) -> list[tuple[Job, int]]:
        """How many rows of its prompt each job computes in this step; the first comes first."""
        prompts = [job for job in self.running if job.phase == "prefill"]
        if not prompts:
            return []
        oldest, *others = sorted(prompts, key=lambda job: job.order)
        budget = self.config.chunk_rows
        assert budget is not None, "EngineConfig.on sets it"
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
