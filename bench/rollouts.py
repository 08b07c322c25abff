"""Rollouts beside TRL's own generation, and a whole training step split into its parts.

python -m bench.rollouts --rounds 5 --steps 4 --out result.json

Both sample a group for one query over K pictures of the demo with the shipped model, until every
rollout has ended; the features of the pictures are computed before, and nothing else is cached.
TRL's way is one call of transformers' ``generate`` for the whole group, with the same rows in the
place of token ids, which it cannot take. It splices nothing in, so inspected rows, which only our
rollouts have, cost it nothing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import GenerationConfig

from bench import machine
from retrv_engine import EngineConfig, Sampling
from retrv_engine.plain import embed_pieces
from retrv_r1 import Reranker
from retrv_r1.rollout import FormatReward, ResultReward, RetrvGRPOTrainer, RetrvRollout, Task

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo"
PARTS = ("rollout", "rewards", "forward", "backward", "sync")


@dataclass(frozen=True)
class Round:
    """One group of rollouts: the tokens that were sampled, and the seconds that it took."""

    tokens: int
    seconds: float

    @property
    def speed(self) -> float:
        """Sampled tokens a second."""
        return self.tokens / self.seconds


def demo_tasks(candidates: int) -> list[Task]:
    """A task for each of the demo's first pictures, which are the candidates of all of them."""
    pictures = sorted(DEMO.glob("*.png"))[:candidates]
    names = (picture.stem.replace("-", " ") for picture in pictures)
    return [Task(name, pictures, answer) for answer, name in enumerate(names)]


def ours(rollout: RetrvRollout, group: int, number: int) -> Round:
    """A group by :class:`RetrvRollout`, without what the engine has cached of earlier ones."""
    task = rollout.dataset[number % len(rollout.dataset)]
    seeds = [number * group + place for place in range(group)]
    rollout.reranker.engine.flush()  # type: ignore[union-attr]
    began = time.perf_counter()
    found = rollout.sample([task] * group, seeds)
    seconds = time.perf_counter() - began
    return Round(sum(len(one.replay.sampled) for one in found if one.replay), seconds)


def trl(rollout: RetrvRollout, group: int, number: int) -> Round:
    """A group as TRL generates without another engine: one padded batch, each prompt by itself."""
    task = rollout.dataset[number % len(rollout.dataset)]
    model, tokens = rollout.model, rollout.reranker.processor.tokens
    request = rollout.group(task).request
    limit = rollout.sampling.max_reasoning_tokens + 4  # </think> <answer> label </answer>
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=True,
        temperature=rollout.sampling.temperature,
        top_p=rollout.sampling.top_p,
        top_k=0,
        pad_token_id=tokens.pad,
        eos_token_id=[tokens.end, tokens.answer_end],
    )
    torch.manual_seed(number)
    with torch.no_grad():
        began = time.perf_counter()
        rows, _, _ = embed_pieces(model, [*request.prompt, tokens.think_start], 0)
        rows = rows.expand(group, *rows.shape)
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        written = model.backbone.generate(
            inputs_embeds=rows, attention_mask=mask, generation_config=config
        )
        seconds = time.perf_counter() - began
    return Round(int((written != tokens.pad).sum()), seconds)


def compare(rollout: RetrvRollout, group: int, rounds: int) -> dict[str, Any]:
    """Speeds of both ways, in turns; the first round of each warms up and is not counted."""
    ways: dict[str, Callable[[RetrvRollout, int, int], Round]] = {"TRL": trl, "ours": ours}
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            found[name].append(way(rollout, group, number))
    kept = {name: values[1:] for name, values in found.items()}
    result: dict[str, Any] = {
        name: {
            "tokens_per_s": statistics.median(one.speed for one in values),
            "tokens": statistics.median(one.tokens for one in values),
            "seconds": statistics.median(one.seconds for one in values),
        }
        for name, values in kept.items()
    }
    pairs = zip(kept["ours"], kept["TRL"], strict=True)
    return result | {"times": statistics.median(one.speed / other.speed for one, other in pairs)}


def step_parts(rollout: RetrvRollout, group: int, steps: int) -> dict[str, float]:
    """Median seconds of a training step and of its parts; the first step is not counted."""
    from trl import GRPOConfig

    with tempfile.TemporaryDirectory() as out:
        arguments = GRPOConfig(
            out,
            max_steps=steps + 1,
            num_generations=group,
            per_device_train_batch_size=group,
            learning_rate=1e-6,
            logging_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=rollout.model.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        trainer = RetrvGRPOTrainer(rollout, [FormatReward(), ResultReward()], arguments)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row][1:]
    parts = {part: statistics.median(row[f"seconds/{part}"] for row in rows) for part in PARTS}
    return {**parts, "sum": sum(parts.values())}


def main(
    group: Annotated[int, typer.Option(help="rollouts of a group")] = 8,
    candidates: Annotated[int, typer.Option(help="pictures of a list, up to 50")] = 50,
    rounds: Annotated[int, typer.Option(help="groups that each way samples")] = 5,
    steps: Annotated[int, typer.Option(help="training steps; 0 for none")] = 4,
    limit: Annotated[int, typer.Option(help="most tokens of reasoning")] = 96,
    model: Annotated[str, typer.Option(help="checkpoint")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="JSON file for the results")] = None,
) -> None:
    """Measures and prints, and writes a JSON file if asked."""
    config = EngineConfig(max_sequences=group)
    with Reranker.from_pretrained(model, device="cpu", config=config) as reranker:
        sampling = Sampling(temperature=1.0, max_reasoning_tokens=limit, max_inspections=3)
        rollout = RetrvRollout(reranker, demo_tasks(candidates), sampling)
        found: dict[str, Any] = {"rollouts": compare(rollout, group, rounds)}
        # What TRL's way does not have.
        rollout.sampling = replace(sampling, max_inspections=0)
        found["without inspections"] = compare(rollout, group, rounds)
        rollout.sampling = sampling
        if steps:
            found["step"] = step_parts(rollout, group, steps)
    for name in ("rollouts", "without inspections"):
        for way in ("TRL", "ours"):
            typer.echo(f"{name}, {way}: {found[name][way]['tokens_per_s']:.0f} sampled tokens/s")
        typer.echo(f"{name}: × {found[name]['times']:.2f}")
    for part, seconds in found.get("step", {}).items():
        typer.echo(f"step, {part}: {seconds:.3f} s")
    if out is not None:
        about = {"model": model, "group": group, "candidates": candidates, "limit": limit}
        result = {"machine": machine.card("cpu"), **about, **found}
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    typer.run(main)
