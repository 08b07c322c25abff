"""Fits from which confidence on the fast answer is good enough, for ``mode="auto"``.

python -m retrv_r1.eval.auto CHECKPOINT DATASET… --plot auto.png
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import typer

from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.ranking import CellRun
from retrv_r1.eval.validation import rank_validation, write_value
from retrv_r1.rerank.steps import confidence

GAIN, TOKENS = 0.9, 0.35
"""Least share of reasoning's gain that is wanted, and the largest share of its tokens."""


@dataclass(frozen=True)
class AutoList:
    """One list, answered in both modes.

    Args:
        score: confidence of the fast answer; see :func:`retrv_r1.rerank.steps.confidence`.
        fast, reason: whether the answer of that mode is relevant.
        fast_tokens, reason_tokens: tokens written in that mode.
    """

    score: float
    fast: bool
    reason: bool
    fast_tokens: int
    reason_tokens: int


@dataclass(frozen=True)
class AutoPoint:
    """What a threshold gives.

    Args:
        threshold: confidence from which the fast answer is returned.
        accuracy: share of lists with a relevant answer.
        tokens: written tokens, as a share of those of reasoning about every list.
    """

    threshold: float
    accuracy: float
    tokens: float


@dataclass(frozen=True)
class AutoFit:
    """A fitted threshold.

    Args:
        threshold: confidence from which the fast answer is returned; 0 if reasoning gains nothing.
        accuracy, tokens: what it gives; see :class:`AutoPoint`.
        fast, reason: share of lists with a relevant answer in each mode.
        gain, gain_error: ``reason - fast``, and its standard error.
        share: share of the gain that the threshold keeps; 0 if there is none.
        meets: whether it keeps the share of the gain that is wanted at the tokens allowed; if not,
            it is the point farthest above random choice of lists.
        lists: number of validation lists.
        points: all thresholds that differ in what they give, rising.
    """

    threshold: float
    accuracy: float
    tokens: float
    fast: float
    reason: float
    gain: float
    gain_error: float
    share: float
    meets: bool
    lists: int
    points: tuple[AutoPoint, ...]

    def __str__(self) -> str:
        about = (
            f"{self.lists} lists: fast {self.fast:.1%} right, reasoning {self.reason:.1%}, "
            f"gain {self.gain:+.1%} ± {self.gain_error:.1%}"
        )
        if self.gain <= 0:
            return f"{about}; reasoning gains nothing: the threshold is 0, which never reasons"
        kind = "kept" if self.meets else "kept, the best trade-off that there is"
        return (
            f"{about}; threshold {self.threshold:.3f}: {self.accuracy:.1%} right, {self.share:.0%} "
            f"of the gain at {self.tokens:.0%} of the tokens {kind}"
        )


def fit(lists: Sequence[AutoList], gain: float = GAIN, tokens: float = TOKENS) -> AutoFit:
    """The smallest threshold that keeps a share of reasoning's gain at a share of its tokens.

    If there is none, the one that keeps most more of the gain than it takes of the tokens.

    Args:
        gain, tokens: the least share of the gain, and the largest share of the tokens.
    Raises:
        EvalError: there is no list.
    """
    if not lists:
        raise EvalError("a threshold needs at least one list: give more queries")
    points = _points(lists)
    fast, reason = (fmean(getattr(one, mode) for one in lists) for mode in ("fast", "reason"))
    full = reason - fast
    differences = [float(one.reason) - float(one.fast) for one in lists]
    error = stdev(differences) / math.sqrt(len(lists)) if len(lists) > 1 else math.nan

    def share(point: AutoPoint) -> float:
        return (point.accuracy - fast) / full if full > 0 else 0.0

    good = [p for p in points if full > 0 and share(p) >= gain and p.tokens <= tokens]
    if full <= 0:
        chosen = points[0]
    elif good:
        chosen = good[0]
    else:
        chosen = max(points, key=lambda point: share(point) - point.tokens)
    return AutoFit(
        chosen.threshold,
        chosen.accuracy,
        chosen.tokens,
        fast,
        reason,
        full,
        error,
        share(chosen),
        bool(good),
        len(lists),
        tuple(points),
    )


def _points(lists: Sequence[AutoList]) -> list[AutoPoint]:
    """What each threshold gives; they lie between the scores, the first is 0."""
    scores = sorted({one.score for one in lists})
    between = [(low + high) / 2 for low, high in pairwise(scores)]
    thresholds = [0.0, *between, *([1.0] if scores[-1] < 1 else [])]
    whole = sum(one.reason_tokens for one in lists)
    points = []
    for threshold in thresholds:
        right = written = 0
        for one in lists:
            reasons = one.score < threshold
            right += one.reason if reasons else one.fast
            written += one.fast_tokens + (one.reason_tokens if reasons else 0)
        points.append(AutoPoint(threshold, right / len(lists), written / whole))
    return points


def fit_auto_threshold(
    model_dir: str | Path,
    datasets: str | Path | Sequence[str | Path],
    *,
    k: int = 50,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    plot: str | Path | None = None,
) -> AutoFit:
    """Fits ``auto_threshold`` on val splits, and writes it to the config.

    To be called after :func:`retrv_r1.eval.calibrate`, which changes the scores.

    Args:
        model_dir: directory of a checkpoint; its ``config.json`` is changed.
        datasets: directories in M-BEIR's layout with a val split; their lists count alike.
        k: number of candidates per list, at most the reranker's window.
        limit, batch_size, seed, device: see :class:`retrv_r1.eval.settings.EvalSettings`.
        plot: PNG file to draw accuracy against tokens to; needs matplotlib.
    Raises:
        CheckpointError: no such directory, or no first stage in it.
        EvalError: no val split, no lists, or no matplotlib for the plot.
    """
    if plot is not None:
        need_matplotlib()
    runs = rank_validation(
        model_dir,
        datasets,
        k=(k,),
        modes=("fast", "reason"),
        full_tokens=False,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    found = fit([one for run in runs for one in _lists(run)])
    write_value(Path(model_dir) / "config.json", "auto_threshold", found.threshold)
    if plot is not None:
        draw(found, Path(plot))
    return found


def _lists(run: CellRun) -> list[AutoList]:
    """The lists of a cell."""
    of_mode = {system.mode: outcomes for (system, _), outcomes in run.reranked.items()}
    return [
        AutoList(
            score=confidence(fast.scores[0], fast.none_of_these),
            fast=fast.answer in run.positives[fast.qid],
            reason=reason.answer in run.positives[reason.qid],
            fast_tokens=fast.generated,
            reason_tokens=reason.generated,
        )
        for fast, reason in zip(of_mode["fast"], of_mode["reason"], strict=True)
    ]


def draw(found: AutoFit, path: Path) -> None:
    """Draws accuracy against tokens, with the chosen threshold, as PNG.

    Raises:
        EvalError: matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tokens, right = ([100 * getattr(p, n) for p in found.points] for n in ("tokens", "accuracy"))
    axes.plot(tokens, right, ".-", color="#1f6fb2", ms=3, lw=1, label="auto, by threshold")
    axes.axhline(100 * found.fast, color="#8fb8de", lw=1, label="fast")
    axes.axhline(100 * found.reason, color="#d9772b", lw=1, label="reason")
    axes.axvline(100 * TOKENS, color="black", lw=0.8, ls=":", label=f"{TOKENS:.0%} of the tokens")
    label = f"threshold {found.threshold:.2f}"
    axes.plot([100 * found.tokens], [100 * found.accuracy], "o", color="black", label=label)
    axes.set_xlabel("written tokens, % of reasoning's")
    axes.set_ylabel("lists with a relevant answer, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Software": None})


def need_matplotlib() -> None:
    """Raises an :class:`EvalError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise EvalError("a plot needs matplotlib: pip install matplotlib") from error


def main(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a checkpoint; it is changed")],
    datasets: Annotated[
        list[Path], typer.Argument(help="data sets whose validation lists are used")
    ],
    k: Annotated[int, typer.Option(help="candidates per list")] = 50,
    limit: Annotated[int | None, typer.Option(help="queries per cell")] = None,
    device: Annotated[str, typer.Option(help="device")] = "cpu",
    plot: Annotated[Path | None, typer.Option(help="PNG file for the plot")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for all points")] = None,
) -> None:
    """Fits the threshold of mode auto, and writes it to the checkpoint's config."""
    found = fit_auto_threshold(checkpoint, datasets, k=k, limit=limit, device=device, plot=plot)
    if out is not None:
        out.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    typer.run(main)
