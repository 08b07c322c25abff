"""Reranker: the public entry. Items in, a ranking with its reasoning out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from PIL import Image
from torch import Tensor

from retrv_engine import (
    EngineConfig,
    LocalEngine,
    Output,
    PlainEngine,
    Sampling,
    SGLangConfig,
    SGLangEngine,
    Stats,
)
from retrv_engine.sampler import COLDEST
from retrv_r1.devices import check_weights, device_of, dtype_of
from retrv_r1.model.checkpoint import load_checkpoint, resolve
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.rerank.feature_encoder import FeatureEncoder, FeatureStats
from retrv_r1.rerank.ordering import merge_windows, rank_labels, rank_verdicts, vote
from retrv_r1.rerank.reasoning import reasoning_text
from retrv_r1.rerank.requests import ItemFeatures, Prepared, RequestBuilder
from retrv_r1.rerank.windows import Windows
from retrv_r1.types import (
    Item,
    ItemError,
    ItemLike,
    Mode,
    RankedItem,
    RankedResults,
    RankRequest,
    Reading,
    TokenCounts,
)

EngineName = Literal["local", "plain", "sglang"]
VOTING_TEMPERATURE = 0.7


@dataclass(frozen=True)
class _Plan:
    """How a window is ranked."""

    mode: Mode
    reading: Reading
    sampling: Sampling
    votes: int = 1


@dataclass(frozen=True)
class _Ranked:
    """A window's outcome: candidate numbers with scores, the output that won, and what all took."""

    order: list[tuple[int, float]]
    output: Output
    tokens: TokenCounts


class _Job:
    """A query on its way: its items, the windows of its list, and what it took so far."""

    def __init__(self, request: RankRequest, encoded: list[ItemFeatures], window: int) -> None:
        self.instruction = request.instruction
        self.query, self.candidates = encoded[0], encoded[1:]
        self.windows = Windows(len(self.candidates), window)
        self.timings: dict[str, float] = {}


class Reranker:
    """Ranks candidates for a query with a Retrv-R1 checkpoint.

    A context manager: leaving it closes the engine.

    Args:
        window: candidates in one prompt, 128 at most. Longer lists are ranked by a window that
            slides from the end of the list to its start by half its size, in fast mode, so that
            the best reach the last window, which is ranked in the mode asked for.
        batch_size: requests that the engine runs together.
        engine: ``"local"``, with a radix-cached continuous batch, ``"plain"``, straight through
            transformers, or ``"sglang"``, which has a SGLang server generate.
        config: an ``EngineConfig`` of the local engine, a ``SGLangConfig`` of the other;
            ``batch_size`` has no say then.
        checkpoint: what a SGLang server is started on: the weights of ``model``.
        cache: a directory that keeps features of items from one run to the next.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        *,
        name: str = "",
        window: int = 50,
        batch_size: int = 16,
        engine: EngineName = "local",
        config: EngineConfig | SGLangConfig | None = None,
        checkpoint: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if not 2 <= window <= MAX_CANDIDATES:
            raise ValueError(f"window must be between 2 and {MAX_CANDIDATES}, got {window}")
        if engine not in get_args(EngineName):
            known = ", ".join(map(repr, get_args(EngineName)))
            raise ValueError(f"engine must be one of {known}, got {engine!r}")
        self.model, self.processor, self.name, self.window = model.eval(), processor, name, window
        directory = None if cache is None else Path(cache)
        self.encoder = FeatureEncoder(model, processor, directory=directory)
        self.builder = RequestBuilder(model, processor, self.encoder)
        vocabulary = processor.tokens
        self._weights = threading.RLock()  # held while they are read outside of the engine
        self.engine: LocalEngine | PlainEngine | SGLangEngine
        if engine == "sglang":
            if isinstance(config, EngineConfig):
                raise ValueError("the sglang engine takes a SGLangConfig")
            self.engine = SGLangEngine(model, vocabulary, config, checkpoint=checkpoint)
        elif isinstance(config, SGLangConfig):
            raise ValueError(f'a SGLangConfig is for engine="sglang", not {engine!r}')
        elif engine == "plain":
            if config is not None and config.weights != "model":
                raise ValueError("the plain engine rounds no weights: take the local one")
            self.engine = PlainEngine(model, vocabulary, batch_size)
        else:
            config = config or EngineConfig(max_sequences=batch_size)
            self.engine = LocalEngine(model, vocabulary, config)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Reranker:
        """Loads ``"tiny"`` (shipped), a directory, or a hub id.

        Args:
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; the first GPU if there is one when None.
            dtype: of the weights. When None, float32 on a CPU, and on a GPU what the checkpoint's
                config names: float32 for ``"tiny"``, bfloat16 for what was made of Qwen2.5-VL.
            options: ``window``, ``batch_size``, ``engine``, ``config`` and ``cache``, as above.
        Raises:
            CheckpointError: nothing usable is there; the message says what to do.
            DeviceError: there is no such device, or it cannot do what ``config`` asks for.
        """
        place = device_of(device)
        config = options.get("config")
        if isinstance(config, EngineConfig):
            check_weights(config.weights, place)
        model, processor = load_checkpoint(name, dtype_of(dtype, place))
        options = {"name": str(name), "checkpoint": resolve(name)} | options
        return cls(model.to(place), processor, **options)

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
            top_k: how many to return; all when None.
            mode: ``"reason"`` thinks and inspects, ``"fast"`` reads the answer off the prompt.
            instruction: how the task is put; the checkpoint's own wording when None.
            reading: ``"full"`` reads every candidate at full length (the baseline without
                compression), ``"pointwise"`` so and each in a prompt of its own (fast mode only;
                a checkpoint must have been trained for the question).
            sampling: by default greedy, with as many inspections as the checkpoint's config says.
            votes: chains of thought that are sampled; the answer is what most of them say, scores
                are means over them. They need a temperature, 0.7 by default.
        Raises:
            ItemError: an item that cannot be used; the message names it.
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
        """Ranks several queries; those with lists of one window run in the engine together.

        Arguments and errors are those of :meth:`rank`; ``top_k`` holds for each result.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        plan = self._plan(mode, reading, sampling, votes)
        window = MAX_CANDIDATES**2 if reading == "pointwise" else self.window
        jobs = [self._encode(request, window) for request in requests]
        while waiting := [job for job in jobs if job.windows.sliding]:
            ranked = self._run(waiting, _Plan("fast", reading, Sampling()))
            for job, one in zip(waiting, ranked, strict=True):
                job.windows.slide(one.order)
        jobs_with_items = [job for job in jobs if job.candidates]
        last = self._run(jobs_with_items, plan)
        outcome = dict(zip(map(id, jobs_with_items), last, strict=True))
        results = [self._result(job, outcome.get(id(job)), mode) for job in jobs]
        return [replace(result, ranking=result.ranking[:top_k]) for result in results]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts new values into the model's parameters, and forgets what the old ones made.

        Raises:
            ValueError: a name or a shape that the model has not; nothing is changed then.
        """
        with self._weights:
            self.engine.load_weights(weights)
            self.encoder.clear()

    def warm(self, sampling: Sampling | None = None) -> None:
        """Has the embedded engine compile and capture what queries launch on a GPU.

        For servers, before the first query; on a CPU there is nothing to do. See
        :meth:`retrv_engine.local.LocalEngine.warm`.
        """
        if isinstance(self.engine, LocalEngine):
            self.engine.warm([Sampling() if sampling is None else sampling])

    def stats(self) -> tuple[Stats | None, FeatureStats]:
        """What the engine has done, None for the plain one, and what the feature cache has."""
        engine = None if isinstance(self.engine, PlainEngine) else self.engine.stats()
        return engine, self.encoder.stats()

    def close(self) -> None:
        """Ends what the engine has started: its thread, its server."""
        if not isinstance(self.engine, PlainEngine):
            self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _plan(self, mode: Mode, reading: Reading, sampling: Sampling | None, votes: int) -> _Plan:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be 'reason' or 'fast', got {mode!r}")
        if reading not in get_args(Reading):
            options = ", ".join(map(repr, get_args(Reading)))
            raise ValueError(f"reading must be one of {options}, got {reading!r}")
        if reading == "pointwise" and mode != "fast":
            raise ValueError('pointwise reading has no reasoning: say mode="fast"')
        if votes < 1:
            raise ValueError(f"votes must be at least 1, got {votes}")
        if votes > 1 and mode == "fast":
            raise ValueError('fast mode has nothing to vote on: say mode="reason"')
        if sampling is None:
            temperature = VOTING_TEMPERATURE if votes > 1 else 0.0
            limit = self.model.config.max_inspections
            sampling = Sampling(temperature=temperature, max_inspections=limit)
        elif votes > 1 and sampling.temperature < COLDEST:
            raise ValueError("votes of greedy sampling are all the same: give a temperature")
        return _Plan(mode, reading, sampling, votes)

    def _encode(self, request: RankRequest, window: int) -> _Job:
        started = time.perf_counter()
        items = _items(request)
        with self._weights:
            features = self.encoder.encode(items)
        encoded = [ItemFeatures(*pair) for pair in zip(items, features, strict=True)]
        job = _Job(request, encoded, window)
        job.timings["features"] = time.perf_counter() - started
        job.timings["compression"] = 0.0
        return job

    def _run(self, jobs: Sequence[_Job], plan: _Plan) -> list[_Ranked]:
        """Ranks the current window of every job."""
        prepared = []
        for job in jobs:
            started = time.perf_counter()
            with self._weights:
                prepared.append(self._prepare(job, plan))
            job.timings["compression"] += time.perf_counter() - started
        outputs = iter(self.engine.generate([p.request for many in prepared for p in many]))
        combine = self._pointwise if plan.reading == "pointwise" else self._listwise
        ranked = []
        for job, many in zip(jobs, prepared, strict=True):
            one = combine(many, [next(outputs) for _ in many])
            current = job.windows.current
            ranked.append(replace(one, order=[(current[k], score) for k, score in one.order]))
        return ranked

    def _prepare(self, job: _Job, plan: _Plan) -> list[Prepared]:
        """The requests of a job's current window."""
        chosen = [job.candidates[number] for number in job.windows.current]
        if plan.reading == "pointwise":
            return self.builder.pointwise(job.query, chosen, instruction=job.instruction)
        one = self.builder.listwise(
            job.query,
            chosen,
            reason=plan.mode == "reason",
            full_tokens=plan.reading == "full",
            instruction=job.instruction,
            sampling=plan.sampling,
        )
        seeds = range(plan.sampling.seed, plan.sampling.seed + plan.votes)
        samplings = [replace(plan.sampling, seed=seed) for seed in seeds]
        return [replace(one, request=replace(one.request, sampling=own)) for own in samplings]

    def _listwise(self, prepared: Sequence[Prepared], outputs: Sequence[Output]) -> _Ranked:
        """The outcome of one prompt, or of the votes on it."""
        winner, logits = vote(outputs)
        order = rank_labels(logits, winner.answer, self.model.config.score_temperature)
        one = prepared[0]
        return _Ranked(order, winner, _tokens(outputs, one.prompt_rows, one.candidate_rows))

    def _pointwise(self, prepared: Sequence[Prepared], outputs: Sequence[Output]) -> _Ranked:
        """The outcome of a prompt for each candidate."""
        order = rank_verdicts([output.label_logits for output in outputs])
        best = replace(outputs[order[0][0]], answer=order[0][0])
        rows = (sum(one.prompt_rows for one in prepared), sum(o.candidate_rows for o in prepared))
        return _Ranked(order, best, _tokens(outputs, *rows))

    def _result(self, job: _Job, last: _Ranked | None, mode: Mode) -> RankedResults:
        query = job.query.item
        dtype = str(self.model.dtype).removeprefix("torch.")
        nothing = RankedResults(
            query, None, (), mode=mode, model=self.name, device=str(self.model.device), dtype=dtype
        )
        if last is None:
            return nothing
        output, current = last.output, job.windows.current
        inspected = tuple(current[k] for k in output.inspected)
        order = merge_windows(last.order, job.windows.tail)
        return replace(
            nothing,
            answer=current[output.answer],
            ranking=tuple(
                RankedItem(number, score, job.candidates[number].item, number in inspected)
                for number, score in order
            ),
            reasoning=reasoning_text(self.processor, output.tokens, current),
            inspected=inspected,
            well_formed=output.well_formed,
            timings={**job.timings, **output.timings},
            tokens=last.tokens,
        )


def _tokens(outputs: Sequence[Output], prompt: int, candidates: int) -> TokenCounts:
    """What all outputs of a window took."""

    def total(count: Callable[[Output], int]) -> int:
        return sum(map(count, outputs))

    return TokenCounts(
        prompt=prompt,
        candidates=candidates,
        inspected=total(lambda output: output.inspected_rows),
        generated=total(lambda output: len(output.tokens)),
        cached=total(lambda output: output.cached_rows),
    )


def _items(request: RankRequest) -> list[Item]:
    """Query and candidates as items; an unusable one is named in the error."""
    values = request.candidates
    if isinstance(values, str | bytes | Mapping | Item | Image.Image) or not isinstance(
        values, Iterable
    ):
        raise ItemError(
            f"candidates must be a list of items, not {type(values).__name__}; "
            "put a single one into a list"
        )
    items = []
    for number, value in enumerate((request.query, *values), -1):
        try:
            items.append(Item.of(value))
        except ItemError as error:
            name = "the query" if number < 0 else f"candidate {number}"
            raise ItemError(f"{name}: {error}") from error
    return items
