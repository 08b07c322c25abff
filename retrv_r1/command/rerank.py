"""The command ``rerank``: candidates from files, one ranking, three ways to show it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrv_r1.command.arguments import (
    AsJson,
    DeviceName,
    ModelName,
    RoundedWeights,
    ServerUrl,
    WeightsDtype,
)
from retrv_r1.command.shell import clear_errors, print_json, status, stdout
from retrv_r1.files import check_writable
from retrv_r1.types import EngineName, Item, ItemError, Mode, RetrvError

if TYPE_CHECKING:
    from retrv_r1 import EngineConfig, Reranker, SGLangConfig
    from retrv_r1.command.arguments import Weights


def rerank(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help='What to look for; may be "" with --image.')
    ],
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...",
            help="Pictures, folders of pictures, .txt files (one text per line), .jsonl files "
            "(one item per line), or - for lines of standard input.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture that belongs to the query.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show only the N best candidates.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="reason: think and inspect candidates. fast: answer at once.")
    ] = "reason",
    model: ModelName = "tiny",
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Wording of the task.")
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="local: embedded, with a cache. plain: transformers alone. sglang: an SGLang "
            "server, started here unless --url names a running one."
        ),
    ] = "local",
    url: ServerUrl = None,
    weights: RoundedWeights = "model",
    device: DeviceName = None,
    dtype: WeightsDtype = None,
    votes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Sample N chains of thought and let them vote.")
    ] = 1,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep features of items for later runs.")
    ] = None,
    max_text_tokens: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Tokens of a text that are read; the rest is cut."),
    ] = 4096,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print times, computed rows and cache hits.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the ranking as a web page.")
    ] = None,
) -> None:
    """Rank candidates for a query, best first."""
    from retrv_r1.report import (
        print_ranking,
        print_stats,
        render_html,
        to_response,
        to_stats,
        write_html,
    )

    asked = _query(query, image)
    if html is not None:
        check_writable(html)
    items = _candidates(candidates)
    with (
        clear_errors(),
        _reranker(
            model,
            engine=engine,
            config=engine_config(engine, url, weights),
            cache=cache,
            device=device,
            dtype=dtype,
            max_text_tokens=max_text_tokens,
        ) as reranker,
    ):
        with status(f"ranking {len(items)} candidates"):
            results = reranker.rank(
                asked, items, top_k=top, mode=mode, instruction=instruction, votes=votes
            )
        counts = to_stats(results, *reranker.stats()) if stats else None
    if html is not None:  # first: it is kept where standard output cannot be written
        write_html(render_html(results, candidates=items), html)
    if as_json:
        print_json(to_response(results) | ({} if counts is None else {"stats": counts}))
    else:
        print_ranking(results, stdout(), candidates=len(items))
        if counts is not None:
            print_stats(results, counts, stdout())


def _query(text: str, image: Path | None) -> Item:
    """The query as an item; a picture file given as text is refused, because it is a mistake."""
    from retrv_r1.images import SUFFIXES

    if image is None and text.lower().endswith(SUFFIXES) and os.path.isfile(text):
        raise ItemError(f'the query {text} is a picture file; write "" --image {text}')
    try:
        return Item(text=text or None, image=image)
    except ItemError as error:
        raise ItemError("the query is empty; give a text, --image, or both") from error


def _candidates(arguments: list[str]) -> list[Item]:
    from retrv_r1.command.sources import read_candidates

    stdin = None if sys.stdin is None else sys.stdin.buffer  # None if it is closed
    if "-" in arguments and stdin is not None and sys.stdin.isatty():
        typer.echo("reading candidates from the terminal, one per line; end with Ctrl-D", err=True)
    return list(read_candidates(arguments, stdin))


def engine_config(
    engine: EngineName, url: str | None, weights: Weights
) -> EngineConfig | SGLangConfig:
    """The engine's config of the options ``--engine``, ``--url`` and ``--weights``."""
    from retrv_r1 import EngineConfig, SGLangConfig

    if engine != "sglang":
        if url is not None:
            raise RetrvError("--url needs --engine sglang")
        return EngineConfig(weights=weights)
    if weights != "model":
        raise RetrvError("only the local engine rounds --weights: leave --engine out")
    return SGLangConfig(url=url)


@contextmanager
def _reranker(model: str, **options: Any) -> Iterator[Reranker]:
    """Loads a model, and closes its engine in the end, whatever happens."""
    with status(f"loading {model}"):
        from transformers.utils.logging import disable_progress_bar

        from retrv_r1.rerank.reranker import Reranker

        disable_progress_bar()  # the spinner shows that; stderr is for errors
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # one line for each retry
        reranker = Reranker.from_pretrained(model, **options)
    with reranker:
        yield reranker
