"""Lists longer than one prompt, ranked by a window that slides from their end to their start."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrv_engine import Output
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.rerank.options import RankOptions
from retrv_r1.rerank.ordering import merge_windows, rank_labels, rank_verdicts, vote
from retrv_r1.rerank.requests import ItemFeatures, Prepared, RequestBuilder
from retrv_r1.types import TokenCounts


@dataclass(frozen=True)
class WindowResult:
    """Outcome of one window.

    Args:
        order: places in the window with scores, best first.
        none: probability that no candidate of the window fits, or None.
        output: output that gives the answer, whose numbers are places too, and the reasoning.
        tokens: token counts of all outputs of the window.
    """

    order: list[tuple[int, float]]
    output: Output
    tokens: TokenCounts
    none: float | None = None

    @classmethod
    def listwise(
        cls,
        prepared: Sequence[Prepared],
        outputs: Sequence[Output],
        calibration: ModeCalibration,
        places: Sequence[int] | None,
    ) -> WindowResult:
        """The result of one prompt, or of several votes on it; ``places`` order equal scores."""
        winner, ballot = vote(outputs)
        scores, none = ballot.scores(calibration)
        order = rank_labels(ballot.labels, scores, winner.answer, places)
        return cls(order, winner, _token_counts(prepared[:1], outputs), none)

    @classmethod
    def pointwise(
        cls, prepared: Sequence[Prepared], outputs: Sequence[Output], places: Sequence[int] | None
    ) -> WindowResult:
        """The result of one prompt per candidate; ``places`` order equal scores."""
        order = rank_verdicts([output.label_logits for output in outputs], places)
        best = order[0][0]
        winner = replace(outputs[best], answer=best)
        return cls(order, winner, _token_counts(prepared, outputs))


def _token_counts(prepared: Sequence[Prepared], outputs: Sequence[Output]) -> TokenCounts:
    looked = sum(prepared[0].pictures_of(output.inspected) for output in outputs)
    return TokenCounts(
        prompt=sum(one.prompt_rows for one in prepared),
        candidates=sum(one.candidate_rows for one in prepared),
        inspected=sum(output.inspected_rows for output in outputs),
        generated=sum(len(output.tokens) for output in outputs),
        cached=sum(output.cached_rows for output in outputs),
        pictures=sum(one.picture_rows for one in prepared) + looked,
    )


class CandidateList:
    """The candidates of one request, and a window that slides from their end to their start.

    Each window overlaps the one before by half, so that the best candidates reach the last window.

    Args:
        items: the query, then the candidates.
        window: candidates in one window; None for one window over the whole list.
        instruction: wording of the task; None for the checkpoint's own.
        tie_seed: seed that orders equal scores; None for the order of the list.
    Attributes:
        order: candidate numbers in the order so far.
        start: place in ``order`` where the current window begins.
        tail: candidates behind all windows still to come, with scores.
        timings: seconds per phase.
    """

    def __init__(
        self,
        items: Sequence[ItemFeatures],
        window: int | None,
        instruction: str | None = None,
        tie_seed: int | None = None,
    ) -> None:
        self.query, *self.candidates = items
        self.instruction = instruction
        self.window = len(self.candidates) if window is None else window
        self.order = list(range(len(self.candidates)))
        self.start = max(0, len(self.candidates) - self.window)
        self.tail: list[tuple[int, float]] = []
        self.timings: dict[str, float] = {}
        self._places: list[int] | None = None
        if tie_seed is not None:
            self._places = list(self.order)
            random.Random(tie_seed).shuffle(self._places)

    @property
    def sliding(self) -> bool:
        """Whether the current window is not the last one."""
        return self.start > 0

    @property
    def current(self) -> list[int]:
        """Candidate numbers of the current window."""
        return self.order[self.start : self.start + self.window]

    @property
    def places(self) -> list[int] | None:
        """The order of equal scores in the current window; None for the window's own."""
        return self._places and [self._places[number] for number in self.current]

    def prepare(self, builder: RequestBuilder, options: RankOptions) -> list[Prepared]:
        """The requests of the current window: one per vote, or one per candidate if pointwise."""
        chosen = [self.candidates[number] for number in self.current]
        if options.reading == "pointwise":
            return builder.pointwise(self.query, chosen, instruction=self.instruction)
        one = builder.listwise(
            self.query,
            chosen,
            reason=options.mode == "reason",
            full_tokens=options.reading == "full",
            instruction=self.instruction,
            sampling=options.sampling,
        )
        seeds = range(options.sampling.seed, options.sampling.seed + options.votes)
        samplings = [replace(options.sampling, seed=seed) for seed in seeds]
        return [replace(one, request=replace(one.request, sampling=own)) for own in samplings]

    def result(
        self,
        prepared: Sequence[Prepared],
        outputs: Sequence[Output],
        options: RankOptions,
        calibration: ModeCalibration,
    ) -> WindowResult:
        """The outcome of the current window, from what :meth:`prepare` made and its outputs."""
        if options.reading == "pointwise":
            return WindowResult.pointwise(prepared, outputs, self.places)
        return WindowResult.listwise(prepared, outputs, calibration, self.places)

    def slide(self, ranked: Sequence[tuple[int, float]]) -> None:
        """Records the ranking of the current window and moves it half its size towards the start.

        Args:
            ranked: places in the window with scores, best first.
        """
        found = self.numbered(ranked)
        stop = self.start + self.window
        self.order[self.start : stop] = [candidate for candidate, _ in found]
        following = max(0, self.start - self.window // 2)
        left_behind = following + self.window - self.start
        self.tail = merge_windows(found[left_behind:], self.tail)
        self.start = following

    def numbered(self, ranked: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """The ranking of the current window with candidate numbers for places in the window."""
        current = self.current
        return [(current[place], score) for place, score in ranked]
