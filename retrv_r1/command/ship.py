"""Assembles a trained checkpoint: the last stage's result, calibrated, with records of all runs.

``python -m retrv_r1.command.ship runs/tiny retrv_r1/checkpoints/tiny data/pictographs``
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrv_r1.command.shell import clean_ending, echo
from retrv_r1.model.embedder import WEIGHTS, RetrvEmbedderConfig, shared_weights
from retrv_r1.model.first_stage import FOLDER
from retrv_r1.types import RetrvError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@clean_ending()
def ship(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="Folder with one run per stage.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the checkpoint.")],
    datasets: Annotated[
        list[Path],
        typer.Argument(metavar="DATASET…", help="Data sets whose validation lists calibrate."),
    ],
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Validation queries of each cell; all by default.", metavar="N"),
    ] = None,
) -> None:
    """Assemble a checkpoint from finished runs, calibrate it, fit the threshold of mode auto, and
    write its golden scores."""
    from retrv_r1.eval.auto import fit_auto_threshold, need_matplotlib
    from retrv_r1.eval.calibration import calibrate
    from retrv_r1.eval.progress import counting
    from retrv_r1.verify.golden import cases, write_golden

    need_matplotlib()
    assemble(runs, out)
    for mode, fitted in calibrate(out, datasets, limit=limit).items():
        echo(f"{mode} {fitted}")
    plot = out / "training" / "auto.png"
    echo(f"auto {fit_auto_threshold(out, datasets, limit=limit, plot=plot)}")
    with counting("golden scores", len(cases())) as ranked:
        written = write_golden(out, ranked=ranked)
    echo(f"golden scores: {written}")


def assemble(runs: Path, out: Path, last: str = "sft") -> None:
    """Copies a stage's result to ``out``, in half precision, with every run's curves and record.

    Args:
        runs: folder with one run per stage.
        last: the stage; from ``align`` on they give a checkpoint that ranks.
    Raises:
        RetrvError: that stage has no result; ``out`` is left as it is.
    """
    if not (runs / last / "final").is_dir():
        raise RetrvError(f"{runs} has no {last}/final: train the stage {last} first")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(runs / last / "final", out)
    if not (out / FOLDER).exists():
        shutil.copytree(runs / "words" / "final", out / FOLDER)
    for weights in (out / WEIGHTS, out / FOLDER / WEIGHTS):
        _halve(weights)
    _share(out)
    records = out / "training"
    records.mkdir()
    for run in sorted(path.parent for path in runs.glob("*/record.json")):
        shutil.copy(run / "record.json", records / f"{run.name}.json")
        for kind in ("jsonl", "png"):
            (curves,) = run.glob(f"*.{kind}")
            shutil.copy(curves, records / f"{run.name}.{kind}")


def _share(out: Path) -> None:
    """Takes weights out of the first stage that are the reranker's, if its towers have them all."""
    path, known = out / FOLDER / WEIGHTS, shared_weights(out)
    own = load_file(path)
    towers = {name for name in own if name.startswith(("visual.", "text."))}
    if towers != set(known) or any(not torch.equal(own[name], known[name]) for name in towers):
        return
    _write({name: tensor for name, tensor in own.items() if name not in known}, path)
    config = RetrvEmbedderConfig.from_pretrained(out / FOLDER)
    config.shares_towers = True
    config.save_pretrained(out / FOLDER)


def _halve(weights: Path) -> None:
    """Half precision on disk keeps the checkpoint under 25 MB; its config says float32."""
    halved = {
        name: tensor.half() if tensor.is_floating_point() else tensor  # batch norms count steps
        for name, tensor in load_file(weights).items()
    }
    _write(halved, weights)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes weights that everybody may read; safetensors lets their owner alone."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


if __name__ == "__main__":
    app()
