"""The command line: arguments and calls; the work is done elsewhere.

Heavy modules are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retrv_r1 import __version__
from retrv_r1.command.ablate import ablate
from retrv_r1.command.arguments import AsJson, TrainDevice, TrainDtype
from retrv_r1.command.chains import chains
from retrv_r1.command.evaluate import evaluate
from retrv_r1.command.lists import lists
from retrv_r1.command.plan import plan
from retrv_r1.command.rerank import rerank
from retrv_r1.command.serve import serve
from retrv_r1.command.shell import Group, clear_errors, echo, print_json, stdout
from retrv_r1.command.stability import stability
from retrv_r1.command.verify import verify
from retrv_r1.train import STAGES

app = typer.Typer(
    cls=Group,
    help="Rerank pictures and texts with a model that reasons about two tokens per candidate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Build data sets.", no_args_is_help=True)
app.command()(rerank)
app.command("eval")(evaluate)
app.command()(stability)
app.command()(serve)
app.command()(verify)
app.command()(plan)
app.command()(ablate)
data.command()(lists)
data.command()(chains)
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"retrv-r1 {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@data.command()
def pictographs(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    seed: Annotated[
        int, typer.Option(help="Seed that decides what is held out and what is asked.")
    ] = 0,
    style: Annotated[
        list[str] | None,
        typer.Option(help="Picture style; may be given several times. Default: all styles."),
    ] = None,
    limit_concepts: Annotated[
        int | None, typer.Option(min=1, help="Number of concepts to keep, for trials.")
    ] = None,
    download: Annotated[
        bool, typer.Option(" /--no-download", help="Use only styles that are already here.")
    ] = True,
) -> None:
    """Build the pictograph set: emoji in many styles, asked in M-BEIR's task shapes."""
    from retrv_r1.data.pictographs import build

    with clear_errors():
        manifest = build(
            out,
            styles=style or None,
            seed=seed,
            size=size,
            download=download,
            limit_concepts=limit_concepts,
        )
    state = "built" if manifest.fresh else "already complete"
    echo(f"{state}: {manifest.root}  {len(manifest.counts)} tasks, hash {manifest.hash[:16]}")


@data.command()
def icons(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed that decides what is held out.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of icons of each set, for trials.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
) -> None:
    """Build the icon corpus: named icons of openly licensed sets, split by hand and by concept."""
    from retrv_r1.data.icons import build

    with clear_errors():
        built = build(out, size=size, seed=seed, limit=limit, processes=processes)
    state = "built" if built.fresh else "already complete"
    counts = built.data["pictures"]
    split = ", ".join(f"{number} {name}" for name, number in counts["split"].items())
    echo(f"{state}: {built.root}  {counts['all']} pictures ({split})")


@data.command()
def pack(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a built data set.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Pack to write.")],
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Most pictures beside those of validation, in whole sets. Default: all.",
        ),
    ] = None,
    levels: Annotated[
        int,
        typer.Option(metavar="N", help="Values that a colour channel keeps; 32 halve the file."),
    ] = 256,
) -> None:
    """Write the part of a data set that training needs into one file; takes minutes."""
    from retrv_r1.data.pack import pack as write

    echo(f"packed: {file}  {write(root, file, limit, levels) / 1e6:.1f} MB")


@app.command()
def train(
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help=f"Stage to train: {', '.join(STAGES)}.")
    ],
    config: Annotated[Path, typer.Option(help="YAML file of the stage.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result. Default: the config's.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint.")] = True,
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Folder or pack of a data set; repeatable. Default: the config's."
        ),
    ] = None,
    device: TrainDevice = None,
    dtype: TrainDtype = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that make batches. Default: 0 on a CPU, cores - 1 on a GPU."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Time limit; the schedule is stretched or compressed to fit."),
    ] = None,
) -> None:
    """Train one stage of the model and print the folder of the result."""
    from retrv_r1.train import run

    asked: dict[str, Any] = {
        "data": sources or None,
        "device": device,
        "dtype": dtype,
        "workers": workers,
        "minutes": minutes,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    echo(str(run(stage, config, out=out, resume=resume, **given)))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this installation can do, what it lacks, and how to add it."""
    from retrv_r1.command import doctor as checks

    report = checks.report()
    if as_json:
        print_json(report)
    else:
        checks.render(report, stdout())
    if report["problems"]:
        raise typer.Exit(1)
