"""TREC run files: ``qid Q0 did rank score tag``, and UniIR's, which add the task id."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from retrv_r1.eval.outcomes import Outcome
from retrv_r1.eval.ranking import CellRun
from retrv_r1.eval.settings import RunFormat
from retrv_r1.files import write_whole

_OURS = re.compile(r"(first-stage|((fast|reason)(-full)?|pointwise(-fused)?)-k\d+)(-global)?")


def falling(scores: Sequence[float]) -> list[np.float32]:
    """Scores that fall strictly in single precision; equal ones are lowered by one step.

    trec_eval reads single precision, ignores ranks and breaks ties by name, so equal scores would
    change the ranking.
    """
    out: list[np.float32] = []
    for score in np.asarray(scores, np.float32):
        limit = np.nextafter(out[-1], np.float32(-np.inf)) if out else score
        out.append(min(score, limit))
    return out


def run_lines(
    outcomes: Sequence[Outcome], tag: str, tasks: Mapping[str, int] | None = None
) -> Iterator[str]:
    """The lines of a run file, without newlines.

    Args:
        tag: name of the system, the sixth column.
        tasks: task ids by qid, for a seventh column.
    """
    for outcome in outcomes:
        last = "" if tasks is None else f" {tasks[outcome.qid]}"
        rows = zip(outcome.ranking, falling(outcome.scores), strict=True)
        for rank, (did, score) in enumerate(rows, 1):
            yield f"{outcome.qid} Q0 {did} {rank} {score:.9g} {tag}{last}"


def write_runs(run: CellRun, folder: Path, run_format: RunFormat = "trec") -> list[Path]:
    """Writes a run file for each system and count to a folder named like the cell.

    The names of rankings of the global pool end in ``-global``.

    Args:
        run_format: ``uniir`` for a seventh column with the task id.
    Returns:
        The files.
    """
    tasks, written = None, list[Path]()
    if run_format == "uniir":
        tasks = {query.qid: query.task_id for query in run.work.queries}
    folder = folder / f"{run.work.cell.dataset}_{run.work.cell.split}"
    tagged = {"first-stage": run.first}
    tagged |= {f"{system.slug}-k{k}": outcomes for (system, k), outcomes in run.reranked.items()}
    for system_tag, outcomes in tagged.items():
        tag = system_tag + ("-global" if run.work.pool.kind == "global" else "")
        text = "".join(f"{line}\n" for line in run_lines(outcomes, tag, tasks))
        path = folder / f"{tag}.trec"
        write_whole(path, text)
        written.append(path)
    return written


def remove_others(folder: Path, written: Iterable[Path]) -> None:
    """Removes the run files of a folder that earlier evaluations wrote, and this one did not.

    Args:
        written: files to keep.
    """
    kept = set(written)
    for path in folder.glob("*/*.trec"):
        if _OURS.fullmatch(path.stem) and path not in kept:
            path.unlink()
