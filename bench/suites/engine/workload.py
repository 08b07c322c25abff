"""Models and requests that engines are compared on; features of all items are computed already."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench import small
from bench.device import Device
from retrv_engine import (
    EngineConfig,
    FeatureRows,
    LocalEngine,
    Piece,
    PlainEngine,
    Request,
    Sampling,
)
from retrv_engine.generation import Generation
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.tokens import TokenIds

INSTRUCTION, TASK = 12, 8  # tokens before and after the candidates


class PacedGeneration(Generation):
    """Uses its full token budget and all its inspections, evenly spaced.

    Left to itself the model would decide by its weights, which are random.
    """

    @property
    def room(self) -> int:
        """Tokens that fit before the next inspection or the end of the reasoning."""
        if self._pause is None:
            return super().room
        return max(0, self._pause - len(self.tokens))

    def cut(self) -> None:
        """Inspects a candidate when it is time for it; otherwise as the base class."""
        if self._pause is None:
            super().cut()
        else:
            self._force(self.vocabulary.inspect_start)

    @property
    def _pause(self) -> int | None:
        """Number of tokens after which the next inspection is due; None if there is none left."""
        sampling, seen = self.request.sampling, len(self.inspected)
        if seen >= sampling.max_inspections:
            return None
        return (seen + 1) * (sampling.max_reasoning_tokens // (sampling.max_inspections + 1))


@dataclass(frozen=True)
class Pictures:
    """A feature source: full rows of candidates in a table."""

    table: Tensor
    rows: int
    width: int
    seed: int

    def load(self, names: Sequence[Hashable]) -> list[list[Piece]]:
        """The rows of candidates, which are named by their number."""
        return [[self.of(int(name))] for name in names]  # type: ignore[call-overload]

    def of(self, number: int, width: int | None = None) -> FeatureRows:
        """The rows of one candidate in its grid, or in a line where ``width`` is 0."""
        width = self.width if width is None else width
        key = hash((self.seed, number)) % 2**63
        return FeatureRows(self.table, number * self.rows, self.rows, key, width)


@dataclass(frozen=True, eq=False)
class Workload:
    """A model and the requests that it is measured with.

    Args:
        rows, width: rows of a full-length picture, and the width of their grid.
        words: number of text tokens; ids below it are text.
    """

    name: str
    model: RetrvR1ForConditionalGeneration
    tokens: TokenIds
    rows: int
    width: int
    words: int
    engines: dict[EngineConfig, LocalEngine] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        grid: tuple[int, int],
        device: Device,
    ) -> Workload:
        """A model on a device, in its dtype; ``grid`` is ``rows, width``."""
        model = model.to(device.kind, device.dtype)
        return cls(name, model, processor.tokens, *grid, len(processor.tokenizer) // 2)

    @classmethod
    def tiny(cls, device: str) -> Workload:
        """The shipped model, with 12 rows per picture."""
        return cls.of("tiny", *load_checkpoint("tiny"), (12, 4), Device.of(device))

    @classmethod
    def small(cls, device: str) -> Workload:
        """Random weights in the shape of Qwen2.5-0.5B, with 81 rows per picture."""
        grid = small.ROWS, small.WIDTH
        return cls.of("bench-small", *small.small(), grid, Device.of(device))

    @property
    def parameters(self) -> int:
        """Number of parameters of the language model."""
        return sum(one.numel() for one in self.model.language_model.parameters())

    def plain(self, batch_size: int = 1) -> PlainEngine:
        """The reference engine on the model."""
        return PlainEngine(self.model, self.tokens, batch_size, generation_type=PacedGeneration)

    def local(self, config: EngineConfig | None = None) -> LocalEngine:
        """A new embedded engine on the model."""
        return LocalEngine(self.model, self.tokens, config, generation_type=PacedGeneration)

    def request(
        self,
        seed: int,
        candidates: int,
        *,
        full: bool = False,
        tokens: int = 0,
        inspections: int = 0,
    ) -> Request:
        """A listwise prompt.

        Args:
            full: give candidates at full length, in a line as peers take them, not as two rows.
            tokens: number of tokens of reasoning; 0 for fast mode.
        """
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(self.words, (INSTRUCTION + TASK,), generator=generator).tolist()
        table = self._table(seed, candidates * (self.rows + 2))
        pictures = Pictures(table, self.rows, self.width, seed)
        prompt: list[Piece] = text[:INSTRUCTION]
        for i in range(candidates):
            first = candidates * self.rows + 2 * i
            short = FeatureRows(table, first, 2, hash((seed, i)) % 2**63)
            prompt += [self.tokens.labels[i], pictures.of(i, 0) if full else short]
            prompt += [text[-1]] if full else []
        return Request(
            [*prompt, *text[INSTRUCTION:]],
            self.tokens.labels[:candidates],
            range(candidates),
            pictures,
            reason=tokens > 0,
            sampling=Sampling(max_reasoning_tokens=max(1, tokens), max_inspections=inspections),
            banned=[self.tokens.think_end, self.tokens.inspect_start],
        )

    def _table(self, seed: int, rows: int) -> Tensor:
        """Random rows, made on the model's device: a real model has hundreds of MB of them."""
        device, width = self.model.device, self.model.config.hidden_size
        generator = torch.Generator(device).manual_seed(seed)
        table = 0.02 * torch.randn(rows, width, generator=generator, device=device)
        return table.to(self.model.dtype)

    def pointwise(self, seed: int, candidates: int) -> list[Request]:
        """A prompt for each candidate, all after the same query of 64 rows."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(self.words, (64 + TASK,), generator=generator).tolist()
        pictures = Pictures(self._table(seed, candidates * self.rows), self.rows, self.width, seed)
        verdicts = self.tokens.labels[:2]
        return [
            Request([*text[:64], pictures.of(i), *text[64:]], verdicts, reason=False)
            for i in range(candidates)
        ]

    def text(self, seed: int, rows: int, tokens: int) -> Request:
        """A prompt of text only."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.words, (rows,), generator=generator).tolist()
        sampling = Sampling(max_reasoning_tokens=max(1, tokens), max_inspections=0)
        banned = [self.tokens.think_end, self.tokens.inspect_start]
        source = Pictures(torch.empty(0, 1), 0, 0, 0)
        labels = self.tokens.labels
        return Request(ids, labels, range(len(labels)), source, tokens > 0, sampling, banned)
