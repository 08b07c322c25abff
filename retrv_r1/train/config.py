"""The YAML file of a training stage: reading it, and errors that name the option."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar, get_origin, get_type_hints

import yaml

from retrv_r1.train.stages import STAGES
from retrv_r1.types import RetrvError

T = TypeVar("T")


class ConfigError(RetrvError, ValueError):
    """A training configuration, or the data it names, that cannot be used."""


@dataclass(frozen=True)
class LoopConfig:
    """Options of the training loop, the same for every stage.

    Args:
        steps: optimizer steps in all.
        learning_rate: peak learning rate, reached after ``warmup`` steps; a cosine then takes it
            down to a twentieth.
        rates: factors of the learning rate by a part of the parameter's name, such as
            ``{visual: 0.25}`` for a slow tower. The first part that matches counts; a part that
            matches no parameter is an error.
        warmup: steps of linear warm-up.
        weight_decay: weight decay of AdamW.
        clip_norm: largest norm of the gradient.
        beta2: second-moment decay of AdamW; the first is 0.9.
        checkpointing: whether the language model's layers are computed again in the backward pass,
            which takes a third more time and keeps little of them in memory.
        save_every: steps between checkpoints.
        log_every: steps between logged averages.
        threads: CPU threads; 0 leaves the choice to PyTorch.
        processes: processes that train on a CPU, each with batches of its own and one thread
            (``peers.py``). A run with a time limit or on a GPU has one.
        seed: seed of weights and batches.
    """

    steps: int
    learning_rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=dict)
    warmup: int = 100
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    beta2: float = 0.98
    checkpointing: bool = False
    save_every: int = 500
    log_every: int = 20
    threads: int = 0
    processes: int = 1
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """A stage's configuration file.

    Attributes:
        name: name of the stage.
        source: the file itself.
        data: folders of M-BEIR data sets with pictures (``retrv-r1 data``); a single one may
            stand alone in the file.
        out: folder of the run's files.
        lists: files of lists (``retrv-r1 data lists``, ``data chains``) that are trained on, in
            the place of lists that a first stage finds while training; one may stand alone.
        side: side in pixels of the squares that picture files are fitted into.
        init: results of earlier stages by name (``embed``, ``model``); or, in the place of
            ``model``, a Qwen2.5-VL checkpoint as ``backbone``.
        teacher: whether a sentence encoder teaches the geometry of names (``teacher.py``).
        model: shapes of a model that the stage makes from scratch (``tiny.py``).
        prompts: templates of prompts that the trained model has from then on.
        loop: options of the training loop.
        stage: options of the stage, an instance of its ``Config``.
    """

    name: str
    source: Path
    data: tuple[Path, ...]
    out: Path
    lists: tuple[Path, ...]
    side: int
    init: dict[str, Path]
    teacher: bool
    model: dict[str, Any]
    prompts: dict[str, str]
    loop: LoopConfig
    stage: Any


def stage_class(name: str) -> type[Any]:
    """The subclass of ``Stage`` that has a name; this imports it."""
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}; choose one of {', '.join(STAGES)}")
    return resolve_name(STAGES[name])


def read_config(stage: str, path: Path, *, gpu: bool = False) -> RunConfig:
    """Reads and checks a configuration file; paths in it are relative to the working directory.

    Args:
        gpu: apply the file's section ``gpu``, which changes options of ``loop`` and ``stage``: a
            GPU takes larger batches in the same time.
    Raises:
        ConfigError: an unknown stage, an unreadable file, an unknown or missing option, or an
            option of the wrong type.
    """
    options_class = stage_class(stage).Config
    if not path.is_file():
        raise ConfigError(f"no configuration file {path}; name one with --config")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path} as YAML: {error}; correct the file") from error
    if not isinstance(raw, dict) or not {"data", "out", "loop"} <= set(raw):
        raise ConfigError(f"{path} needs at least data, out and loop")
    sections = [f.name for f in fields(RunConfig) if f.name not in ("name", "source")] + ["gpu"]
    if unknown := sorted(map(str, set(raw) - set(sections))):
        raise ConfigError(f"{path}: unknown options {unknown}; known: {sections}")
    data = raw["data"] if isinstance(raw["data"], list) else [raw["data"]]
    lists = raw.get("lists") or []
    lists = lists if isinstance(lists, list) else [lists]
    side = raw.get("side", 252)
    if not isinstance(side, int) or side < 1:
        raise ConfigError(f"{path}: side must be a number of pixels, not {side!r}")
    options = {name: _mapping(raw.get(name), f"{path}: {name}") for name in ("loop", "stage")}
    changes = _mapping(raw.get("gpu"), f"{path}: gpu")
    if unknown := sorted(map(str, set(changes) - set(options))):
        raise ConfigError(f"{path}: gpu: unknown options {unknown}; known: {sorted(options)}")
    if gpu:
        for name, section in options.items():
            section |= _mapping(changes.get(name), f"{path}: gpu.{name}")
    loop = checked(LoopConfig, options["loop"], f"{path}: loop")
    if "steps" in {f.name for f in fields(options_class)}:
        options["stage"].setdefault("steps", loop.steps)
    init = _mapping(raw.get("init"), f"{path}: init")
    return RunConfig(
        name=stage,
        source=path,
        data=tuple(Path(one) for one in data),
        out=Path(raw["out"]),
        lists=tuple(Path(one) for one in lists),
        side=side,
        init={name: Path(value) for name, value in init.items()},
        teacher=bool(raw.get("teacher", True)),
        model=_mapping(raw.get("model"), f"{path}: model"),
        prompts=_mapping(raw.get("prompts"), f"{path}: prompts"),
        loop=loop,
        stage=checked(options_class, options["stage"], f"{path}: stage"),
    )


def checked(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from a mapping of its fields; lists become tuples.

    Args:
        where: place of the mapping, for messages.
    Raises:
        ConfigError: an unknown field, a missing one, or one of the wrong type.
    """
    values = _mapping(values, where)
    known: Any = fields(kind)  # type: ignore[arg-type]
    names = {f.name for f in known}
    if unknown := sorted(map(str, set(values) - names)):
        raise ConfigError(f"{where}: unknown options {unknown}; known: {sorted(names)}")
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(needed - set(values)):
        raise ConfigError(f"{where}: the options {missing} are missing")
    hints = get_type_hints(kind)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in values.items():
        wanted = get_origin(hints[name]) or hints[name]
        if not isinstance(value, (int, float) if wanted is float else wanted):
            raise ConfigError(
                f"{where}: {name} must be of type {wanted.__name__}, not {value!r} "
                "(YAML reads 1e-3 as text; write 1.0e-3)"
            )
    return kind(**values)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping of options, not {value!r}")
    return dict(value or {})
