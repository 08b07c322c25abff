"""Curves of a training run: averages as JSON lines, and their drawing."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers.trainer_callback import ProgressCallback

from retrv_r1.train.stage import Stage


class Recorder(ProgressCallback):
    """Shows a progress bar, and writes averages of a stage's metrics as JSON lines.

    Attributes:
        processes: processes that train; one records, and counts what all of them do.
    """

    def __init__(self, path: Path, stage: Stage) -> None:
        super().__init__()
        self.path, self.stage = path, stage
        self.sums: dict[str, list[float]] = {}
        self.since = time.time()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = self.samples = 0
        self.processes = 1

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds spent inside to a part of training."""
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def add(self, metrics: dict[str, float]) -> None:
        """Adds one step's metrics."""
        self.steps += 1
        self.samples += self.processes * int(metrics.pop("samples", 0))
        for name, value in metrics.items():
            self.sums.setdefault(name, []).append(value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Opens the bar, without a total where time decides how many steps there are."""
        super().on_train_begin(args, state, control, **options)
        if self.training_bar is not None and self.stage.schedule is not None:
            self.training_bar.total = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Writes the averages since the last log; shows loss and speed beside the bar."""
        if not logs or "loss" not in logs:
            return
        elapsed, self.since = time.time() - self.since, time.time()
        tokens = self.processes * sum(self.sums.pop("tokens", []))
        row = {"step": state.global_step, "loss": logs["loss"], "lr": logs.get("learning_rate")}
        row |= {name: sum(v) / len(v) for name, v in self.sums.items()}
        row |= {"tokens_per_s": tokens / elapsed, "seconds": elapsed}
        self.sums = {}
        if self.training_bar is not None:
            self.training_bar.set_postfix(
                loss=f"{row['loss']:.3f}", tokens_per_s=int(tokens / elapsed)
            )
        self._write(row)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Validates at every checkpoint, unless that takes too much of a time limit."""
        schedule = self.stage.schedule
        if schedule is None or not schedule.validate_at_end or schedule.ended:
            self.validate(state.global_step)

    def validate(self, step: int) -> None:
        """Validates and writes the metrics; the time does not count as training."""
        started = time.time()
        self.stage.model.eval()
        with torch.no_grad(), self.timed("validation"):
            metrics = self.stage.validate()
        self.stage.model.train()
        if metrics:
            self._write({"step": step, **metrics})
        self.since += time.time() - started

    def _write(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def draw_curves(path: Path, title: str) -> Path:
    """Draws the metrics of a curve file over steps, as a PNG beside it; returns its path.

    Sixteen colours take a quarter of the bytes, and checkpoints carry their curves.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    skip = {"step", "lr", "seconds"}
    names = sorted({name for row in rows for name in row} - skip)
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axis.set_visible(True)
        axis.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 20 else "")
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    target = path.with_suffix(".png")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    few = Image.open(drawn).convert("RGB").quantize(16, dither=Image.Dither.NONE)
    few.save(target, optimize=True, dpi=(110, 110))
    return target


def trim_curves(path: Path, step: int) -> None:
    """Removes the lines of a curve file that follow a step, from which a run resumes."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")
