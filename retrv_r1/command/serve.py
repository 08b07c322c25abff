"""The command ``serve``: a reranker behind HTTP."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retrv_kernels.extras import install_command
from retrv_r1.command.arguments import (
    AnyMode,
    DeviceName,
    ModelName,
    RoundedWeights,
    ServerUrl,
    WeightsDtype,
)
from retrv_r1.command.shell import clear_errors, echo
from retrv_r1.types import RetrvError

if TYPE_CHECKING:
    from retrv_r1 import EngineConfig, Reranker, SGLangConfig
    from retrv_r1.serve.limits import Limits
    from retrv_r1.serve.pictures import PicturePolicy

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "pythonjsonlogger")

ServedEngine = Literal["local", "sglang"]
LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    model: ModelName = "tiny",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in responses. Default: the last part of --model."),
    ] = None,
    engine: Annotated[
        ServedEngine, typer.Option(help="local: embedded. sglang: an SGLang server.")
    ] = "local",
    url: ServerUrl = None,
    weights: RoundedWeights = "model",
    device: DeviceName = None,
    dtype: WeightsDtype = None,
    mode: Annotated[
        AnyMode | None,
        typer.Option(
            help="Mode of requests that name none. Default: auto where the checkpoint says when a "
            "fast answer is enough, else fast."
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="API key to admit; may be given several times. Other users of this machine can "
            "read it: better are RETRV_API_KEYS and --api-key-file.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with API keys, one a line.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name that requests may call the server by, as behind a proxy; repeatable. "
            "Default: any; on this machine alone, without keys: localhost and --host.",
        ),
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Dialect of all requests, such as sglang. Default: found out."
        ),
    ] = None,
    strict_model: Annotated[
        bool,
        typer.Option("--strict-model", help="Answer requests for other models with 404."),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Origin whose pages may call; may be repeated."),
    ] = None,
    allow_remote_pictures: Annotated[
        bool,
        typer.Option("--allow-remote-pictures", help="Fetch pictures from public addresses."),
    ] = False,
    file_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder below which file:// may read.")
    ] = None,
    max_running: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests that are ranked at the same time.")
    ] = 32,
    max_queue: Annotated[
        int, typer.Option(min=0, metavar="N", help="Requests that wait; more get 429.")
    ] = 128,
    deadline: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds that a request has; 0 for ever.")
    ] = 60.0,
    drain: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds to finish in when told to end.")
    ] = 30.0,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N", help="Limit of a request, such as max_documents=200; repeatable."
        ),
    ] = None,
    kv_cache: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Size of the embedded engine's key-value cache. Default: 1024 on a CPU, four "
            "fifths of a GPU's free memory.",
        ),
    ] = None,
    window: Annotated[
        int, typer.Option(min=2, max=128, metavar="N", help="Candidates in one prompt.")
    ] = 50,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep features of items for later runs.")
    ] = None,
    max_text_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a text that are read.")
    ] = 4096,
    log_level: Annotated[LogLevel, typer.Option(help="What is logged to stderr.")] = "info",
) -> None:
    """Answer rerank requests over HTTP until a signal ends it."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise RetrvError(f"serving needs {', '.join(missing)}: {install_command('serve')}")
    from retrv_r1.serve.auth import gather_keys
    from retrv_r1.serve.hosts import Hosts
    from retrv_r1.serve.listening import listening
    from retrv_r1.serve.pictures import PicturePolicy
    from retrv_r1.serve.settings import Settings

    with clear_errors():
        policy = PicturePolicy(remote=allow_remote_pictures, file_root=file_root)
        limits, policy = limits_of(limit or [], policy)
        settings = Settings(
            model=name or Path(model).name,
            limits=limits,
            keys=gather_keys(api_key or [], api_key_file, os.environ),
            dialect=dialect,
            mode=mode,
            strict_model=strict_model,
            deadline=deadline or None,
            cors=tuple(cors or ()),
            drain=drain,
        )
        with listening(host, port) as sockets:
            bound = [one.getsockname()[0] for one in sockets]
            hosts = Hosts.of(allowed_host or [], host, bound, keys=bool(settings.keys))
            settings = replace(settings, hosts=hosts)
            _say(f"loading {model} …")
            options: dict[str, Any] = {
                "engine": engine,
                "config": _config(engine, url, weights, kv_cache),
                "device": device,
                "dtype": dtype,
                "window": window,
                "batch_size": max_running,
                "cache": cache,
                "max_text_tokens": max_text_tokens,
            }
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{sockets[0].getsockname()[1]}"

            from retrv_r1.serve.admission import Load
            from retrv_r1.serve.running import run

            run(
                lambda: _load(model, options),
                settings,
                policy,
                Load(max_running, max_queue, deadline or None),
                sockets,
                level=log_level.upper(),
                ready=lambda: _say(f"serving {settings.model} at {address}"),
            )


def _say(line: str) -> None:
    """Prints a line that a pipe gets at once."""
    echo(line)
    sys.stdout.flush()


def _config(
    engine: ServedEngine, url: str | None, weights: Any, kv_cache: int | None
) -> EngineConfig | SGLangConfig:
    """The engine's config of the options."""
    from retrv_r1 import EngineConfig
    from retrv_r1.command.rerank import engine_config

    config = engine_config(engine, url, weights)
    if kv_cache is None:
        return config
    if not isinstance(config, EngineConfig):
        raise RetrvError("--kv-cache is of the embedded engine: leave it out, or --engine")
    return replace(config, cache_bytes=kv_cache * 2**20)


def limits_of(values: list[str], policy: PicturePolicy) -> tuple[Limits, PicturePolicy]:
    """The limits of requests, and a policy with those of pictures, as ``NAME=N`` arguments say.

    Raises:
        RetrvError: an unknown name, no number above 0, or one that is too large.
    """
    from dataclasses import fields

    from retrv_r1.serve.limits import Limits
    from retrv_r1.serve.pictures import PICTURE_LIMITS

    names = (*(field.name for field in fields(Limits)), *PICTURE_LIMITS)
    kinds = {name: float if "seconds" in name else int for name in names}
    given: dict[str, Any] = {}
    for value in values:
        name, equals, number = value.partition("=")
        if name not in kinds or not equals:
            raise RetrvError(f"--limit takes NAME=N with one of {', '.join(kinds)}, not {value}")
        try:
            given[name] = kinds[name](number)
        except ValueError as error:
            raise RetrvError(f"the limit {name} must be a number, not {number}") from error
    own = {field: given.pop(name) for name, field in PICTURE_LIMITS.items() if name in given}
    try:
        return Limits(**given), replace(policy, **own)
    except ValueError as error:
        raise RetrvError(str(error)) from error


def _load(model: str, options: dict[str, Any]) -> Reranker:
    from transformers.utils.logging import disable_progress_bar

    from retrv_r1.rerank.reranker import Reranker

    disable_progress_bar()
    return Reranker.from_pretrained(model, **options)
