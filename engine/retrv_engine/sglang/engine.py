"""The engine for large machines: an SGLang server, started here or found at a URL, serves requests.

A request is a coroutine that calls the server as often as it needs to
(:mod:`retrv_engine.sglang.calls`). All coroutines run in one event loop, in a thread of the engine.
Batching, the radix cache and GPUs are left to SGLang.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from torch import Tensor

from retrv_engine.base import DeadlineExceeded, Engine, Handle, Stats
from retrv_engine.config import SGLangConfig
from retrv_engine.generation import Generation
from retrv_engine.model import LanguageModel
from retrv_engine.request import Output, Piece, Request, Sampling, Vocabulary, check_pieces
from retrv_engine.sglang import calls
from retrv_engine.sglang.active_request import ActiveRequest
from retrv_engine.sglang.calls import Chunk
from retrv_engine.sglang.concurrency import (
    CandidateLoader,
    LoopThread,
    PrefillQueue,
    PrioritySemaphore,
)
from retrv_engine.sglang.connection import Connection
from retrv_engine.sglang.wire_format import WirePrompt


class SGLangEngine(Engine):
    """Serves requests with an SGLang server; see :mod:`retrv_engine.base`.

    The constructor returns once the server answers. Starting one takes most of a minute.

    Args:
        model: model of which the server runs a copy; ``load_weights`` changes both.
        checkpoint: folder of a checkpoint or its id on a hub, to start a server on.
        generation_type: class of the running requests, as for the local engine.
    Raises:
        EngineDied: the server does not start, does not answer, is no SGLang server or has other
            weights than the model. If it was started here the message ends with its log.
        EngineMissing: SGLang is not installed; the message says how to install it.
    """

    def __init__(
        self,
        model: LanguageModel,
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
        self._connection = Connection(self.config, checkpoint, model)
        self._semaphore = PrioritySemaphore(self.config.max_requests)
        self._prefills, self._loader = PrefillQueue(), CandidateLoader()
        self._active: set[ActiveRequest] = set()
        self._counts: Counter[str] = Counter()
        self._loop = LoopThread("retrv-sglang")
        try:
            self._loop.run(self._connection.connect())
        except BaseException:
            self.close()
            raise

    # The contract; callers are in any thread.

    @property
    def alive(self) -> bool:
        """See :attr:`retrv_engine.base.Engine.alive`; a server that died is started again."""
        return not self._loop.refuses

    def submit(
        self, request: Request, *, priority: int = 0, deadline: float | None = None
    ) -> Handle[Output]:
        """See :meth:`retrv_engine.base.Engine.submit`."""
        check_pieces([*request.prompt, *request.scored], self.table)
        generation = self.generation_type(request, self.vocabulary)
        prompt = WirePrompt(generation.take_pending())
        self._connection.check_size(len(prompt.ids))
        handle: Handle[Output] = self._handle()
        submitted = time.perf_counter()
        active = ActiveRequest(generation, prompt, handle, priority, submitted)
        self._active.add(active)  # before it is accepted: ``close`` cancels all that were
        try:
            task = self._loop.submit(self._serve(active, deadline))
        except RuntimeError:
            self._active.discard(active)
            raise
        handle.future.add_done_callback(lambda future: future.cancelled() and task.cancel())
        return handle

    def score(self, prompt: Sequence[Piece], tokens: Sequence[int]) -> list[float]:
        """See :meth:`retrv_engine.base.Engine.score`."""
        if not prompt or not tokens:
            raise ValueError("scoring needs a prompt and at least one token")
        pieces = [*prompt, *tokens]
        check_pieces(pieces, self.table)
        sent = WirePrompt(pieces)
        self._connection.check_size(len(sent.ids))
        return self._loop.run(self._score(sent, len(tokens)))

    def warm(self, samplings: Sequence[Sampling] = (Sampling(),)) -> None:
        """Does nothing: the server compiles and captures when it starts."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`retrv_engine.base.Engine.load_weights`; waits for running calls to end."""
        self._loop.run(self._connection.load_weights(weights))

    def flush(self) -> None:
        """See :meth:`retrv_engine.base.Engine.flush`; waits for running calls to end."""
        self._loop.run(self._connection.flush())

    def stats(self) -> Stats:
        """See :class:`retrv_engine.base.Stats`; the server's pages are not counted."""
        active = list(self._active)
        waiting = sum(not one.timings for one in active)
        return Stats(
            **self._counts,  # type: ignore[arg-type]
            running=len(active) - waiting,
            waiting=waiting,
            loaded=self._loader.loaded,
            restarts=max(0, self._connection.starts - 1),
        )

    def close(self) -> None:
        """See :meth:`retrv_engine.base.Engine.close`; ends the server if it was started here."""
        if not self._loop.refuse():
            return
        for active in list(self._active):
            active.handle.cancel()
        self._loop.close(self._connection.close())

    # The rest runs in the event loop.

    async def _score(self, prompt: WirePrompt, tokens: int) -> list[float]:
        call = calls.score_call(prompt, tokens)
        (chunk,) = [chunk async for chunk in self._connection.generate(call)]
        self._count(chunk, 1)
        return list(chunk.prompt_logprobs)

    async def _serve(self, active: ActiveRequest, deadline: float | None) -> None:
        """Runs a request to its end, and gives the result to its handle."""
        error: Exception | None = None
        limit = asyncio.timeout(deadline)
        try:
            async with (
                limit,
                self._semaphore.hold(active.priority),
                self._prefills.wait(active.prompt.keys) as active.prefilled,
            ):
                active.timings["queue"] = time.perf_counter() - active.submitted
                await self._generate(active)
        except asyncio.CancelledError:
            self._counts["cancelled"] += 1
            return
        except Exception as raised:  # of this request alone: others go on
            late = limit.expired() and isinstance(raised, TimeoutError)
            error = (
                DeadlineExceeded(
                    f"not done in {deadline:.3g} s: give it a longer deadline", active.spent()
                )
                if late
                else raised
            )
        finally:
            self._active.discard(active)
        self._counts["failed" if error else "finished"] += 1
        self._counts["written_tokens"] += len(active.generation.tokens)
        active.handle.finish(error or active.output())

    async def _generate(self, active: ActiveRequest) -> None:
        """Writes tokens, call by call, until the generation is done."""
        generation, phase = active.generation, "prefill"
        while not generation.done:
            if generation.inspecting is not None:
                phase = "inspection"
                with active.timed(phase):
                    await self._inspect(generation)
            elif generation.choices is not None:
                call = calls.label_call(generation, active.prompt)
                await self._call(active, call, calls.take_label, phase, phase)
                phase = "decode"
            else:
                if generation.room:
                    call = calls.reasoning_call(
                        generation,
                        active.prompt,
                        self.config.stream_rows,
                        self._connection.max_rows,
                    )
                    await self._call(active, call, calls.take_reasoning, phase, "decode")
                if generation.choices is None and not generation.room:
                    generation.cut()
                phase = "decode"
            active.prompt.extend(generation.take_pending())
            self._report(active)

    async def _inspect(self, generation: Generation) -> None:
        """Splices in the candidate that a generation wants."""
        assert generation.inspecting is not None
        self._counts["inspections"] += 1
        pieces = await self._loader.load(generation.inspecting)
        check_pieces(pieces, self.table)
        generation.splice(pieces)

    async def _call(
        self,
        active: ActiveRequest,
        call: Mapping[str, Any],
        take: Callable[[Generation, Chunk], None],
        phase: str,
        next_phase: str,
    ) -> None:
        """Calls the server, and has ``take`` append each chunk of the answer.

        Args:
            phase, next_phase: phases that the time of the first chunk and of the rest belong to.
        """
        self._connection.check_size(len(active.prompt.ids))
        last: Chunk | None = None
        written = 0
        async with aclosing(self._connection.generate(call)) as chunks:
            while True:
                with active.timed(phase):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                last, phase = chunk, next_phase
                written += len(chunk.tokens)
                if active.prefilled is not None:
                    active.prefilled.set()
                take(active.generation, chunk)
                self._report(active)
        assert last is not None
        if active.cached_rows is None:
            active.cached_rows = last.cached_rows
            self._counts["cached_rows"] += last.cached_rows
        active.computed_rows += self._count(last, written)

    def _count(self, chunk: Chunk, written: int) -> int:
        """Counts the rows that a call has computed, and returns their number.

        The row of the last of the ``written`` tokens is computed by the next call.
        """
        rows = chunk.prompt_rows - chunk.cached_rows + max(0, written - 1)
        self._counts["steps"] += 1
        self._counts["computed_rows"] += rows
        return rows

    def _report(self, active: ActiveRequest) -> None:
        """Gives new tokens to the handle, and wakes those who wait for them."""
        if tokens := active.generation.tokens[active.reported :]:
            active.reported += len(tokens)
            active.handle.add(tokens)
            self._notify()
