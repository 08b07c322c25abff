"""Reranker: the public entry. Items in, a ranking with its reasoning out."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image

from retrv_engine import Output, PlainEngine, Request, RowSpan, Sampling, Vocabulary
from retrv_r1.checkpoint import load_checkpoint
from retrv_r1.features import FeatureEncoder, Features, pack_features
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.prompts import PromptBuilder, Rows, TableLayout
from retrv_r1.scoring import merge_windows, rank_labels
from retrv_r1.types import (
    Item,
    ItemError,
    ItemLike,
    Mode,
    RankedItem,
    RankedResults,
    TokenCounts,
)

Reading = Literal["compressed", "full"]


@dataclass(frozen=True)
class Query:
    """One request of a batch: a query, its candidates, and how the task is put."""

    query: ItemLike
    candidates: Sequence[ItemLike]
    instruction: str | None = None


@dataclass(frozen=True)
class _Prepared:
    request: Request
    prompt_rows: int
    candidate_rows: int


@dataclass(frozen=True)
class _Ranked:
    """One window's outcome: candidate numbers with scores, and what the engine said."""

    order: list[tuple[int, float]]
    output: Output
    prepared: _Prepared


@dataclass(frozen=True)
class _Encoded:
    """Items and features of a request: the query first, then the candidates."""

    items: list[Item]
    features: list[Features]
    seconds: float


class _Job:
    """A request on its way through the windows.

    Attributes:
        order: candidate numbers, the order so far.
        start: where the current window begins.
        tail: candidates behind the windows still to come, with scores.
    """

    def __init__(self, query: Query, encoded: _Encoded, window: int) -> None:
        self.query, self.encoded, self.window = query, encoded, window
        self.order = list(range(len(encoded.items) - 1))
        self.start = max(0, len(self.order) - window)
        self.tail: list[tuple[int, float]] = []
        self.compression_seconds = 0.0

    @property
    def sliding(self) -> bool:
        """Whether the current window is not the last one."""
        return self.start > 0

    @property
    def current(self) -> list[int]:
        """Candidate numbers of the current window."""
        return self.order[self.start : self.start + self.window]

    def slide(self, ranked: list[tuple[int, float]]) -> None:
        """Takes a window's ranking and moves half a window towards the start."""
        stop = self.start + self.window
        self.order[self.start : stop] = [candidate for candidate, _ in ranked]
        following = max(0, self.start - self.window // 2)
        left_behind = following + self.window - self.start
        self.tail = merge_windows(ranked[left_behind:], self.tail)
        self.start = following


class Reranker:
    """Ranks candidates for a query with a Retrv-R1 checkpoint.

    Args:
        window: candidates in one prompt, 128 at most. Longer lists are ranked by a window that
            slides from the end of the list to its start by half its size, in fast mode, so that
            the best reach the last window, which is ranked in the mode asked for.
        batch_size: requests that the engine runs together.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        *,
        name: str = "",
        window: int = 50,
        batch_size: int = 16,
    ) -> None:
        if not 2 <= window <= MAX_CANDIDATES:
            raise ValueError(f"window must be between 2 and {MAX_CANDIDATES}, got {window}")
        self.model, self.processor, self.name, self.window = model.eval(), processor, name, window
        self.builder = PromptBuilder(processor.tokenizer, model.config.prompts)
        self.encoder = FeatureEncoder(model, processor)
        tokens = processor.tokens
        vocabulary = Vocabulary(
            think_start=tokens.think_start,
            think_end=tokens.think_end,
            answer_start=tokens.answer_start,
            answer_end=tokens.answer_end,
            inspect_start=tokens.inspect_start,
            inspect_end=tokens.inspect_end,
            end=tokens.im_end,
        )
        self._silent = {tokens.inspect_start, tokens.inspect_end}
        added = processor.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        # What prompts are built of has no place in a chain of thought.
        self._structure = sorted(special - set(tokens.labels) - self._silent - {tokens.think_end})
        self.engine = PlainEngine(model, vocabulary, batch_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        window: int = 50,
        batch_size: int = 16,
    ) -> Reranker:
        """Loads ``"tiny"`` (shipped), a directory, or a hub id.

        Raises:
            CheckpointError: nothing usable is there; the message says what to do.
        """
        model, processor = load_checkpoint(name, dtype)
        return cls(
            model.to(device), processor, name=str(name), window=window, batch_size=batch_size
        )

    def rank(
        self,
        query: ItemLike,
        candidates: Sequence[ItemLike],
        *,
        top_k: int | None = None,
        mode: Mode = "reason",
        instruction: str | None = None,
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
    ) -> RankedResults:
        """Ranks ``candidates`` for ``query``, best first.

        Args:
            top_k: how many to return; all when None.
            mode: ``"reason"`` thinks and inspects, ``"fast"`` reads the answer off the prompt.
            instruction: how the task is put; the checkpoint's own wording when None.
            reading: ``"full"`` reads every candidate at full length (the baseline without
                compression).
            sampling: by default greedy, with as many inspections as the checkpoint's config says.
        Raises:
            ItemError: an item that cannot be used; the message names it.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        request = Query(query, candidates, instruction)
        (result,) = self.rank_batch([request], mode=mode, reading=reading, sampling=sampling)
        return result if top_k is None else replace(result, ranking=result.ranking[:top_k])

    @torch.inference_mode()
    def rank_batch(
        self,
        queries: Sequence[Query],
        *,
        mode: Mode = "reason",
        reading: Reading = "compressed",
        sampling: Sampling | None = None,
    ) -> list[RankedResults]:
        """Ranks several queries; those with lists of one window run in the engine together."""
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be 'reason' or 'fast', got {mode!r}")
        if reading not in get_args(Reading):
            raise ValueError(f"reading must be 'compressed' or 'full', got {reading!r}")
        sampling = sampling or Sampling(max_inspections=self.model.config.max_inspections)
        jobs = [_Job(query, self._encode(query), self.window) for query in queries]
        while waiting := [job for job in jobs if job.sliding]:
            ranked = self._run(waiting, "fast", reading, Sampling())
            for job, window in zip(waiting, ranked, strict=True):
                job.slide(window.order)
        jobs_with_items = [job for job in jobs if job.order]
        last = self._run(jobs_with_items, mode, reading, sampling)
        outcome = dict(zip(map(id, jobs_with_items), last, strict=True))
        return [self._result(job, outcome.get(id(job)), mode) for job in jobs]

    def _encode(self, query: Query) -> _Encoded:
        started = time.perf_counter()
        items = _items(query)
        features = self.encoder.encode(items)
        return _Encoded(items, features, time.perf_counter() - started)

    def _run(
        self, jobs: Sequence[_Job], mode: Mode, reading: Reading, sampling: Sampling
    ) -> list[_Ranked]:
        """Ranks the current window of every job."""
        prepared = []
        for job in jobs:
            started = time.perf_counter()
            prepared.append(self._prepare(job, mode, reading, sampling))
            job.compression_seconds += time.perf_counter() - started
        outputs = self.engine.generate([p.request for p in prepared])
        temperature = self.model.config.score_temperature
        ranked = []
        for job, output, ready in zip(jobs, outputs, prepared, strict=True):
            order = rank_labels(output.label_logits, output.answer, temperature)
            order = [(job.order[job.start + k], score) for k, score in order]
            ranked.append(_Ranked(order, output, ready))
        return ranked

    def _prepare(self, job: _Job, mode: Mode, reading: Reading, sampling: Sampling) -> _Prepared:
        """Prompt and inspection rows of a job's current window."""
        chosen = [job.encoded.features[0]]
        chosen += [job.encoded.features[1 + c] for c in job.current]
        layout = TableLayout.of([f.item for f in chosen])
        features, offsets = pack_features(chosen)
        count = len(chosen) - 1
        if reading == "compressed":
            candidates = torch.arange(1, count + 1)
            content = self.model.icm.content(features, offsets)
            relation = self.model.icm.relation(
                features, offsets, candidates, torch.zeros_like(candidates)
            )
            table = torch.cat([features, content, relation])
        else:
            own = offsets[:2]
            table = torch.cat([features, self.model.icm.content(features[: own[1]], own)])
        numbers = range(1, count + 1)
        prompt = self.builder.listwise(
            layout,
            0,
            numbers,
            range(count),
            instruction=job.query.instruction,
            full_tokens=reading == "full",
        )
        bare = self.builder.listwise(layout, 0, (), (), instruction=job.query.instruction)
        spans: Sequence[RowSpan] = ()
        if mode == "reason":
            full = [self.builder.full_item(Rows(), layout, number) for number in numbers]
            spans = [self._span(rows, table) for rows in full]
        request = Request(
            prompt=self._span(prompt, table),
            labels=self.processor.tokens.labels[:count],
            inspections=spans,
            reason=mode == "reason",
            sampling=sampling,
            banned=(*self._structure, *self.processor.tokens.labels[count:]),
        )
        return _Prepared(request, len(prompt), len(prompt) - len(bare))

    def _span(self, rows: Rows, table: torch.Tensor) -> RowSpan:
        ids, refs, positions = rows.tensors()
        device = self.model.device
        embeds = self.model.embed(ids.to(device), refs.to(device), table)
        return RowSpan(embeds, positions, rows.next_position)

    def _result(self, job: _Job, last: _Ranked | None, mode: Mode) -> RankedResults:
        query, *items = job.encoded.items
        if last is None:
            return RankedResults(query, None, (), mode=mode, model=self.name)
        output, current = last.output, job.current
        inspected = tuple(current[k] for k in output.inspected)
        order = merge_windows(last.order, job.tail)
        ranking = tuple(RankedItem(c, score, items[c], c in inspected) for c, score in order)
        ready = last.prepared
        return RankedResults(
            query=query,
            answer=current[output.answer],
            ranking=ranking,
            reasoning=self._reasoning(output, current),
            inspected=inspected,
            mode=mode,
            model=self.name,
            well_formed=output.well_formed,
            timings={
                "features": job.encoded.seconds,
                "compression": job.compression_seconds,
                **output.timings,
            },
            tokens=TokenCounts(
                prompt=ready.prompt_rows,
                candidates=ready.candidate_rows,
                inspected=output.inspected_rows,
                generated=len(output.tokens),
            ),
        )

    def _reasoning(self, output: Output, current: Sequence[int]) -> str:
        """The text between the think tags, labels as ``[index + 1]`` of the caller's list."""
        tokens = self.processor.tokens
        if tokens.think_end not in output.tokens:
            return ""
        thought = output.tokens[1 : list(output.tokens).index(tokens.think_end)]
        number = {label: current[k] for k, label in enumerate(tokens.labels[: len(current)])}
        parts: list[str] = []
        plain: list[int] = []
        for token in (*thought, None):
            if token is not None and token not in number and token not in self._silent:
                plain.append(token)
                continue
            parts.append(self.processor.tokenizer.decode(plain))
            plain = []
            if token in number:
                parts.append(f" [{number[token] + 1}]")
            elif token == tokens.inspect_start:
                parts.append(" inspect")
        return re.sub(r" {2,}", " ", "".join(parts)).strip()


def _items(query: Query) -> list[Item]:
    """Query and candidates as items; an unusable one is named in the error."""
    values = query.candidates
    if isinstance(values, str | bytes | Mapping | Item | Image.Image) or not isinstance(
        values, Iterable
    ):
        raise ItemError(
            f"candidates must be a list of items, not {type(values).__name__}; "
            "put a single one into a list"
        )
    items = []
    for number, value in enumerate((query.query, *values), -1):
        try:
            items.append(Item.of(value))
        except ItemError as error:
            name = "the query" if number < 0 else f"candidate {number}"
            raise ItemError(f"{name}: {error}") from error
    return items
