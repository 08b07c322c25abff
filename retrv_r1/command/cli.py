"""The command line: arguments and calls; the work is done elsewhere.

Heavy modules are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retrv_r1 import __version__
from retrv_r1.command.shell import Group, engine_errors, print_json, status, stdout, usage_errors
from retrv_r1.types import Item, ItemError, RetrvError


class _Mode(StrEnum):
    reason = "reason"
    fast = "fast"


class _Engine(StrEnum):
    local = "local"
    plain = "plain"
    sglang = "sglang"


class _Weights(StrEnum):
    model = "model"
    float16 = "float16"
    int8 = "int8"


class _Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class _Stage(StrEnum):
    embed = "embed"
    pretrain = "pretrain"
    align = "align"
    sft = "sft"


class _Split(StrEnum):
    all = "all"
    style = "style"
    composition = "composition"
    unseen = "unseen"


app = typer.Typer(
    cls=Group,
    help="Rerank pictures and texts with a model that reasons about two tokens per candidate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Build data sets.", no_args_is_help=True)
app.add_typer(data, name="data")

_Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help='"tiny" (shipped), a directory, or a hub id.'
    ),
]
_Rounded = Annotated[
    _Weights,
    typer.Option("--weights", help="Round the language model's weights; on a CPU that is faster."),
]
_Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE", help="cpu, cuda or cuda:N; by default the first GPU if there is one."
    ),
]
_Numbers = Annotated[
    _Dtype | None,
    typer.Option(
        "--dtype",
        help="How weights are read; by default float32 on a CPU, as the checkpoint says on a GPU.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retrv-r1 {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def rerank(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help='What to look for; may be "" with --image.')
    ],
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...",
            help="Pictures, folders of pictures, .txt (a text a line), .jsonl (an item a line), "
            "or - for lines of standard input.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture that belongs to the query.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show only the best N.")
    ] = None,
    mode: Annotated[
        _Mode, typer.Option(help="reason: think and inspect; fast: answer off the prompt.")
    ] = _Mode.reason,
    model: _Model = "tiny",
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="How the task is put.")
    ] = None,
    engine: Annotated[
        _Engine,
        typer.Option(
            help="local: cached, continuous batches; plain: straight transformers; "
            "sglang: a SGLang server, started here unless --url names one."
        ),
    ] = _Engine.local,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A SGLang server of the same checkpoint.")
    ] = None,
    weights: _Rounded = _Weights.model,
    device: _Device = None,
    dtype: _Numbers = None,
    votes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sample N chains of thought that vote.")
    ] = 1,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep features of items here for the next run."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say what it took, and what caches gave.")
    ] = False,
    as_json: _Json = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to this file as well.")
    ] = None,
) -> None:
    """Rank candidates for a query, best first."""
    from retrv_r1.command.sources import read_candidates
    from retrv_r1.report import (
        print_ranking,
        print_stats,
        render_html,
        to_response,
        to_stats,
        write_html,
    )

    asked = _query(query, image)
    if html is not None and html.is_dir():
        raise RetrvError(f"cannot write {html}: it is a folder; name a file")
    if "-" in candidates and sys.stdin.isatty():
        sys.stderr.write("reading candidates from the terminal, one a line; end with Ctrl-D\n")
    items = list(read_candidates(candidates, sys.stdin.buffer))
    with status(f"loading {model}"), usage_errors(), engine_errors():
        from transformers.utils import logging

        from retrv_engine import EngineConfig, SGLangConfig
        from retrv_r1.rerank.reranker import Reranker

        logging.disable_progress_bar()  # the spinner says it, and stderr is for errors
        if engine is not _Engine.sglang and url is not None:
            raise ValueError("--url goes with --engine sglang")
        if engine is _Engine.sglang and weights is not _Weights.model:
            raise ValueError("--weights are rounded by the local engine: leave --engine out")
        sglang = engine is _Engine.sglang
        config = SGLangConfig(url=url) if sglang else EngineConfig(weights=weights.value)
        reranker = Reranker.from_pretrained(
            model,
            engine=engine.value,
            config=config,
            cache=cache,
            device=device,
            dtype=None if dtype is None else dtype.value,
        )
    with status(f"ranking {len(items)} candidates"), usage_errors(), engine_errors():
        results = reranker.rank(
            asked, items, top_k=top, mode=mode.value, instruction=instruction, votes=votes
        )
    took = to_stats(results, *reranker.stats()) if stats else None
    if as_json:
        print_json(to_response(results) | ({} if took is None else {"stats": took}))
    else:
        print_ranking(results, stdout(), candidates=len(items))
        if took is not None:
            print_stats(results, took, stdout())
    if html is not None:
        write_html(render_html(results, candidates=items), html)
    reranker.close()


def _query(text: str, image: Path | None) -> Item:
    """The query's item; refuses a picture file given as text, which is never meant."""
    from retrv_r1.images import SUFFIXES

    if image is None and text.lower().endswith(SUFFIXES) and os.path.isfile(text):
        raise ItemError(f'the query {text} is a picture file; write "" --image {text}')
    try:
        return Item(text=text or None, image=image)
    except ItemError as error:
        raise ItemError("the query is empty; give a text, --image, or both") from error


@data.command()
def pictographs(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    size: Annotated[int, typer.Option(help="Side of a picture in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Decides what is held out and what is asked.")] = 0,
    style: Annotated[
        list[str] | None, typer.Option(help="A picture style; repeat for several; default: all.")
    ] = None,
    limit_concepts: Annotated[
        int | None, typer.Option(min=1, help="Keep only so many concepts, for trials.")
    ] = None,
    download: Annotated[
        bool, typer.Option(" /--no-download", help="Use only styles that are already here.")
    ] = True,
) -> None:
    """Build the pictograph set: emoji in many styles, asked in M-BEIR's task shapes."""
    from retrv_r1.data.pictographs import build

    with usage_errors():
        manifest = build(
            out,
            styles=style or None,
            seed=seed,
            size=size,
            download=download,
            limit_concepts=limit_concepts,
        )
    state = "built" if manifest.fresh else "already complete"
    typer.echo(f"{state}: {manifest.root}  {len(manifest.counts)} tasks, hash {manifest.hash[:16]}")


@data.command()
def pack(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a built data set.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack to write.")],
) -> None:
    """Put what training needs of a built data set into one file; some minutes."""
    from retrv_r1.data.pack import pack as write

    typer.echo(f"packed: {file}  {write(root, file) / 1e6:.1f} MB")


@app.command()
def train(
    stage: Annotated[
        _Stage, typer.Argument(metavar="STAGE", help="embed, pretrain, align or sft.")
    ],
    config: Annotated[Path, typer.Option(help="YAML file of the stage.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the result goes; the config's by default.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint.")] = True,
    source: Annotated[
        Path | None,
        typer.Option("--data", help="Folder or pack of the data set; the config's by default."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16, the default on a GPU.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that make batches; 0 by default on a CPU.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Be done in this time, whatever steps are planned.")
    ] = None,
) -> None:
    """Train one stage of the model; prints the folder of the result."""
    from retrv_r1.train import run

    asked: dict[str, Any] = {
        "data": source,
        "device": device,
        "dtype": dtype,
        "workers": workers,
        "minutes": minutes,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    typer.echo(str(run(stage.value, config, out=out, resume=resume, **given)))


@app.command("eval")
def evaluate(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A data set's folder, in M-BEIR's layout.")
    ],
    model: _Model = "tiny",
    k: Annotated[str, typer.Option(help="Candidate counts, comma-separated.")] = "10,50",
    split: Annotated[_Split, typer.Option(help="What was held out.")] = _Split.all,
    limit: Annotated[int | None, typer.Option(min=1, help="Queries per cell.")] = None,
    modes: Annotated[
        list[_Mode] | None, typer.Option("--mode", help="May be given twice; both by default.")
    ] = None,
    full_tokens: Annotated[
        bool, typer.Option(help="Also rerank from candidates at full length.")
    ] = True,
    int8_keys: Annotated[
        bool, typer.Option("--int8-keys", help="Round relation keys to int8, as an index does.")
    ] = False,
    weights: _Rounded = _Weights.model,
    device: _Device = None,
    dtype: _Numbers = None,
    out: Annotated[Path | None, typer.Option(help="Where the report is written.")] = None,
    as_json: _Json = False,
) -> None:
    """Measure recall over a data set's tasks, with the time and tokens it took."""
    counts = _counts(k)
    from retrv_r1.eval import render, run

    report = run(
        dataset,
        model=model,
        k=counts,
        split=split.value,
        limit=limit,
        modes=[mode.value for mode in modes or _Mode],
        full_tokens=full_tokens,
        int8_keys=int8_keys,
        weights=weights.value,
        device=device,
        dtype=None if dtype is None else dtype.value,
        out=out,
    )
    if as_json:
        print_json(report)
    else:
        render(report, stdout())


@app.command()
def doctor(as_json: _Json = False) -> None:
    """Say what this installation can do, what it lacks, and how to add it."""
    from retrv_r1.command import doctor as checks

    report = checks.report()
    if as_json:
        print_json(report)
    else:
        checks.render(report, stdout())
    if report["problems"]:
        raise typer.Exit(1)


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 2:
        raise typer.BadParameter(f"{text!r} is not a list like 10,50", param_hint="--k")
    return counts
