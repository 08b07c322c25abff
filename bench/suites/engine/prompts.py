"""Models and prompts that engines are compared on, their features being ready."""

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
    Request,
    Sampling,
    Vocabulary,
)
from retrv_engine.generation import Generation
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration

INSTRUCTION, TASK = 12, 8  # tokens before and behind the candidates


class Paced(Generation):
    """Inspects as often as it may, evenly over its reasoning, and writes all tokens it may.

    The model's own wish would depend on weights that are random.
    """

    @property
    def room(self) -> int:
        """Until the next inspection, or the end."""
        if self._pause is None:
            return super().room
        return max(0, self._pause - len(self.tokens))

    def cut(self) -> None:
        """Looks at a candidate, or goes on."""
        if self._pause is None:
            super().cut()
        else:
            self._force(self.vocabulary.inspect_start)

    @property
    def _pause(self) -> int | None:
        """After how many tokens the next inspection is due, None if there is none."""
        sampling, seen = self.request.sampling, len(self.inspected)
        if seen >= sampling.max_inspections:
            return None
        return (seen + 1) * (sampling.max_reasoning_tokens // (sampling.max_inspections + 1))


@dataclass(frozen=True)
class Pictures:
    """Full rows of candidates, ready: a feature source."""

    table: Tensor
    rows: int
    width: int
    seed: int

    def load(self, names: Sequence[Hashable]) -> list[list[Piece]]:
        """Rows of candidates, by their number."""
        return [[self.of(int(name))] for name in names]  # type: ignore[call-overload]

    def of(self, number: int, width: int | None = None) -> FeatureRows:
        """Rows of one candidate, in its grid or, with a width of 0, in a line."""
        width = self.width if width is None else width
        key = hash((self.seed, number)) % 2**63
        return FeatureRows(self.table, number * self.rows, self.rows, key, width)


@dataclass(frozen=True, eq=False)
class World:
    """A model, and sizes of what it ranks.

    Args:
        rows, width: of a picture in full.
        words: ids below this are those of text.
    """

    name: str
    model: RetrvR1ForConditionalGeneration
    vocabulary: Vocabulary
    labels: Sequence[int]
    rows: int
    width: int
    words: int
    engines: dict[EngineConfig, LocalEngine] = field(default_factory=dict)

    @classmethod
    def tiny(cls, device: str) -> World:
        """The shipped model; 12 rows a picture."""
        return cls._of("tiny", *load_checkpoint("tiny"), 12, 4, device)

    @classmethod
    def small(cls, device: str) -> World:
        """Random weights of Qwen2.5-0.5B's shape; 81 rows a picture."""
        return cls._of("bench-small", *small.small(), small.ROWS, small.WIDTH, device)

    @classmethod
    def _of(cls, name, model, processor, rows, width, device):
        tokens, words = processor.tokens, len(processor.tokenizer) // 2
        model = model.to(device, Device.of(device).dtype)
        return cls(name, model, tokens, tokens.labels, rows, width, words)

    @property
    def parameters(self) -> int:
        """Of the language model, its head included."""
        return sum(one.numel() for one in self.model.language_model.parameters())

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
            full: candidates at full length, in a line as peers take them, or two rows each.
            tokens: to write; 0 for fast mode.
        """
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(self.words, (INSTRUCTION + TASK,), generator=generator).tolist()
        table = self._table(seed, candidates * (self.rows + 2))
        pictures = Pictures(table, self.rows, self.width, seed)
        prompt: list[Piece] = text[:INSTRUCTION]
        for i in range(candidates):
            first = candidates * self.rows + 2 * i
            short = FeatureRows(table, first, 2, hash((seed, i)) % 2**63)
            prompt += [self.labels[i], pictures.of(i, 0) if full else short]
            prompt += [text[-1]] if full else []
        return Request(
            [*prompt, *text[INSTRUCTION:]],
            self.labels[:candidates],
            range(candidates),
            pictures,
            reason=tokens > 0,
            sampling=Sampling(max_reasoning_tokens=max(1, tokens), max_inspections=inspections),
            banned=[self.vocabulary.think_end, self.vocabulary.inspect_start],
        )

    def _table(self, seed: int, rows: int) -> Tensor:
        """Random rows, made where the model is: of a real one they are hundreds of MB."""
        device, width = self.model.device, self.model.config.hidden_size
        generator = torch.Generator(device).manual_seed(seed)
        table = 0.02 * torch.randn(rows, width, generator=generator, device=device)
        return table.to(self.model.dtype)

    def pointwise(self, seed: int, candidates: int) -> list[Request]:
        """A prompt for each candidate, all behind the same query of 64 rows."""
        generator = torch.Generator().manual_seed(seed)
        text = torch.randint(self.words, (64 + TASK,), generator=generator).tolist()
        pictures = Pictures(self._table(seed, candidates * self.rows), self.rows, self.width, seed)
        verdicts = self.labels[:2]
        return [
            Request([*text[:64], pictures.of(i), *text[64:]], verdicts, reason=False)
            for i in range(candidates)
        ]

    def text(self, seed: int, rows: int, tokens: int) -> Request:
        """A prompt of words alone."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.words, (rows,), generator=generator).tolist()
        sampling = Sampling(max_reasoning_tokens=max(1, tokens), max_inspections=0)
        banned = [self.vocabulary.think_end, self.vocabulary.inspect_start]
        source = Pictures(torch.empty(0, 1), 0, 0, 0)
        return Request(
            ids, self.labels, range(len(self.labels)), source, tokens > 0, sampling, banned
        )
