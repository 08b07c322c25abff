"""Where the time of one request goes, and its memory: a table, and a picture like a flame graph.

python -m bench.profile --model bench-small --k 50 --picture profile.png
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench import machine, report, small
from bench.device import Device
from bench.suites.engine.entries import local, plain
from bench.suites.engine.prompts import Paced, World
from retrv_engine import Sampling, attention, decode, lean, runner
from retrv_engine import local as local_engine
from retrv_engine.scheduler import Scheduler
from retrv_kernels.linear import PreparedLinear
from retrv_r1 import Reranker
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.rerank.feature_encoder import FeatureEncoder

Path_ = tuple[str, ...]
PHASES = ("decode", "inspection", "prefill")  # a step is named after the last that it has
FORMS: dict[str, Callable[[World, int], Callable[[], Any]]] = {
    "transformers, full tokens": lambda w, k: plain(w, [w.request(k, k, full=True, tokens=8)]),
    "transformers, compressed": lambda w, k: plain(w, [w.request(k, k, tokens=64)]),
    "local, compressed": lambda w, k: local(w, [w.request(k, k, tokens=64)]),
    "local, 8 rollouts": lambda w, k: local(w, [w.request(k, k, tokens=64)] * 8),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Spans:
    """Seconds spent inside named functions, by the functions around them."""

    def __init__(self) -> None:
        self.seconds: dict[Path_, float] = {}
        self.stack: list[str] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds the time inside to a name below those that are open."""
        self.stack.append(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(tuple(self.stack), time.perf_counter() - began)
            self.stack.pop()

    def add(self, path: Path_, seconds: float) -> None:
        """Adds time to a path of names."""
        self.seconds[path] = self.seconds.get(path, 0.0) + seconds

    def patch(self, owner: Any, attribute: str, name: str) -> Any:
        """A patch that times a function."""
        function = getattr(owner, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*arguments, **options)

        # `self` of a method is an argument as any other.
        return patch.object(owner, attribute, timed)

    def own(self, path: Path_) -> float:
        """Seconds that belong to none of the functions inside."""
        inside = (s for p, s in self.seconds.items() if p[:-1] == path)
        return self.seconds[path] - sum(inside)


def profile(model: str, k: int, tokens: int, inspections: int) -> Spans:
    """Times one request with all its features missing, after one that warms up."""
    network, processor = small.small() if model == "bench-small" else load_checkpoint(model)
    reranker = Reranker(network, processor)
    reranker.engine.generation_type = Paced
    pictures = np.random.default_rng(0).integers(0, 256, (k, small.SIDE, small.SIDE, 3), np.uint8)
    candidates = [Image.fromarray(picture) for picture in pictures]
    sampling = Sampling(max_reasoning_tokens=tokens, max_inspections=inspections)
    reranker.rank("something else", candidates[:4], sampling=sampling)
    spans, scheduled = Spans(), Scheduler.schedule

    def schedule(self: Scheduler) -> Any:
        began = time.perf_counter()
        extends = scheduled(self)
        if phases := [local_engine._phase(extend) for extend in extends]:
            spans.stack[1] = max(phases, key=PHASES.index)  # what was a step until now
        spans.add((*spans.stack, "schedule"), time.perf_counter() - began)
        return extends

    with ExitStack() as stack:
        for owner, attribute, name in (
            (local_engine.LocalEngine, "step", "step"),
            (local_engine.LocalEngine, "_take", "sample"),
            (local_engine.LocalEngine, "_splice", "load"),
            (attention.Plan, "of", "plan"),
            (runner, "splice_features", "splice"),
            (runner.ModelRunner, "_pieces", "plan"),
            (decode.DecodeStep, "fill", "plan"),
            (lean.Layers, "forward", "layers"),
            (FeatureEncoder, "encode", "features"),
            (InformationCompressor, "tokens", "compression"),
            (PreparedLinear, "forward", "linear"),
        ):
            stack.enter_context(spans.patch(owner, attribute, name))
        stack.enter_context(patch.object(Scheduler, "schedule", schedule))
        with spans.span("request"):
            reranker.rank("something", candidates, sampling=sampling)
    return spans


def peak(form: str, k: int) -> float:
    """MiB that a call needs above what was there before it: for a process of its own."""
    world = World.small("cpu")
    call = FORMS[form](world, k)
    device = Device()
    before = device.held()
    return (device.peak(call) - before) / 2**20


def table(spans: Spans) -> Table:
    """Seconds and shares, indented by depth; what belongs to no function inside is "rest"."""
    total = spans.seconds["request",]
    shown = Table("phase", "seconds", "share")
    for path, seconds, depth in _rows(spans):
        share = f"{100 * seconds / total:.1f} %"
        shown.add_row("  " * depth + path[-1], f"{seconds:.3f}", share)
    return shown


def _rows(spans: Spans, above: Path_ = ()) -> Iterator[tuple[Path_, float, int]]:
    children = [path for path in spans.seconds if path[:-1] == above]
    for path in sorted(children, key=lambda path: -spans.seconds[path]):
        yield path, spans.seconds[path], len(above)
        yield from _rows(spans, path)
    if above and children:
        yield (*above, "rest"), spans.own(above), len(above)


def draw(spans: Spans, path: Path, caption: str) -> None:
    """Functions below those that call them, as wide as their time."""
    figure = Figure(figsize=(10, 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = {"features": "#d9772b", "compression": "#f2b880", "layers": "#1f6fb2"}

    def bars(above: Path_, left: float) -> None:
        children = [one for one in spans.seconds if one[:-1] == above]
        for child in sorted(children, key=lambda one: -spans.seconds[one]):
            width = spans.seconds[child]
            colour = colours.get(child[-1], "#8fb8de" if child[-1] == "linear" else "#c9ccd1")
            axes.barh(-len(above), width, 0.94, left, color=colour, edgecolor="white", lw=0.5)
            if width > 0.04 * spans.seconds["request",]:
                label = f"{child[-1]}\n{width:.2f} s"
                axes.text(
                    left + width / 2, -len(above), label, ha="center", va="center", fontsize=7
                )
            bars(child, left)
            left += width

    bars((), 0.0)
    axes.set_yticks([])
    axes.set_xlabel("seconds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(caption, fontsize=9)
    figure.savefig(path, metadata={"Software": None})


@app.command()
def main(
    model: Annotated[str, typer.Option(help="bench-small or a checkpoint.")] = "bench-small",
    k: Annotated[int, typer.Option(help="Candidates, all of them pictures.")] = 50,
    tokens: Annotated[int, typer.Option(help="Tokens of reasoning.")] = 64,
    inspections: Annotated[int, typer.Option(help="Candidates to inspect.")] = 3,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory of each form.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw a PNG here.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Save the numbers here.")] = None,
) -> None:
    """Profile one request of the embedded engine, cold, its pictures not encoded yet."""
    console = Console()
    card = machine.card("cpu")
    report.render_card(card, console)
    spans = profile(model, k, tokens, inspections)
    console.print(table(spans))
    result: dict[str, Any] = {"card": card, "model": model, "k": k, "tokens": tokens}
    result |= {"inspections": inspections}
    result["seconds"] = {"/".join(path): seconds for path, seconds in spans.seconds.items()}
    if memory:
        result["peak_mib"] = {}
        spawn = multiprocessing.get_context("spawn")
        for form in FORMS:
            with ProcessPoolExecutor(1, spawn) as process:
                result["peak_mib"][form] = process.submit(peak, form, k).result()
            console.print(f"{form}: {result['peak_mib'][form]:.0f} MiB above the weights")
    if picture is not None:
        what = f"{model}, K = {k}, {tokens} tokens, {inspections} inspections"
        draw(spans, picture, f"{what}; {report.describe(card)}, commit {card['commit']}")
    if output is not None:
        output.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    app()
