"""Whether a greedy ranking depends on what is ranked beside it, and on what the caches hold.

python -m bench.batch_invariance --fast 1000 --reason 100 --out bench/results/batch-invariance-cpu.json

Random lists of the demo's pictures are ranked alone with cold caches, then alone with warm ones and
in batches. Rankings are compared to the first, exactly and in their scores.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import machine
from retrv_engine import EngineConfig
from retrv_r1 import RankedResults, RankRequest, Reranker
from retrv_r1.types import Mode

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
SIZES = (2, 24)
"""Least and largest number of candidates."""
SHOWN = 20
"""Differences that are kept one by one."""


@dataclass
class Comparison:
    """How rankings differ from those of the same lists alone and cold.

    Attributes:
        lists: rankings compared.
        answers, orders, reasonings: rankings of which that differs.
        score: largest difference of a candidate's score where the reasoning is the same.
        seconds: time for all.
        shown: some of the differing rankings, with the gap between the two best scores.
    """

    lists: int = 0
    answers: int = 0
    orders: int = 0
    reasonings: int = 0
    score: float = 0.0
    seconds: float = 0.0
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, number: int, found: RankedResults, expected: RankedResults) -> None:
        """Compares a ranking."""
        self.lists += 1
        order, wanted = ([line.index for line in one] for one in (found, expected))
        self.answers += found.answer != expected.answer
        self.orders += order != wanted
        self.reasonings += found.reasoning != expected.reasoning
        if found.reasoning == expected.reasoning:
            score = {line.index: line.score for line in expected}
            gaps = [abs(line.score - score[line.index]) for line in found]
            self.score = max(self.score, *gaps)
        if (order, found.reasoning) != (wanted, expected.reasoning) and len(self.shown) < SHOWN:
            first, second = expected[0].score, expected[1].score
            self.shown.append(
                {
                    "list": number,
                    "answer": [expected.answer, found.answer],
                    "gap": first - second,
                    "reasoning": [expected.reasoning, found.reasoning],
                }
            )


def random_lists(count: int, seed: int = 0) -> list[RankRequest]:
    """Lists of the demo's pictures, with a picture or its name for a query."""
    pictures, draw = sorted(DEMO.glob("*.png")), random.Random(seed)
    lists = []
    for _ in range(count):
        chosen = draw.sample(pictures, draw.randint(*SIZES))
        wanted = draw.choice(pictures)
        text = wanted.stem.replace("-", " ")
        lists.append(RankRequest(wanted if draw.random() < 0.3 else text, chosen))
    return lists


def rank_all(
    reranker: Reranker, lists: Sequence[RankRequest], mode: Mode, batch: int, cold: bool
) -> list[RankedResults]:
    """Rankings of all lists, ``batch`` together; ``cold`` empties the caches before each batch."""
    results: list[RankedResults] = []
    for start in range(0, len(lists), batch):
        if cold:
            reranker.encoder.clear()
            reranker.engine.flush()  # type: ignore[union-attr]
        results += reranker.rank_batch(lists[start : start + batch], mode=mode)
    return results


def measure(
    reranker: Reranker, lists: Sequence[RankRequest], mode: Mode, batches: Sequence[int]
) -> dict[str, Any]:
    """Comparisons by batch size and state of the caches."""
    began = time.perf_counter()
    alone = rank_all(reranker, lists, mode, 1, cold=True)
    seconds = time.perf_counter() - began
    print(f"{mode}: {len(lists)} lists alone and cold in {seconds:.0f} s", flush=True)
    found: dict[str, Any] = {}
    for batch in batches:
        for cold in (True, False):
            name = f"batch {batch}, {'cold' if cold else 'warm'}"
            if batch == 1 and cold:
                continue
            began, one = time.perf_counter(), Comparison()
            for number, pair in enumerate(
                zip(rank_all(reranker, lists, mode, batch, cold), alone, strict=True)
            ):
                one.add(number, *pair)
            one.seconds = time.perf_counter() - began
            found[name] = vars(one)
            counts = f"{one.answers} answers, {one.orders} orders, {one.reasonings} reasonings"
            print(f"  {name}: {counts} differ; scores by {one.score:.1e}", flush=True)
    return found


def main(
    fast: Annotated[int, typer.Option(help="lists ranked in fast mode")] = 1000,
    reason: Annotated[int, typer.Option(help="lists ranked in reason mode")] = 100,
    batches: Annotated[str, typer.Option(help="sizes of batches")] = "1,16,64",
    model: Annotated[str, typer.Option(help="checkpoint")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints, and writes a JSON file if asked."""
    sizes = [int(size) for size in batches.split(",")]
    config = EngineConfig(max_sequences=max(sizes))
    with Reranker.from_pretrained(model, config=config) as reranker:
        counts: dict[Mode, int] = {"fast": fast, "reason": reason}
        found = {
            mode: measure(reranker, random_lists(count), mode, sizes)
            for mode, count in counts.items()
            if count
        }
        about = {"model": reranker.name, "dtype": str(reranker.model.dtype).removeprefix("torch.")}
    if out is not None:
        result = {"machine": machine.card("cpu"), **about, "sizes": SIZES, "compared": found}
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
