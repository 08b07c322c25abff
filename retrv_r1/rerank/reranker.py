"""Reranker, the public entry: items in, a ranking with its reasoning out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, Self, get_args

import torch
from torch import Tensor

from retrv_engine import EngineConfig, Sampling, SGLangConfig, Stats
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.model.checkpoint import load_checkpoint, resolve
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import MAX_TEXT_TOKENS, RetrvR1Processor
from retrv_r1.rerank.engines import make_engine
from retrv_r1.rerank.feature_encoder import FeatureEncoder, FeatureStats
from retrv_r1.rerank.options import (
    RankOptions,
    check_settings,
    default_sampling,
    list_of_requests,
)
from retrv_r1.rerank.requests import ItemFeatures, RequestBuilder
from retrv_r1.rerank.results import results_of
from retrv_r1.rerank.windows import CandidateList, WindowResult
from retrv_r1.types import (
    EarlierWindows,
    EngineName,
    ItemLike,
    Mode,
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
        if earlier_windows not in get_args(EarlierWindows):
            raise ValueError(f"earlier_windows must be 'fast' or 'same', got {earlier_windows!r}")
        self.model, self.processor, self.name, self.window = model.eval(), processor, name, window
        self.earlier_windows = earlier_windows
        directory = None if cache is None else Path(cache)
        self.encoder = FeatureEncoder(model, processor, directory=directory)
        self.builder = RequestBuilder(model, processor, self.encoder)
        self._closed = False
        self._weights = threading.RLock()  # held while weights are read outside the engine
        self.engine = make_engine(
            engine, model, processor.tokens, config, batch_size=batch_size, checkpoint=checkpoint
        )

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
        mode: Mode = "reason",
        instruction: str | None = None,
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
        votes: int = 1,
    ) -> RankedResults:
        """Ranks ``candidates`` for ``query``, best first.

        Args:
            top_k: number of candidates to return; all when None.
            mode: ``"reason"`` thinks and inspects candidates, ``"fast"`` answers at once.
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
        mode: Mode = "reason",
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
        votes: int = 1,
    ) -> list[RankedResults]:
        """Ranks several requests; lists that fit one window run in the engine together.

        Arguments and errors are those of :meth:`rank`; ``top_k`` applies to each result.
        """
        if self._closed:
            raise RetrvError("the reranker is closed: make a new one")
        requests = list_of_requests(requests)
        if sampling is None:
            sampling = default_sampling(votes, self.model.config.max_inspections)
        options = RankOptions(mode, reading, sampling, votes, top_k)
        earlier = RankOptions("fast", reading)
        if self.earlier_windows == "same":
            earlier = replace(options, top_k=None)
        lists = [self._encode(request, reading) for request in requests]
        while sliding := [one for one in lists if one.sliding]:
            results = self._rank_windows(sliding, earlier)
            for one, result in zip(sliding, results, strict=True):
                one.slide(result.order)
        last = iter(self._rank_windows([one for one in lists if one.candidates], options))
        about = self.name, self.model, self.processor
        return [
            results_of(one, next(last) if one.candidates else None, options, *about)
            for one in lists
        ]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces parameters of the model by name, and forgets all that the old ones made.

        Raises:
            ValueError: the model has no parameter of that name or shape; nothing is changed then.
            EngineDied: a server did not take them; it gets them before the next request.
        """
        with self._weights:
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

    def _encode(self, request: RankRequest, reading: Reading) -> CandidateList:
        """Encodes a request's items; pointwise prompts need no window."""
        started = time.perf_counter()
        items = request.items()
        with self._weights:
            features = self.encoder.encode(items)
        encoded = [ItemFeatures(*pair) for pair in zip(items, features, strict=True)]
        window = None if reading == "pointwise" else self.window
        candidates = CandidateList(encoded, window, request.instruction, request.tie_seed)
        candidates.timings["features"] = time.perf_counter() - started
        candidates.timings["compression"] = 0.0
        return candidates

    def _rank_windows(
        self, lists: Sequence[CandidateList], options: RankOptions
    ) -> list[WindowResult]:
        """Ranks the current window of every list."""
        prepared = []
        for one in lists:
            started = time.perf_counter()
            with self._weights:
                prepared.append(one.prepare(self.builder, options))
            one.timings["compression"] += time.perf_counter() - started
        outputs = iter(self.engine.generate([p.request for window in prepared for p in window]))
        temperature = self.model.config.temperature_of(options.mode)
        return [
            one.result(window, [next(outputs) for _ in window], options, temperature)
            for one, window in zip(lists, prepared, strict=True)
        ]
