"""``retrv-r1 ablate``: the paper's ablations, by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from retrv_r1.command.arguments import AsJson, TrainDevice, TrainDtype
from retrv_r1.command.shell import clear_errors, print_json, stdout


def ablate(
    configs: Annotated[
        Path, typer.Option(help="Folder with align.yaml, lists.yaml, sft.yaml, grpo.yaml.")
    ],
    dataset: Annotated[Path, typer.Option("--eval-data", help="Data set to measure on.")],
    out: Annotated[Path, typer.Option(help="Folder of runs and report; a killed run goes on.")],
    sources: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Data set to train on; repeatable. Default: the files' own."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from. Default: the files' own.")
    ] = None,
    first_stage: Annotated[
        Path | None, typer.Option(help="First stage of the results. Default: the files' own.")
    ] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="Only this one; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to train each variant with.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every stage, for trials.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to measure on, as in eval.")] = "val",
    cells: Annotated[list[str] | None, typer.Option("--cell", help="Only this cell.")] = None,
    k: Annotated[int, typer.Option(min=2, help="Candidates of a list.")] = 50,
    limit: Annotated[int | None, typer.Option(min=1, help="Queries of each cell.")] = None,
    mode: Annotated[Literal["reason", "fast"], typer.Option(help="Mode to measure.")] = "reason",
    candidates: Annotated[
        Path | None, typer.Option(help="Lists of another first stage, as in eval.")
    ] = None,
    device: TrainDevice = None,
    dtype: TrainDtype = None,
    as_json: AsJson = False,
) -> None:
    """Train and measure the recipe without one part at a time, beside the paper's numbers."""
    from retrv_r1.ablation.report import Measuring, render
    from retrv_r1.ablation.run import ablations
    from retrv_r1.ablation.training import Recipe
    from retrv_r1.train.machine import Machine

    console = Console(stderr=True, highlight=False)

    def told(done: int, of: int, what: str) -> None:
        if what:
            console.print(f"{done + 1} of {of}: {what}", soft_wrap=True)

    machine = Machine.of(device, dtype, 0)
    recipe = Recipe(
        configs, out / "stages", machine, tuple(sources or ()), start, first_stage, steps
    )
    measuring = Measuring(
        dataset, split, k, limit, tuple(cells or ()), mode, candidates, machine.device.type
    )
    with clear_errors():
        report: dict[str, Any] = ablations(
            recipe, measuring, out, variants or None, range(seeds), told
        )
    if as_json:
        print_json(report)
    else:
        render(report["variants"], stdout())
