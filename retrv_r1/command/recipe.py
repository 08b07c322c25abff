"""The recipe of the shipped checkpoint on one machine, in a given time.

    python -m retrv_r1.command.recipe --data a.pack --data b.pack --out results --minutes 3.5

trains the stages one after the other, each by the clock, assembles the checkpoint, calibrates it,
and ranks with it once. Results worth keeping are in ``--out/CARD/train``: at most fourteen files
of a few megabytes, because on a borrowed machine they are copied one by one. They are written after
each stage, so a run that is cut off leaves the newest checkpoint that ranks.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

from retrv_r1.command.arguments import TrainDevice, TrainDtype
from retrv_r1.command.shell import clean_ending, print_json
from retrv_r1.command.ship import assemble
from retrv_r1.data import mbeir
from retrv_r1.data.pack import unpack
from retrv_r1.files import replacing
from retrv_r1.train import train_stage
from retrv_r1.types import RetrvError

# Modules of training are imported in functions: without their extra a command says so in one line.
if TYPE_CHECKING:
    from retrv_r1.train.config import RunConfig
    from retrv_r1.train.machine import Machine

CONFIGS = Path(__file__).parents[1] / "train" / "configs" / "tiny"
SHARES = {"embed": 0.28, "words": 0.09, "read": 0.18, "align": 0.05, "lists": 0.25, "sft": 0.15}
"""Share of each stage in the time for training; a choice, not a measurement."""
_FIRST_STAGE = ("embed", "words")
SHIPPING = 0.1
"""Share of the whole time for calibrating and trying the checkpoint."""
QUERIES_PER_SECOND = 0.5
"""Calibration queries of each cell per second of the time left and data set, between 4 and 25; a
choice too."""
ARCHIVE = "checkpoint.tar.gz"
LARGEST = 2**24
"""Bytes of the largest file that can be copied from a borrowed machine."""
# Options of a rehearsal, which does everything on little data and in small batches.
_QUICK_QUERIES = 8
_QUICK: dict[str, dict[str, Any]] = {
    "embed": {"batch": 16, "named": 24, "texts": 16, "names": 64},
    "words": {"batch": 16, "named": 24, "texts": 16, "names": 64},
    "read": {"descriptions": 6, "lists": 4, "texts": 4, "names": 64, "start_steps": 40},
    "align": {"descriptions": 6, "lists": 4, "names": 64},
    "lists": {"rows": 96, "names": 64},
    "sft": {"rows": 96, "names": 64},
}


def train_all(
    data: Sequence[Path],
    out: Path,
    work: Path,
    *,
    minutes: float,
    machine: Machine,
    first_stage: Path | None = None,
    configs: Path = CONFIGS,
    quick: bool = False,
    commit: str | None = None,
) -> dict[str, Any]:
    """Trains, assembles and calibrates a checkpoint; returns the record of it.

    Args:
        data: folders or packs of data sets; the checkpoint is tried on the first.
        out: folder of the results: curves, ``record.json``, ``checkpoint.tar.gz``.
        work: folder of everything else; earlier runs in it are replaced.
        minutes: time limit for the whole, from now on.
        first_stage: folder of a finished first stage, a checkpoint's too, with which training
            begins; by default it is trained as well.
        configs: folder with one YAML file per stage.
        quick: rehearse on little data; needs packs.
        commit: commit of the code, for the record; by default git's answer.
    """
    from retrv_r1.train.config import read_config
    from retrv_r1.train.record import commit_here, describe_machine, versions
    from retrv_r1.train.schedule import Schedule
    from retrv_r1.train.training_data import TrainingData

    console, started = Console(stderr=True), time.monotonic()
    end = started + 60 * minutes * (1 - SHIPPING)
    for one in data:
        if quick and not one.is_file():
            raise RetrvError(
                f"--quick needs a pack, not the folder {one}: write one with `retrv-r1 data pack`"
            )
    thin = _QUICK_QUERIES if quick else None

    def folder(n: int, one: Path) -> Path:
        return unpack(one, work / f"data-{n}", thin) if one.is_file() else one

    with ThreadPoolExecutor() as threads:
        folders = tuple(threads.map(folder, range(len(data)), data))
    for stage in SHARES:  # what they cached stays
        shutil.rmtree(work / "runs" / stage, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{ARCHIVE}*"):  # an earlier run's
        old.unlink()
    record: dict[str, Any] = {
        "minutes": minutes,
        "quick": quick,
        "commit": commit or commit_here(),
        "machine": describe_machine(machine),
        "versions": versions(),
        "stages": {},
        "checkpoint": None,
    }
    checkpoint, loaded = work / "checkpoint", TrainingData(folders, machine.device)
    shares = dict(SHARES)
    if first_stage is not None:
        _copy_first_stage(first_stage, work / "runs" / "words" / "final")
        shares = {stage: share for stage, share in SHARES.items() if stage not in _FIRST_STAGE}
    left = sum(shares.values())
    for stage, share in shares.items():
        config = read_config(stage, configs / f"{stage}.yaml", gpu=machine.device.type != "cpu")
        settings = _relocated(config, folders, work / "runs")
        if quick:
            settings = replace(settings, stage=replace(settings.stage, **_QUICK[stage]))
        seconds = max(1.0, (end - time.monotonic()) * share / left)
        left -= share
        console.print(f"{stage}: {seconds:.0f} s")
        schedule = Schedule(settings.loop.steps, seconds)
        train_stage(settings, machine, schedule, resume=False, data=loaded)
        record["stages"][stage] = _keep(settings.out, out)
        _free_memory()
        if stage not in (*_FIRST_STAGE, "read"):  # these cannot rank compressed candidates
            assemble(work / "runs", checkpoint, stage)
            record["checkpoint"] = stage
            _archive(out, checkpoint, console)
        _write(out, record)
    remaining = started + 60 * minutes - time.monotonic()
    queries = max(4, min(25, int(QUERIES_PER_SECOND * remaining / len(folders))))
    record |= _calibrate_and_rank(checkpoint, folders, machine, 4 if quick else queries)
    record["seconds"] = round(time.monotonic() - started, 1)
    _archive(out, checkpoint, console)  # with its temperature
    _write(out, record)
    return record


def _copy_first_stage(source: Path, target: Path) -> None:
    """Writes a first stage whole, with its preprocessing, which a checkpoint has a folder above."""
    from retrv_r1.model.embedder import RetrvEmbedder
    from retrv_r1.train.tiny import load_preprocessing

    RetrvEmbedder.from_pretrained(source, dtype=torch.float32).save_pretrained(target)
    for part in load_preprocessing(source):
        part.save_pretrained(target)


def _relocated(settings: RunConfig, data: tuple[Path, ...], runs: Path) -> RunConfig:
    """Settings with other folders for data and runs; runs keep their names.

    Results of other recipes stay where they are. A machine without network may lack the teacher of
    names, but have what it said.
    """
    from retrv_r1.train.teacher import PACKAGE

    init = {
        name: runs / path.parent.name / path.name if path.parent.name in SHARES else path
        for name, path in settings.init.items()
    }
    taught = find_spec(PACKAGE) is not None or any(runs.glob("cache/*/teacher-*.npy"))
    if settings.teacher and not taught:
        print(f"{PACKAGE} is not installed: names are learned without a teacher", file=sys.stderr)
    return replace(
        settings,
        data=data,
        out=runs / settings.out.name,
        init=init,
        teacher=settings.teacher and taught,
    )


def _keep(run: Path, out: Path) -> dict[str, Any]:
    """Copies the curves of a finished run to the results; returns its record."""
    for kind in ("jsonl", "png"):
        for path in run.glob(f"*.{kind}"):
            shutil.copy(path, out / path.name)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    return {name: record[name] for name in ("steps", "minutes", "spent", "last", "data_hash")}


def _free_memory() -> None:
    """Frees the memory of a finished stage before the next one takes its own."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _calibrate_and_rank(
    checkpoint: Path, data: Sequence[Path], machine: Machine, queries: int
) -> dict[str, Any]:
    """Calibrates a checkpoint and ranks with it; returns what both gave."""
    from retrv_r1.eval.calibration import calibrate
    from retrv_r1.rerank.reranker import Reranker

    found: dict[str, Any] = {}
    try:
        fitted = calibrate(checkpoint, data, limit=queries, device=machine.device.type)
        found["calibration"] = {mode: asdict(one) for mode, one in fitted.items()}
    except RetrvError as error:  # a model that learned too little has no temperature
        found["calibration"] = {"failed": str(error)}
    first = data[0]
    cell = next(c for c in mbeir.cells(first) if c.split == "val" and c.dataset.endswith("_t2i"))
    task = mbeir.load(first, cell.dataset, cell.split)
    query = task.queries[0]
    pool = [task.candidate(query.positives[0]), *task.pool[:9]]
    with Reranker.from_pretrained(checkpoint, device=machine.device.type) as reranker:
        ranked = reranker.rank(task.item(query), [task.item(c) for c in pool], mode="fast")
    found["ranked"] = {
        "query": query.text,
        "candidates": len(pool),
        "best": ranked[0].item.id,
        "relevant": query.positives[0],
    }
    return found


def _archive(out: Path, checkpoint: Path, console: Console) -> None:
    """Replaces the archived checkpoint in one step: a reader finds the old or the new one.

    One that is too large to be copied is written in parts besides.
    """
    path = out / ARCHIVE
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(checkpoint, "checkpoint")
    for old in out.glob(f"{ARCHIVE}.*"):
        old.unlink()
    if path.stat().st_size <= LARGEST:
        return
    with path.open("rb") as file:
        for number, part in enumerate(iter(lambda: file.read(LARGEST), b"")):
            (out / f"{ARCHIVE}.{number}").write_bytes(part)
    console.print(f"{path} is too large to be copied: put it together from its parts, {ARCHIVE}.*")


def _write(out: Path, record: dict[str, Any]) -> None:
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@clean_ending()
def main(
    data: Annotated[
        list[Path],
        # Named, because typer 0.27.0 forgets the name of an option that is a list.
        typer.Option("--data", help="Folder or pack of a data set; repeatable.", metavar="DATA"),
    ],
    out: Annotated[Path, typer.Option(help="Folder in which a folder for the card is made.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit for everything.")],
    work: Annotated[Path, typer.Option(help="Folder of runs and data.")] = Path("runs/recipe"),
    first_stage: Annotated[
        Path | None, typer.Option(help="Begin with this first stage: the folder `final` of words.")
    ] = None,
    device: TrainDevice = None,
    dtype: TrainDtype = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches.")] = None,
    configs: Annotated[Path, typer.Option(help="Folder with one YAML file per stage.")] = CONFIGS,
    commit: Annotated[str | None, typer.Option(help="Commit of the code, for the record.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Rehearse on little data.")] = False,
) -> None:
    """Train a checkpoint by the recipe of the shipped one, in a given time."""
    from retrv_r1.train.machine import Machine
    from retrv_r1.train.record import describe_machine, slug

    machine = Machine.of(device, dtype, workers)
    record = train_all(
        data,
        out / slug(describe_machine(machine)["device"]) / "train",
        work,
        minutes=minutes,
        machine=machine,
        first_stage=first_stage,
        configs=configs,
        quick=quick,
        commit=commit,
    )
    print_json(record)
    if why := record["calibration"].get("failed"):
        print(f"the checkpoint is not calibrated: {why}", file=sys.stderr)


if __name__ == "__main__":
    app()
