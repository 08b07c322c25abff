"""The command ``eval``: measures recall over the tasks of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from retrv_r1.command.arguments import (
    AsJson,
    DeviceName,
    EarlierWindows,
    Instructions,
    ModelName,
    Order,
    PoolName,
    RoundedWeights,
    RunFormat,
    Split,
    WeightsDtype,
)
from retrv_r1.command.shell import print_json, stdout
from retrv_r1.types import Mode

if TYPE_CHECKING:
    from retrv_r1.eval import EvalOptions

_WHAT, _FIRST, _PROMPTS = "What is evaluated", "First stage", "Prompts"

Counts = Annotated[
    str, typer.Option("--k", help="Candidate counts, separated by commas.", rich_help_panel=_WHAT)
]
SplitName = Annotated[
    Split,
    typer.Option(
        help="test, val, or a part of the pictograph set's test cells.", rich_help_panel=_WHAT
    ),
]
Cells = Annotated[
    list[str] | None,
    typer.Option(
        "--cell",
        metavar="NAME",
        help="Cell, such as cirr_task7; may be given several times.",
        rich_help_panel=_WHAT,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out what has no picture that can be used.",
        rich_help_panel=_WHAT,
    ),
]
PoolChoice = Annotated[
    PoolName, typer.Option("--pool", help="Candidates to search.", rich_help_panel=_FIRST)
]
Limit = Annotated[int | None, typer.Option(min=1, help="Queries per task.", rich_help_panel=_WHAT)]
Modes = Annotated[
    list[str] | None,  # typer takes no list of Literals
    typer.Option(
        "--mode",
        metavar="MODE",
        help="reason or fast; may be given twice. Default: both.",
        rich_help_panel=_WHAT,
    ),
]
FullTokens = Annotated[
    bool | None,
    typer.Option(
        help="Also rerank with candidates at full length. Default: yes.", rich_help_panel=_WHAT
    ),
]
Readings = Annotated[
    list[str] | None,
    typer.Option(
        "--reading",
        metavar="READING",
        help="compressed, full or pointwise; may be given several times. Default: compressed, and "
        "full unless --no-full-tokens is given.",
        rich_help_panel=_WHAT,
    ),
]
Fuse = Annotated[
    str | None,
    typer.Option(
        metavar="W",
        help="With the reading pointwise: also rank by the first stage's score + W times P(yes). "
        "W may be lamra: 1, but 0.5 and 0.1 for MSCOCO's tasks 0 and 3.",
        rich_help_panel=_WHAT,
    ),
]
Candidates = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="TREC run or LamRA's JSON of another first stage, or a folder with one for each cell; "
        "the model needs no first stage then.",
        rich_help_panel=_FIRST,
    ),
]
InstructionsChoice = Annotated[
    Instructions,
    typer.Option(
        "--instructions",
        help="Phrasing of the task: the first, a random one for each query, or none.",
        rich_help_panel=_PROMPTS,
    ),
]
OrderChoice = Annotated[
    Order,
    typer.Option(
        "--order",
        help="Order of candidates in prompts: shuffled, or as the first stage retrieved them.",
        rich_help_panel=_PROMPTS,
    ),
]
Window = Annotated[
    int, typer.Option(min=2, help="Candidates in one prompt.", rich_help_panel=_PROMPTS)
]
Earlier = Annotated[
    EarlierWindows,
    typer.Option(
        "--earlier-windows",
        help="Mode of the windows before the last: fast, or the same as the last one's.",
        rich_help_panel=_PROMPTS,
    ),
]
Calibrated = Annotated[
    bool,
    typer.Option(
        "--calibration",
        help="Also rank lists of 5 to K candidates and report whether scores are probabilities.",
        rich_help_panel=_WHAT,
    ),
]
WithoutAnswer = Annotated[
    float,
    typer.Option(
        min=0.0, max=0.99, help="Chance that such a list lacks the answer.", rich_help_panel=_WHAT
    ),
]
Seed = Annotated[
    int,
    typer.Option(help="Seed of queries, phrasings, order and intervals.", rich_help_panel=_PROMPTS),
]
Format = Annotated[
    RunFormat,
    typer.Option(
        "--run-format",
        help="Run files of six columns, or of seven as UniIR reads them.",
    ),
]


def evaluate(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Folder of a data set in M-BEIR's layout.")
    ],
    model: ModelName = "tiny",
    split: SplitName = "all",
    cells: Cells = None,
    skip_bad: SkipBad = False,
    k: Counts = "10,50",
    limit: Limit = None,
    modes: Modes = None,
    full_tokens: FullTokens = None,
    readings: Readings = None,
    fuse: Fuse = None,
    calibration: Calibrated = False,
    without_answer: WithoutAnswer = 0.25,
    pool: PoolChoice = "local",
    candidates: Candidates = None,
    instructions: InstructionsChoice = "first",
    order: OrderChoice = "shuffled",
    window: Window = 50,
    earlier_windows: Earlier = "fast",
    seed: Seed = 0,
    int8_keys: Annotated[
        bool, typer.Option("--int8-keys", help="Round relation keys to int8, as an index does.")
    ] = False,
    weights: RoundedWeights = "model",
    device: DeviceName = None,
    dtype: WeightsDtype = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report, and of the global pool's gigabytes.")
    ] = None,
    run_format: Format = "trec",
    as_json: AsJson = False,
) -> None:
    """Measure recall over the tasks of a data set, with the time and the tokens spent."""
    counts, weight = _counts(k), _weight(fuse)
    from retrv_r1.eval import render, run

    options: EvalOptions = {
        "modes": cast("tuple[Mode, ...]", tuple(modes or get_args(Mode))),
        "full_tokens": full_tokens,
        "readings": cast("Any", readings and tuple(readings)),
        "fuse": weight,
        "calibration": calibration,
        "without_answer": without_answer,
        "pool": pool,
        "skip_bad": skip_bad,
        "candidates": None if candidates is None else str(candidates),
        "instructions": instructions,
        "order": order,
        "window": window,
        "earlier_windows": earlier_windows,
        "seed": seed,
        "limit": limit,
        "int8_keys": int8_keys,
        "weights": weights,
        "run_format": run_format,
    }
    report = run(
        dataset,
        model=model,
        k=counts,
        split=split,
        cells=cells or (),
        device=device,
        dtype=dtype,
        out=out,
        **options,
    )
    if as_json:
        print_json(report)
    else:
        render(report, stdout())
    if bad := len(report["bad_cells"]):
        message = f"error: cells that were not evaluated: {bad}; the report says why"
        typer.secho(message, fg="red", err=True)
        raise typer.Exit(1)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 2:
        raise typer.BadParameter(f"{text!r} is not a list like 10,50", param_hint="--k")
    return counts


def _weight(text: str | None) -> Any:
    if text is None or text == "lamra":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number, nor lamra", param_hint="--fuse") from None
