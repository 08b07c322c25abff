"""Memory, operations, bytes and time of queries and of training, from shapes and datasheets.

Products take ``FLOPs / (peak · mfu)``, a decode step the longer of that and ``bytes / (bandwidth ·
mbu)``. Nothing overlaps, and nothing waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrv_r1.planning.cards import Card
from retrv_r1.planning.shapes import ModelShape


@dataclass(frozen=True)
class Assumptions:
    """What is assumed, and printed with every plan.

    Args:
        k: candidates of a list.
        rows: rows of a candidate's picture; one of 256 pixels has about 100.
        query_rows: rows of a query.
        fixed_rows: rows of the prompt's own words.
        tokens: tokens that a chain has.
        inspections: candidates that a chain inspects.
        batch: chains that are decoded together.
        mfu: share of the peak that products reach.
        mbu: share of the bandwidth that decode steps reach.
        reserve: share of memory that stays free.
        rank: rank of LoRA on all linear layers of the language model.
        group: rollouts of a list in GRPO.
        lists: lists that ``align``, ``sft`` and ``grpo`` train on.
    """

    k: int = 50
    rows: int = 100
    query_rows: int = 40
    fixed_rows: int = 120
    tokens: int = 150
    inspections: int = 1
    batch: int = 32
    mfu: float = 0.4
    mbu: float = 0.6
    reserve: float = 0.1
    rank: int = 64
    group: int = 8
    lists: tuple[int, int, int] = (50_000, 50_000, 10_000)

    def __post_init__(self) -> None:
        whole = ("k", "rows", "query_rows", "tokens", "batch", "rank", "group")
        if wrong := [name for name in whole if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]} must be at least 1, not {getattr(self, wrong[0])}")
        if not (0 < self.mfu <= 1 and 0 < self.mbu <= 1 and 0 <= self.reserve < 1):
            raise ValueError("mfu and mbu must be in (0, 1], reserve in [0, 1)")
        if not 0 <= self.inspections <= self.k:
            raise ValueError(f"inspections must be between 0 and k, not {self.inspections}")

    def prompt(self, full: bool) -> int:
        """Rows of a prompt, candidates at full length (with two tags) or as two tokens."""
        candidate = 1 + (self.rows + 2 if full else 2)
        return self.fixed_rows + self.query_rows + 1 + self.k * candidate

    def context(self, full: bool) -> int:
        """Rows behind the last token."""
        return self.prompt(full) + self.tokens + self.inspections * (self.rows + 2)


@dataclass(frozen=True)
class QueryPlan:
    """One query on one card.

    Attributes:
        prompt: rows of the prompt.
        flops: operations of tower, compressor, prefill and decoding.
        cache_bytes: keys and values at the end.
        batch: chains that are decoded together: as many as assumed, or as fit.
        step_bytes: bytes that a decode step reads.
        seconds: seconds of tower, compressor and prefill, and of a chain's decode steps.
        per_second: queries a second; 0 if not even one fits.
    """

    prompt: int
    flops: tuple[float, float, float, float]
    cache_bytes: int
    batch: int
    step_bytes: float
    seconds: tuple[float, float]
    per_second: float


def query(
    model: ModelShape, card: Card, assumed: Assumptions, *, full: bool, indexed: bool = False
) -> QueryPlan:
    """Estimates a query.

    Args:
        full: candidates at full length instead of compressed, so that none is inspected.
        indexed: candidates' content tokens and relation keys are stored; only the query and
            inspected candidates go through the tower.
    """
    text, prompt = model.text, assumed.prompt(full)
    looked = 0 if full else assumed.inspections
    context = prompt + assumed.tokens + looked * (assumed.rows + 2)
    encoded = (looked if indexed and not full else assumed.k) * model.tower.flops(assumed.rows)
    tower = encoded + model.tower.flops(assumed.query_rows)
    sizes = assumed.rows, assumed.query_rows, assumed.k
    icm = 0.0 if full else model.compressor.flops(*sizes, stored=indexed)
    prefill = text.flops(prompt)
    prefill += looked * text.flops(assumed.rows + 2, context - assumed.rows)
    decode = assumed.tokens * text.flops(1, (prompt + context) // 2)
    cache = text.cache_bytes(context)
    weights = 2 * model.parameters
    room = card.memory * 1e9 * (1 - assumed.reserve) - weights
    batch = max(0, min(assumed.batch, int(room // cache)))
    read = 2 * (text.multiplied + text.head_weights)
    step_bytes = read + batch * text.cache_bytes((prompt + context) // 2)
    products = card.tflops * 1e12 * assumed.mfu
    before = (tower + icm + prefill) / products
    step = max(
        step_bytes / (card.bandwidth * 1e9 * assumed.mbu),
        batch * decode / assumed.tokens / products,
    )
    chain = assumed.tokens * step
    rate = batch / (batch * before + chain) if batch else 0.0
    parts = (tower, icm, prefill, decode)
    return QueryPlan(prompt, parts, cache, batch, step_bytes, (before, chain), rate)


@dataclass(frozen=True)
class TrainingPlan:
    """A stage on one card.

    Attributes:
        bytes: memory: weights, what is trained, activations, keys and values of rollouts.
        fits: whether that is within the card's memory, but for the reserve.
        flops: operations of all lists.
        hours: hours of it.
    """

    stage: str
    bytes: float
    fits: bool
    flops: float
    hours: float


def lora_parameters(model: ModelShape, rank: int) -> int:
    """Parameters of LoRA on all linear layers of the language model."""
    text = model.text
    queries, keys = text.heads * text.head_width, text.kv_heads * text.head_width
    pairs = [
        *[(text.hidden, queries), (queries, text.hidden)],
        *2 * [(text.hidden, keys)],
        *3 * [(text.hidden, text.intermediate)],
    ]
    return text.layers * rank * sum(one + other for one, other in pairs)


def training(model: ModelShape, card: Card, assumed: Assumptions) -> list[TrainingPlan]:
    """Estimates ``align`` (compressor alone), ``sft`` and ``grpo`` (both: LoRA and compressor).

    A step reads one sequence at a time, and layers are computed again in its backward pass, so that
    it holds the rows between layers and the inside of one.
    Weights are bfloat16 and frozen ones have no gradient; a trained parameter takes 16 bytes:
    weight, gradient and Adam's moments in float32.
    """
    text, lora = model.text, lora_parameters(model, assumed.rank)
    short, full = assumed.context(full=False), assumed.prompt(full=True)
    pictures = assumed.k * model.tower.flops(assumed.rows)
    chain = text.flops(short, logits=assumed.tokens)
    rollout = query(model, card, assumed, full=False)
    sampled = assumed.group * sum(rollout.flops[2:])
    # Forward, forward again, and gradients of activations: weights of the layers are frozen.
    flops = {
        "align": pictures + text.flops(full) + 3 * text.flops(assumed.prompt(full=False)),
        "sft": pictures + 3 * chain,
        "grpo": pictures + sampled + 3 * assumed.group * chain,
    }
    trained = {"align": 0, "sft": lora, "grpo": lora}
    plans = []
    for (stage, each), lists in zip(flops.items(), assumed.lists, strict=True):
        seconds = each / (card.tflops * 1e12 * assumed.mfu)
        cache = 0.0
        if stage == "grpo":  # decode steps read weights more slowly than products are computed
            seconds += rollout.seconds[1] * assumed.group / max(1, rollout.batch)
            cache = assumed.group * rollout.cache_bytes
        rows = full if stage == "align" else short
        width = text.layers * text.hidden + 4 * text.intermediate + 8 * text.hidden
        activations = 2 * rows * width + 12 * min(rows, 256) * text.vocabulary
        own = 16 * (trained[stage] + model.compressor.parameters)
        needed = 2 * model.parameters + own + activations + cache
        fits = needed <= card.memory * 1e9 * (1 - assumed.reserve)
        plans.append(TrainingPlan(stage, needed, fits, lists * each, lists * seconds / 3600))
    return plans
