"""The steps of a ranking: which prompts an engine must answer, and what follows from the answers.

A generator, so that the same steps serve callers that wait for whole batches and rankings that run
each on its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, get_args

from retrv_engine import Output, Request, Sampling
from retrv_r1.rerank.feature_encoder import Features
from retrv_r1.rerank.meter import Meter
from retrv_r1.rerank.options import RankOptions, default_sampling
from retrv_r1.rerank.requests import ItemFeatures, Prepared, RequestBuilder
from retrv_r1.rerank.results import results_of
from retrv_r1.rerank.windows import CandidateList, WindowResult
from retrv_r1.types import (
    EarlierWindows,
    Item,
    ModeChoice,
    RankedResults,
    RankRequest,
    Reading,
)

AUTO_THRESHOLD = 0.9
"""Confidence of the fast answer from which ``mode="auto"`` does not reason, for checkpoints without
a threshold of their own."""


@dataclass(frozen=True)
class RankPlan:
    """How a ranking goes.

    Args:
        options: options of the last window.
        earlier: options of the windows before it.
        threshold: confidence of the fast answer from which it is the result; None to reason in
            every case.
        draft: whether the last window is answered fast before it is reasoned about.
    """

    options: RankOptions
    earlier: RankOptions
    threshold: float | None = None
    draft: bool = False


@dataclass(frozen=True)
class Round:
    """Prompts to be answered together.

    Args:
        prepared: the prompts.
        numbers: index in the caller's list, for each label of the prompts.
        last: whether the result is made of the answers, and not the order of a window.
        draft: the fast answer, if reasoning may be cut.
    """

    prepared: Sequence[Prepared]
    numbers: Sequence[int]
    last: bool = False
    draft: RankedResults | None = None


Steps: TypeAlias = Generator[Round, Sequence[Output | None], RankedResults]
"""Yields rounds, takes their outputs, and returns the results; None is an output that was cut,
which may happen where the round has a draft."""


class Ranker:
    """Takes the steps of rankings; from several threads.

    Args:
        name: name of the model in results.
        weights: lock that is held while weights are read.
        window, earlier_windows: see :class:`retrv_r1.Reranker`.
    Raises:
        ValueError: a mode of the earlier windows that there is not.
    """

    def __init__(
        self,
        name: str,
        builder: RequestBuilder,
        weights: threading.RLock,
        *,
        window: int,
        earlier_windows: EarlierWindows,
    ) -> None:
        if earlier_windows not in get_args(EarlierWindows):
            raise ValueError(f"earlier_windows must be 'fast' or 'same', got {earlier_windows!r}")
        self.name, self.builder, self.weights = name, builder, weights
        self.model, self.processor = builder.model, builder.processor
        self.window, self.earlier_windows = window, earlier_windows

    def plan(
        self,
        mode: ModeChoice,
        reading: Reading,
        sampling: Sampling | None,
        votes: int,
        top_k: int | None,
        budget: bool = False,
    ) -> RankPlan:
        """How a ranking with these options goes.

        Args:
            budget: whether it may be cut.
        Raises:
            ValueError: an unknown value, or options that exclude each other.
        """
        config = self.model.config
        if sampling is None:
            sampling = default_sampling(votes, config.max_inspections)
        auto = mode == "auto"
        options = RankOptions("reason" if mode == "auto" else mode, reading, sampling, votes, top_k)
        early = auto or (budget and options.mode == "reason")
        earlier = RankOptions("fast", reading)
        if self.earlier_windows == "same" and not early:
            earlier = replace(options, top_k=None)
        threshold = config.auto_threshold if config.auto_threshold is not None else AUTO_THRESHOLD
        return RankPlan(options, earlier, threshold if auto else None, early)

    def steps(
        self,
        request: RankRequest,
        items: Sequence[Item],
        features: Sequence[Features],
        *,
        plan: RankPlan,
        meter: Meter,
    ) -> Steps:
        """The steps of ranking a list, whose items, the query first, are encoded."""
        encoded = [ItemFeatures(*pair) for pair in zip(items, features, strict=True)]
        # Each pointwise prompt has one candidate, so that there is nothing to slide over.
        window = None if plan.options.reading == "pointwise" else self.window
        one = CandidateList(encoded, window, request.instruction, request.tie_seed)
        one.timings.update(features=meter.seconds["features"], compression=0.0)
        meter.features(features)
        while one.sliding:
            prepared = self._prepare(one, plan.earlier, meter)
            outputs = yield Round(prepared, one.current)
            found = self._outcome(one, prepared, _complete(outputs), plan.earlier, meter)
            one.slide(found.order)
        if not one.candidates:
            return self._results(one, None, plan, meter)
        prepared, draft = self._prepare(one, plan.options, meter), None
        if plan.draft:
            fast = replace(plan, options=replace(plan.options, mode="fast", votes=1))
            calibration = self.model.config.calibration_of("fast")
            at_once = [at_once_of(prepared[0]).weighed(calibration)]
            outputs = yield Round(at_once, one.current, last=True)
            early = self._outcome(one, at_once, _complete(outputs), fast.options, meter)
            draft = self._results(one, early, fast, meter)
            sure = confidence(early.order[0][1], early.none)
            if plan.threshold is not None and sure >= plan.threshold:
                return draft
        outputs = yield Round(prepared, one.current, last=True, draft=draft)
        done = [k for k, output in enumerate(outputs) if output is not None]
        cut = len(done) < len(prepared)
        if not done:
            assert draft is not None, "only rounds with a draft are cut"
            return replace(draft, cut=True, bill=meter.bill())
        prepared, complete = [prepared[k] for k in done], _complete([outputs[k] for k in done])
        last = self._outcome(one, prepared, complete, plan.options, meter)
        return replace(self._results(one, last, plan, meter), cut=cut)

    def _prepare(self, one: CandidateList, options: RankOptions, meter: Meter) -> list[Prepared]:
        began = time.perf_counter()
        with self.weights:
            calibration = self.model.config.calibration_of(options.mode)
            prepared = [p.weighed(calibration) for p in one.prepare(self.builder, options)]
        seconds = time.perf_counter() - began
        one.timings["compression"] += seconds
        meter.add("compression", seconds)
        return prepared

    def _outcome(
        self,
        one: CandidateList,
        prepared: Sequence[Prepared],
        outputs: Sequence[Output],
        options: RankOptions,
        meter: Meter,
    ) -> WindowResult:
        with meter.timed("answer"):
            calibration = self.model.config.calibration_of(options.mode)
            found = one.result(prepared, outputs, options, calibration)
        meter.window(found.tokens, outputs)
        return found

    def _results(
        self, one: CandidateList, last: WindowResult | None, plan: RankPlan, meter: Meter
    ) -> RankedResults:
        about = self.name, self.model, self.processor
        with meter.timed("answer"):
            results = results_of(one, last, plan.options, *about)
        return replace(results, auto=plan.threshold is not None, bill=meter.bill())


def confidence(best: float, none: float | None) -> float:
    """How sure a ranking is of what it says: that its answer is right, or that nothing fits.

    ``mode="auto"`` compares it with its threshold. Without the second, a list that fits nothing
    would always be reasoned about, however sure the fast answer is of that.

    Args:
        best: score of the answer.
        none: probability that no candidate fits; None for a model that has no estimate.
    """
    return best if none is None else max(best, none)


def at_once_of(prepared: Prepared) -> Prepared:
    """The same prompt, to be answered without reasoning."""
    request = replace(prepared.request, reason=False, inspections=(), source=None)
    return replace(prepared, request=request)


def run_together(
    runs: Sequence[Steps], generate: Callable[[Sequence[Request]], Sequence[Output]]
) -> list[RankedResults]:
    """Takes the steps of several rankings at once, all prompts of a round together."""
    results: dict[int, RankedResults] = {}
    rounds: dict[int, Round] = {}

    def advance(number: int, outputs: Sequence[Output] | None) -> None:
        try:
            run = runs[number]
            rounds[number] = next(run) if outputs is None else run.send(outputs)
        except StopIteration as end:
            results[number] = end.value

    for number in range(len(runs)):
        advance(number, None)
    while rounds:
        asked, rounds = rounds, {}
        outputs = iter(generate([p.request for one in asked.values() for p in one.prepared]))
        for number, one in asked.items():
            advance(number, [next(outputs) for _ in one.prepared])
    return [results[number] for number in range(len(runs))]


def _complete(outputs: Sequence[Output | None]) -> list[Output]:
    """Outputs of which none was cut."""
    assert all(output is not None for output in outputs), "only rounds with a draft are cut"
    return [output for output in outputs if output is not None]
