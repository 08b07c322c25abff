"""The scale-out engine: requests are written by a SGLang server, started here or found at a url.

A request is a coroutine that takes turns with the server (:mod:`retrv_engine.sglang.turns`). All of
them run in one event loop, in a thread of the engine's own; batches, the radix cache and GPUs are
SGLang's.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import InvalidStateError
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from retrv_engine.base import DeadlineExceeded, Engine, Handle, Stats
from retrv_engine.config import SGLangConfig
from retrv_engine.generation import Generation
from retrv_engine.request import Output, Piece, Request, Sampling, Vocabulary, check_pieces
from retrv_engine.sglang import turns
from retrv_engine.sglang.link import Link
from retrv_engine.sglang.turns import Part
from retrv_engine.sglang.waiting import Gate, Loader, Readers, Slots
from retrv_engine.sglang.wire import Picture, Prompt
from retrv_engine.weights import load_weights

T = TypeVar("T")
SECONDS_TO_CANCEL = 5.0


class Served(Protocol):
    """What the engine needs of a model that a server has a copy of."""

    def get_input_embeddings(self) -> nn.Module: ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        prompt: all rows so far, as they are sent.
        reported: tokens that were handed on.
        found, computed: rows of the cache, and others.
        read: set when the server has read the prompt; others may wait for it.
    """

    generation: Generation
    prompt: Prompt
    handle: Handle[Output]
    number: int
    priority: int
    submitted: float
    reported: int = 0
    found: int | None = None
    computed: int = 0
    read: asyncio.Event | None = None
    timings: dict[str, float] = field(default_factory=dict)


@contextmanager
def _timed(job: Job, phase: str) -> Iterator[None]:
    """Adds to a phase of a job."""
    began = time.perf_counter()
    yield
    job.timings[phase] = job.timings.get(phase, 0.0) + time.perf_counter() - began


class SGLangEngine(Engine):
    """Serves requests with a SGLang server; see :mod:`retrv_engine.base`.

    It is made when the server answers: where one is started, most of a minute later.

    Args:
        model: what the server has a copy of; new weights are put into both.
        checkpoint: a folder or the id of a hub, for the server that is started.
        generation_type: class of the running requests, as for the local engine.
    Raises:
        EngineDied: the server does not start, or does not answer; the message has its last words.
        EngineMissing: there is no SGLang to start; the message says how to install it.
    """

    def __init__(
        self,
        model: Served,
        vocabulary: Vocabulary,
        config: SGLangConfig | None = None,
        *,
        checkpoint: str | Path | None = None,
        generation_type: type[Generation] = Generation,
    ) -> None:
        super().__init__()
        self.model, self.vocabulary, self.generation_type = model, vocabulary, generation_type
        self.config = config or SGLangConfig()
        self.table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self._link = Link(self.config, checkpoint, model)
        self._slots, self._gate = Slots(self.config.max_requests), Gate()
        self._readers, self._loader = Readers(), Loader()
        self._numbers = itertools.count()
        self._jobs: set[Job] = set()
        self._counts: Counter[str] = Counter()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="retrv-sglang")
        self._thread.daemon = True
        self._thread.start()
        try:
            self._wait_for(self._link.ready())
        except BaseException:
            self.close()
            raise

    # What callers do.

    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """See :meth:`retrv_engine.base.Engine.submit`; a piece may be a ``Picture`` as well."""
        self._check([*request.prompt, *request.labels])
        generation = self.generation_type(request, self.vocabulary)
        prompt = Prompt(generation.take_pending())
        self._link.check_size(len(prompt.ids))
        if self._closed:
            raise RuntimeError("the engine is closed")
        handle: Handle[Output] = self._handle()
        job = Job(generation, prompt, handle, next(self._numbers), priority, time.perf_counter())
        self._jobs.add(job)
        task = asyncio.run_coroutine_threadsafe(self._serve(job, deadline), self._loop)
        handle.future.add_done_callback(lambda future: future.cancelled() and task.cancel())
        return handle

    def score(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> list[float]:
        """See :meth:`retrv_engine.base.Engine.score`."""
        if not prompt or not tokens:
            raise ValueError("scoring needs a prompt and at least one token")
        self._check([*prompt, *tokens])
        sent = Prompt([*prompt, *tokens])
        self._link.check_size(len(sent.ids))
        (part,) = self._wait_for(self._all(turns.ask_scores(sent, len(tokens))))
        self._count(part, 1)
        return list(part.forced)

    def warm(self, samplings: Sequence[Sampling] = (Sampling(),)) -> None:
        """Does nothing: the server compiles and captures when it starts."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`retrv_engine.base.Engine.load_weights`; turns that run are waited for."""
        load_weights(self.model, weights)
        self._wait_for(self._change(self._link.load_weights(weights)))

    def flush(self) -> None:
        """See :meth:`retrv_engine.base.Engine.flush`; turns that run are waited for."""
        self._wait_for(self._change(self._link.flush()))

    def stats(self) -> Stats:
        """See :class:`retrv_engine.base.Stats`; pages are SGLang's, and none are counted here."""
        jobs = list(self._jobs)
        waiting = sum(not job.timings for job in jobs)
        return Stats(
            **self._counts,  # type: ignore[arg-type]
            running=len(jobs) - waiting,
            waiting=waiting,
            loaded=self._loader.loaded,
        )

    def close(self) -> None:
        """See :meth:`retrv_engine.base.Engine.close`; ends the server if it was started here."""
        if self._closed:
            return
        self._closed = True
        for job in list(self._jobs):
            job.handle.cancel()
        self._wait_for(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        """Ends whatever runs in the loop, then the server."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=SECONDS_TO_CANCEL)
        await self._link.close()

    # A request.

    async def _serve(self, job: Job, deadline: float | None) -> None:
        """Brings a request to its end, and tells its handle."""
        error: BaseException | None = None
        limit = asyncio.timeout(deadline)
        try:
            async with (
                limit,
                self._slots.take(job.priority, job.number),
                self._readers.read(job.prompt.keys) as job.read,
            ):
                job.timings["queue"] = time.perf_counter() - job.submitted
                await self._write(job)
        except asyncio.CancelledError:
            self._counts["cancelled"] += 1
            return
        except Exception as found:  # the request's own: others go on
            late = limit.expired() and isinstance(found, TimeoutError)
            error = DeadlineExceeded(f"not done in {deadline:.3g} s") if late else found
        finally:
            self._jobs.discard(job)
        self._end(job, error)

    async def _write(self, job: Job) -> None:
        """Turn after turn, as the sequence wants them."""
        generation, phase = job.generation, "prefill"
        while not generation.done:
            if generation.wanted is not None:
                phase = "inspection"
                with _timed(job, phase):
                    await self._inspect(generation)
            elif generation.choices is not None:
                with _timed(job, phase):
                    asked = turns.ask_label(generation, job.prompt)
                    async with aclosing(self._turn(job, asked)) as parts:
                        async for part in parts:
                            turns.take_label(generation, part, len(self.table))
                phase = "decode"
            else:
                await self._reason(job, phase)
                phase = "decode"
            job.prompt.extend(generation.take_pending())
            self._report(job)

    async def _inspect(self, generation: Generation) -> None:
        """Gives a sequence the candidate that it wants."""
        assert generation.wanted is not None
        self._counts["inspections"] += 1
        pieces = await self._loader.load(generation.wanted)
        self._check(pieces)
        generation.splice(pieces)

    async def _reason(self, job: Job, phase: str) -> None:
        """A chain of thought, up to what somebody else has to write.

        Args:
            phase: in which the first tokens of it are.
        """
        generation, interval = job.generation, self.config.stream_rows
        if generation.room:
            asked = turns.ask_reasoning(generation, job.prompt, interval)
            async with aclosing(self._turn(job, asked)) as parts:
                while True:
                    with _timed(job, phase):
                        part = await anext(parts, None)
                    if part is None:
                        break
                    turns.take_reasoning(generation, part)
                    self._report(job)
                    phase = "decode"
        if generation.choices is None and not generation.room:
            generation.cut()

    async def _turn(self, job: Job, asked: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        """What the server says to one question."""
        self._link.check_size(len(job.prompt.ids))
        part: Part | None = None
        written = 0
        async with aclosing(self._said(asked)) as parts:
            async for part in parts:
                written += len(part.tokens)
                if job.read is not None:
                    job.read.set()
                yield part
        assert part is not None
        if job.found is None:
            job.found = part.cached
            self._counts["cached_rows"] += part.cached
        job.computed += self._count(part, written)

    async def _said(self, asked: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        """Parts of an answer; given up at the server where nobody wants them any more."""
        asked = {**asked, "rid": uuid.uuid4().hex}
        async with self._gate.together(), aclosing(self._link.generate(asked)) as parts:
            async for part in parts:
                yield part

    async def _all(self, asked: Mapping[str, Any]) -> list[Part]:
        return [part async for part in self._said(asked)]

    async def _change(self, what: Coroutine[Any, Any, None]) -> None:
        """Does something that no turn may run beside."""
        async with self._gate.alone():
            await what

    def _count(self, part: Part, written: int) -> int:
        """Rows that the server computed in a turn; a token's own row belongs to the next."""
        rows = part.prompt - part.cached + max(0, written - 1)
        self._counts["steps"] += 1
        self._counts["computed_rows"] += rows
        return rows

    def _report(self, job: Job) -> None:
        """Hands on what was written."""
        tokens = job.generation.tokens
        if news := tokens[job.reported :]:
            job.handle.add(news)
            self._notify()
        job.reported = len(tokens)

    def _end(self, job: Job, error: BaseException | None) -> None:
        """Tells a job's handle how it ended."""
        self._counts["failed" if error else "finished"] += 1
        self._counts["written_tokens"] += len(job.generation.tokens)
        try:
            if error is not None:
                job.handle.future.set_exception(error)
                return
            output = job.generation.output()
            found, timings = job.found or 0, dict(job.timings)
            job.handle.future.set_result(
                replace(output, cached_rows=found, computed_rows=job.computed, timings=timings)
            )
        except InvalidStateError:  # cancelled this moment
            return

    def _check(self, pieces: Sequence[Piece | Picture]) -> None:
        check_pieces([one for one in pieces if not isinstance(one, Picture)], self.table)

    # Threads.

    def _wait_for(self, what: Coroutine[Any, Any, T]) -> T:
        """What comes of a coroutine in the engine's loop."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()
