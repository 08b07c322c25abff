"""Models, runners and requests that the engines' tests share."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, DynamicCache

from retrv_engine import (
    EngineConfig,
    FeatureRows,
    LocalEngine,
    Output,
    Piece,
    Request,
    Sampling,
    Vocabulary,
)
from retrv_engine.job import Extend
from retrv_engine.sampler import Picked, pick

THINK, END_THINK, ANSWER, END_ANSWER, LOOK, END_LOOK, END = range(1, 8)
NONE = 25
WORD, OTHER, STRANGE = 30, 31, 32
LABELS = (20, 21, 22, 23)
NAMES = Vocabulary(THINK, END_THINK, ANSWER, END_ANSWER, LOOK, END_LOOK, END)
SIZE = 40
LEANING = (2.0, 0.0, 0.0)  # how rows begin that go with the fixture `checkpoint`
PROMPT, SPAN = 1000, 2000  # tokens of the scripted model's prompts, contents of inspected rows
GOOD = [THINK, WORD, LOOK, LABELS[1], END_LOOK, OTHER, END_THINK, ANSWER, LABELS[2], END_ANSWER]


@dataclass
class Source:
    """A feature source that remembers what it was asked for; names in ``bad`` raise."""

    pieces: dict[Hashable, Sequence[Piece]]
    bad: set[Hashable] = field(default_factory=set)
    calls: list[list[Hashable]] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def load(self, names: Sequence[Hashable]) -> list[Sequence[Piece]]:
        self.calls.append(list(names))
        if broken := self.bad.intersection(names):
            raise OSError(f"cannot read {sorted(map(str, broken))}")
        return [self.pieces[name] for name in names]


@dataclass
class Scripted:
    """Wants the tokens of a plan, one per token written; remembers all rows and positions.

    An embedding is the token's id. The first row of a prompt says which plan is meant. Where the
    wanted token is not permitted, ``END_THINK`` is the next best.
    """

    plans: dict[int, list[int]]
    seen: dict[int, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)
    calls: list[tuple[int, ...]] = field(default_factory=list)

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding.from_pretrained(torch.arange(2 * PROMPT)[:, None].float())

    def get_output_embeddings(self) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits

    def language_model(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        past_key_values: DynamicCache,
        use_cache: bool,
    ) -> SimpleNamespace:
        rows = torch.cat([inputs_embeds, position_ids.permute(1, 2, 0).float()], -1)[:, None]
        rows, _ = past_key_values.update(rows, rows, 0)
        assert attention_mask.shape == rows[:, 0, :, 0].shape
        assert attention_mask[:, -1].all(), "the last row is always a real one"
        count, length, _ = inputs_embeds.shape
        self.calls.append((count, length))
        logits = torch.zeros(count, length, SIZE)
        for b, (row, mask) in enumerate(zip(rows[:, 0], attention_mask.bool(), strict=True)):
            history = [(int(r[0]), tuple(int(p) for p in r[1:])) for r in row[mask]]
            self.seen[history[0][0]] = history
            for n in range(length):
                if (stop := len(history) - length + n + 1) < 1:
                    continue
                written = sum(i < PROMPT for i, _ in history[:stop])
                plan = self.plans[history[0][0]]
                logits[b, n, END_THINK] = 5.0
                logits[b, n, plan[min(written, len(plan) - 1)]] = 10.0
        return SimpleNamespace(last_hidden_state=logits)


def request(number: int = 0, length: int = 3, candidates: int = 3, **values: Any) -> Request:
    """A prompt of ``length`` rows; candidate k is a grid of 2 by k + 1 rows in full."""
    pieces = {
        k: [FeatureRows(torch.full((2 * k + 2, 1), SPAN + 10.0 * number + k), 0, 2 * k + 2, k, 2)]
        for k in range(candidates)
    }
    prompt = [PROMPT + number, *[PROMPT + 900] * (length - 1)]
    return Request(prompt, LABELS[:candidates], range(candidates), Source(pieces), **values)


def names_of(processor: Any) -> Vocabulary:
    """The steering tokens of a real model's vocabulary."""
    return processor.tokens


def real_requests(
    labels: Sequence[int], width: int = 64, seed: int = 0, device: str = "cpu"
) -> list[Request]:
    """Prompts of 3 to 40 rows with 2 to 6 candidates of 2 to 26 rows, for a model of some width.

    Args:
        device: of the rows: the model's.
    """
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int, grid: int = 0) -> FeatureRows:
        table = 0.15 * torch.randn(count, width, generator=generator)
        key = int(torch.randint(2**62, (1,), generator=generator))
        return FeatureRows(table.to(device), 0, count, key, grid)

    made = []
    for number, (length, count) in enumerate([(40, 6), (3, 2), (17, 4), (25, 3), (8, 5)]):
        sizes = torch.randint(1, 6, (count, 2), generator=generator).tolist()
        source = Source({k: [rows(h * w, w), 9 + k] for k, (h, w) in enumerate(sizes)})
        made.append(
            Request(
                [rows(length)],
                labels[:count],
                range(count),
                source,
                sampling=Sampling(max_reasoning_tokens=12 + 5 * number, seed=number),
            )
        )
    return made


class Backbone:
    """A model of transformers as engines want one, with random weights."""

    def __init__(self, config: Any, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.model = AutoModelForImageTextToText.from_config(config).eval().to(dtype)
        self.language_model = self.model.model.language_model
        self.get_input_embeddings = self.model.get_input_embeddings
        self.get_output_embeddings = self.model.get_output_embeddings
        self.named_parameters = self.model.named_parameters


class Steered:
    """A real model that likes to inspect and comes to an end, for both engines."""

    def __init__(self, model: Any, vocabulary: Vocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.language_model = model.language_model
        self.get_input_embeddings = model.get_input_embeddings
        self.named_parameters = model.named_parameters

    def get_output_embeddings(self) -> Any:
        return lambda hidden: self.steer(self.model.get_output_embeddings()(hidden))

    def steer(self, logits: Tensor) -> Tensor:
        bias = torch.zeros(logits.shape[-1], device=logits.device)
        # Numbers set by index would be copied from the host, which a CUDA graph cannot do.
        for token, likes in (
            (self.vocabulary.inspect_start, 4.0),
            (self.vocabulary.think_end, 1.0),
        ):
            bias.narrow(0, token, 1).fill_(likes)
        return logits + bias


class Ledger:
    """A runner whose cache holds each row's key, and whose logits depend on all rows before.

    It reads what it needs through the pages alone, so a wrong page, a wrong prefix or a row that
    was overwritten is found at once.
    """

    def __init__(self, pages: int, size: int) -> None:
        self.pages, self.size, self.weights, self.fixed = pages, size, 0, False
        self.rows = torch.full((pages, size), -7, dtype=torch.long)
        self.steps: list[list[tuple[int, int]]] = []
        self.broken = False

    def copy(self, source: int, target: int, rows: int) -> None:
        self.rows[target, :rows] = self.rows[source, :rows]

    def check(self, pieces: Sequence[Any]) -> None:
        if any(isinstance(piece, int) and piece < 0 for piece in pieces):
            raise ValueError("a negative token")

    def load_weights(self, weights: dict[str, Any]) -> None:
        self.weights = weights.get("version", 0)

    def reset(self) -> None:
        pass

    def run(self, extends: list[Extend]) -> list[list[Picked]]:
        if self.broken:
            raise MemoryError("the model broke")
        self.steps.append([(job.number, stop - first) for job, first, stop in extends])
        picks = []
        for extend in extends:
            job, first, stop = extend
            keys = [key ^ self.weights for key in job.context.keys[:stop]]
            for row in range(first, stop):
                self.rows[job.pages[row // self.size], row % self.size] = keys[row]
            kept = self.rows[job.pages[: -(-stop // self.size)]].flatten()[:stop].tolist()
            assert kept == keys
            logits = [self._of(keys[: row + 1]) for row in range(stop - extend.due, stop)]
            picks.append(pick(torch.stack(logits), extend.choices()) if logits else [])
        return picks

    @staticmethod
    def _of(keys: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(hash(tuple(keys)) % 2**62)
        logits = torch.rand(SIZE, generator=generator)
        logits[LOOK] += 0.5
        logits[END_THINK] += 0.4
        return logits


def ledger(pages: int = 1000, **values: Any) -> LocalEngine:
    """An engine over a ledger."""
    config = EngineConfig(**{"page_size": 4} | values)
    return LocalEngine(None, NAMES, config, runner=Ledger(pages, config.page_size))


CANDIDATES = Source(
    {n: [9, FeatureRows(torch.zeros(12, 1), 0, 4 + 2 * (n % 3), n, 2), 10] for n in range(16)}
)


def made(seed: int, **values: Any) -> Request:
    """A request whose prompt begins as some others do."""
    rng = random.Random(seed)
    family = rng.randint(0, 3)
    prompt: list[Any] = [
        11 + (family * 7 + i * (family + 1)) % 9 for i in range(rng.randint(1, 60))
    ]
    if rng.random() < 0.4:
        prompt.append(FeatureRows(torch.zeros(30, 1), 0, 12, 77 + family, 4))
    if rng.random() < 0.1:
        return Request(prompt, LABELS, reason=False)
    sampling = Sampling(
        max_reasoning_tokens=30,
        max_inspections=3,
        temperature=rng.choice([0.0, 1.0]),
        seed=seed % 7,
    )
    names = [family * 4 + k for k in range(4)]
    return Request(prompt, LABELS, names, CANDIDATES, sampling=sampling, **values)


def alone(request: Request) -> Output:
    """What a request gives in an engine of its own."""
    (output,) = ledger(radix=False).generate([request])
    return output


def all_logits(output: Output) -> Tensor:
    """Logits of the labels, then that of the label for no candidate, if the request has one."""
    none = [] if output.none_logit is None else [output.none_logit]
    return torch.cat([output.label_logits, torch.tensor(none)])


def same(found: Sequence[Output], expected: Sequence[Output], *, constant: bool = False) -> None:
    """Asserts that outputs agree: tokens exactly, log-probabilities and logits within 1e-4.

    Args:
        constant: whether logits may differ by a number that is the same for all labels.
    """
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        for name in ("answer", "inspected", "inspected_rows", "well_formed", "refused"):
            assert getattr(one, name) == getattr(other, name), name
        assert (one.none_logit is None) is (other.none_logit is None)
        logits = [all_logits(output) for output in (one, other)]
        if constant:
            logits = [values.log_softmax(-1) for values in logits]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0 if constant else 1e-4)
        logprobs = [torch.tensor(output.logprobs) for output in (one, other)]
        torch.testing.assert_close(*logprobs, atol=1e-4, rtol=0)
