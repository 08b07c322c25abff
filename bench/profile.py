"""Time of one request by function, and its memory: a table, and a picture like a flame graph.

python -m bench.profile --model bench-small --k 50 --picture profile.png
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
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
from bench.suites.engine.workload import PacedGeneration, Workload
from retrv_engine import LocalEngine, Sampling, batch, decode, qwen_layers, runner
from retrv_engine.job import Extend
from retrv_kernels.linear import PreparedLinear
from retrv_r1 import Reranker
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.model.icm import InformationCompressor
from retrv_r1.rerank.feature_encoder import FeatureEncoder

SpanPath = tuple[str, ...]
PHASES = ("decode", "inspection", "prefill")  # a step is named after the last of these in it
FORMS: dict[str, Callable[[Workload, int], Callable[[], Any]]] = {
    "transformers, full tokens": lambda w, k: plain(w, [w.request(k, k, full=True, tokens=8)]),
    "transformers, compressed": lambda w, k: plain(w, [w.request(k, k, tokens=64)]),
    "local, compressed": lambda w, k: local(w, [w.request(k, k, tokens=64)]),
    "local, 8 rollouts": lambda w, k: local(w, [w.request(k, k, tokens=64)] * 8),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Spans:
    """Seconds spent inside named functions, by the functions around them."""

    def __init__(self) -> None:
        self.seconds: dict[SpanPath, float] = {}
        self.stack: list[str] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Adds the time inside to a name, under the spans that are open."""
        self.stack.append(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(tuple(self.stack), time.perf_counter() - began)
            self.stack.pop()

    def add(self, path: SpanPath, seconds: float) -> None:
        """Adds time to a path of names."""
        self.seconds[path] = self.seconds.get(path, 0.0) + seconds

    def patch(self, owner: Any, attribute: str, name: str) -> Any:
        """A patch that times a function."""
        function = getattr(owner, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*arguments, **options)

        # A method's `self` is one of the arguments.
        return patch.object(owner, attribute, timed)

    def own(self, path: SpanPath) -> float:
        """Seconds outside of the spans inside."""
        inside = (s for p, s in self.seconds.items() if p[:-1] == path)
        return self.seconds[path] - sum(inside)


def profile(model: str, k: int, tokens: int, inspections: int) -> Spans:
    """Times one request without cached features, after one that warms up."""
    network, processor = small.small() if model == "bench-small" else load_checkpoint(model)
    reranker = Reranker(network, processor)
    assert isinstance(reranker.engine, LocalEngine)
    reranker.engine.generation_type = PacedGeneration
    pictures = np.random.default_rng(0).integers(0, 256, (k, small.SIDE, small.SIDE, 3), np.uint8)
    candidates = [Image.fromarray(picture) for picture in pictures]
    sampling = Sampling(max_reasoning_tokens=tokens, max_inspections=inspections)
    reranker.rank("something else", candidates[:4], sampling=sampling)
    spans, step, run = Spans(), LocalEngine.step, runner.ModelRunner.run

    def timed_step(engine: LocalEngine) -> bool:
        before = engine.stats().seconds
        with spans.span("step"):
            more = step(engine)
            for name, seconds in engine.stats().seconds.items():
                if name != "run" and seconds > before[name]:
                    spans.add((*spans.stack, name), seconds - before[name])
        return more

    def named_run(self: runner.ModelRunner, extends: Sequence[Extend]) -> Any:
        spans.stack[1] = max((extend.job.phase for extend in extends), key=PHASES.index)
        return run(self, extends)

    with ExitStack() as stack:
        for owner, attribute, name in (
            (batch.Plan, "of", "plan"),
            (runner, "splice_features", "splice"),
            (decode.DecodeStep, "fill", "plan"),
            (qwen_layers.Layers, "forward", "layers"),
            (FeatureEncoder, "encode", "features"),
            (InformationCompressor, "tokens", "compression"),
            (PreparedLinear, "forward", "linear"),
        ):
            stack.enter_context(spans.patch(owner, attribute, name))
        stack.enter_context(patch.object(LocalEngine, "step", timed_step))
        stack.enter_context(patch.object(runner.ModelRunner, "run", named_run))
        with spans.span("request"):
            reranker.rank("something", candidates, sampling=sampling)
    return spans


def peak(form: str, k: int) -> float:
    """MiB that a call needs at its peak, above the model; run it in a separate process."""
    work = Workload.small("cpu")
    call = FORMS[form](work, k)
    device = Device()
    before = device.held()
    return (device.peak(call) - before) / 2**20


def table(spans: Spans) -> Table:
    """Seconds and shares, indented by depth; "rest" is the time outside of inner spans."""
    total = spans.seconds["request",]
    shown = Table("phase", "seconds", "share")
    for path, seconds, depth in _rows(spans):
        share = f"{100 * seconds / total:.1f} %"
        shown.add_row("  " * depth + path[-1], f"{seconds:.3f}", share)
    return shown


def _rows(spans: Spans, above: SpanPath = ()) -> Iterator[tuple[SpanPath, float, int]]:
    children = [path for path in spans.seconds if path[:-1] == above]
    for path in sorted(children, key=lambda path: -spans.seconds[path]):
        yield path, spans.seconds[path], len(above)
        yield from _rows(spans, path)
    if above and children:
        yield (*above, "rest"), spans.own(above), len(above)


def draw(spans: Spans, path: Path, caption: str) -> None:
    """Draws spans below those that contain them, as wide as their time."""
    figure = Figure(figsize=(10, 3.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = {"features": "#d9772b", "compression": "#f2b880", "layers": "#1f6fb2"}

    def bars(above: SpanPath, left: float) -> None:
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
    model: Annotated[str, typer.Option(help="bench-small, or a checkpoint.")] = "bench-small",
    k: Annotated[int, typer.Option(help="Number of candidates, all pictures.")] = 50,
    tokens: Annotated[int, typer.Option(help="Number of tokens of reasoning.")] = 64,
    inspections: Annotated[int, typer.Option(help="Number of inspections.")] = 3,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure peak memory.")] = False,
    picture: Annotated[Path | None, typer.Option(help="PNG file for the picture.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
) -> None:
    """Profile one request of the embedded engine with empty caches, pictures included."""
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
