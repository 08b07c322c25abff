"""Reranker, the public entry: items in, a ranking with its reasoning out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Never, NoReturn, Self

import torch
from torch import Tensor

from retrv_engine import EngineConfig, Sampling, SGLangConfig, Stats
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.model.checkpoint import load_checkpoint, resolve
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import MAX_TEXT_TOKENS, RetrvR1Processor
from retrv_r1.rerank.conductor import Conductor
from retrv_r1.rerank.course import CLOSED, Course, time_of
from retrv_r1.rerank.engines import make_engine
from retrv_r1.rerank.feature_encoder import FeatureEncoder, FeatureStats
from retrv_r1.rerank.meter import Meter
from retrv_r1.rerank.options import check_settings, list_of_requests
from retrv_r1.rerank.ranking import Ranking
from retrv_r1.rerank.requests import RequestBuilder
from retrv_r1.rerank.steps import Ranker, RankPlan, Steps, run_together
from retrv_r1.types import (
    EarlierWindows,
    EngineName,
    ItemLike,
    ModeChoice,
    RankedResults,
    RankRequest,
    Reading,
    RetrvError,
)

WINDOW, BATCH_SIZE = 50, 16


class Reranker:
    """Ranks candidates for a query with a Retrv-R1 checkpoint.

    A context manager: leaving it closes the engine.

    Args:
        model: the model; it is put into evaluation mode.
        processor: the processor of the same checkpoint.
        name: name of the model in results.
        window: candidates in one prompt, 128 at most. A longer list is ranked by a window that
            slides from its end to its start by half its size, so that the best candidates reach
            the last window, which is ranked in the mode asked for.
        earlier_windows: mode of the windows before the last: ``"fast"``, or ``"same"`` for the
            mode asked for.
        batch_size: requests that the engine runs together; ``config`` overrides it.
        engine: ``"local"`` (embedded, continuous batches over a radix cache), ``"plain"``
            (transformers alone, a fixed batch) or ``"sglang"`` (an SGLang server).
        config: an ``EngineConfig`` for the local engine, an ``SGLangConfig`` for a server.
        checkpoint: directory that an SGLang server is started on; it holds the weights of
            ``model``.
        cache: directory that keeps features of items for later runs. One that cannot be used costs
            a warning.
    Raises:
        ValueError: arguments out of range, or a config of another engine.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        *,
        name: str = "",
        window: int = WINDOW,
        earlier_windows: EarlierWindows = "fast",
        batch_size: int = BATCH_SIZE,
        engine: EngineName = "local",
        config: EngineConfig | SGLangConfig | None = None,
        checkpoint: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        check_settings(engine, config, window=window, batch_size=batch_size, cache=cache)
        self.model, self.processor, self.name, self.window = model.eval(), processor, name, window
        self.earlier_windows = earlier_windows
        directory = None if cache is None else Path(cache)
        self.encoder = FeatureEncoder(model, processor, directory=directory)
        self.builder = RequestBuilder(model, processor, self.encoder)
        self._closed = False
        # Held while weights are read outside the engine.
        self._encoding, self._compressing = threading.RLock(), threading.RLock()
        self._ranker = Ranker(
            name, self.builder, self._compressing, window=window, earlier_windows=earlier_windows
        )
        self.engine = make_engine(
            engine, model, processor.tokens, config, batch_size=batch_size, checkpoint=checkpoint
        )
        self._conductor = Conductor(self.engine, processor, self.encoder, self._encoding)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        window: int = WINDOW,
        earlier_windows: EarlierWindows = "fast",
        batch_size: int = BATCH_SIZE,
        engine: EngineName = "local",
        config: EngineConfig | SGLangConfig | None = None,
        cache: str | Path | None = None,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> Self:
        """Loads a checkpoint: ``"tiny"`` (shipped), a directory, or a hub id.

        The other arguments are those of the class.

        Args:
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default the first GPU, or the CPU
                where there is none.
            dtype: dtype of the weights. By default float32 on a CPU, and on a GPU the dtype that
                the checkpoint's config names: float32 for ``"tiny"``, bfloat16 for models made from
                Qwen2.5-VL.
            max_text_tokens: tokens of an item's text that are read; results say where more were
                cut off (``truncated``).
        Raises:
            CheckpointError: nothing usable is there; the message says what to do.
            DeviceError: there is no such device, or it cannot do what ``config`` asks for.
            EngineMissing: SGLang is not installed; the message says how to install it.
        """
        check_settings(engine, config, window=window, batch_size=batch_size, cache=cache)
        place = device_of(device)
        if isinstance(config, EngineConfig):
            check_weights(config.weights, place)
        model, processor = load_checkpoint(name, dtype_of(dtype, place), max_text_tokens)
        return cls(
            model.to(place),
            processor,
            name=str(name),
            window=window,
            earlier_windows=earlier_windows,
            batch_size=batch_size,
            engine=engine,
            config=config,
            checkpoint=resolve(name),
            cache=cache,
        )

    def rank(
        self,
        query: ItemLike,
        candidates: Iterable[ItemLike],
        *,
        top_k: int | None = None,
        mode: ModeChoice = "reason",
        instruction: str | None = None,
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
        votes: int = 1,
    ) -> RankedResults:
        """Ranks ``candidates`` for ``query``, best first.

        Args:
            top_k: number of candidates to return; all when None.
            mode: ``"reason"`` thinks and inspects candidates, ``"fast"`` answers at once,
                ``"auto"`` reasons only where the fast answer's best score and ``none_of_these`` are
                below the checkpoint's threshold, or 0.9; the results say which it was.
            instruction: wording of the task; the checkpoint's own when None.
            reading: how candidates are read. ``"compressed"``: two tokens each. ``"full"``: all
                their rows (the baseline without compression). ``"pointwise"``: all their rows, each
                candidate in a prompt of its own (fast mode only, and only for checkpoints that were
                trained for that question).
            sampling: sampling of the reasoning; by default greedy, with the number of inspections
                that the checkpoint's config names.
            votes: number of chains of thought to sample. The answer is the one that most of them
                give, scores are means over them. Votes need a temperature, 0.7 by default.
        Raises:
            ItemError: an item cannot be used; the message names it.
            ValueError: options that are unknown or exclude each other.
            RetrvError: the reranker is closed.
            FloatingPointError: the model gives NaN: its numbers overflow, or its weights are
                damaged.
            RequestTooLarge: a prompt that the engine's cache cannot hold.
            EngineDied: the process of an SGLang server has ended; the next request restarts it.
        """
        request = RankRequest(query, candidates, instruction)
        (result,) = self.rank_batch(
            [request], top_k=top_k, mode=mode, reading=reading, sampling=sampling, votes=votes
        )
        return result

    @torch.inference_mode()
    def rank_batch(
        self,
        requests: Iterable[RankRequest],
        *,
        top_k: int | None = None,
        mode: ModeChoice = "reason",
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
        votes: int = 1,
    ) -> list[RankedResults]:
        """Ranks several requests; lists that fit one window run in the engine together.

        Arguments and errors are those of :meth:`rank`; ``top_k`` applies to each result.
        """
        if self._closed:
            raise RetrvError(CLOSED)
        given = list_of_requests(requests)
        plan = self._ranker.plan(mode, reading, sampling, votes, top_k)
        runs = [self._steps(request, plan) for request in given]
        return run_together(runs, self.engine.generate)

    def submit(
        self,
        request: RankRequest,
        *misplaced: Never,
        top_k: int | None = None,
        mode: ModeChoice = "reason",
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
        votes: int = 1,
        budget: float | None = None,
        deadline: float | None = None,
        priority: int = 0,
    ) -> Ranking:
        """Starts a ranking that runs beside others, and can be watched, awaited and cancelled.

        The other arguments and the errors are those of :meth:`rank`; a plain engine takes turns.

        Args:
            budget: seconds from now after which reasoning is cut, at the end of the engine's step,
                and the best answer so far returned, marked ``cut``. The fast answer is computed
                first and in every case, so its time is the least.
            deadline: seconds from now after which it fails with DeadlineExceeded.
            priority: those of higher priority go first.
        Raises:
            TypeError: ``request`` is no RankRequest, or not alone.
        """
        if misplaced or not isinstance(request, RankRequest):
            raise TypeError("submit takes one RankRequest: submit(RankRequest(query, candidates))")
        if self._closed:
            raise RetrvError(CLOSED)
        plan = self._ranker.plan(mode, reading, sampling, votes, top_k, budget is not None)
        meter = Meter(items := request.items())
        begin = partial(self._ranker.steps, request, items, plan=plan, meter=meter)
        ends = time_of("deadline", deadline), time_of("budget", budget)
        course = Course(Ranking(), items, begin, meter, priority, *ends)
        self._conductor.submit(course)
        return course.ranking

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces parameters of the model by name, and forgets all that the old ones made.

        Raises:
            ValueError: the model has no parameter of that name or shape; nothing is changed then.
            EngineDied: a server did not take them; it gets them before the next request.
        """
        with self._encoding, self._compressing:
            try:
                self.engine.load_weights(weights)
            finally:  # the model here may have them although a server did not take them
                self.encoder.clear()

    def warm(self, sampling: Sampling | None = None) -> None:
        """Has the engine compile and capture what queries launch on a GPU.

        For servers, before the first query; on a CPU there is nothing to do. See
        :meth:`retrv_engine.local.LocalEngine.warm`.
        """
        self.engine.warm([Sampling() if sampling is None else sampling])

    def stats(self) -> tuple[Stats, FeatureStats]:
        """Counts of the engine and of the feature cache."""
        return self.engine.stats(), self.encoder.stats()

    def close(self) -> None:
        """Ends the threads and processes that the engine has started; it ranks no more."""
        self._closed = True
        self._conductor.close()
        self.engine.close()

    def __repr__(self) -> str:
        engine = type(self.engine).__name__
        return f"{type(self).__name__}({self.name!r}, device={self.model.device}, engine={engine})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Reranker cannot be pickled or copied: it owns threads and caches; call "
            "Reranker.from_pretrained in each process"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.inference_mode()
    def resemblance(self, request: RankRequest) -> Tensor:
        """What content tokens alone say of a request's candidates, before the model reads them.

        Returns:
            float32 ``[k, 2]`` on the CPU: likeness and recall (:mod:`retrv_r1.model.prior`).
        """
        with self._encoding, self._compressing:
            features = self.encoder.encode(request.items())
            return self.builder.resemblance(features).cpu()

    def _steps(self, request: RankRequest, plan: RankPlan) -> Steps:
        meter = Meter(items := request.items())
        with self._encoding, meter.timed("features"):
            features = self.encoder.encode(items)
        return self._ranker.steps(request, items, features, plan=plan, meter=meter)
