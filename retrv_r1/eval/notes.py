"""The notes of a report: how its numbers were measured."""

from __future__ import annotations

from collections.abc import Sequence

from retrv_r1.eval.benchmark import CUTOFF_OF
from retrv_r1.eval.models import Models
from retrv_r1.eval.plan import CellWork
from retrv_r1.eval.result import CellResult
from retrv_r1.eval.settings import EvalSettings

_REMARKS = {
    "positives_outside_the_pool": "positives are in other pools, where nothing can find them",
    "queries_without_a_positive": "queries have no positive in the pool and count as not found",
    "queries_with_lists_unlike_the_qrels": "queries list other positives than the qrels, which "
    "decide",
    "skipped_candidates": "candidates were left out for pictures that cannot be used",
    "skipped_queries": "queries were left out for pictures that cannot be used",
    "queries_with_short_lists": "queries have fewer candidates in the given lists than the largest "
    "K",
}


def remarks(works: Sequence[CellWork]) -> list[str]:
    """Sentences on what was left out or is not as it should be, with the cells' counts."""
    said = []
    for key, words in _REMARKS.items():
        found = {f"{w.cell.dataset}, {w.pool.kind} pool": w.counts[key] for w in works}
        cells = "; ".join(f"{name}: {count}" for name, count in found.items() if count)
        if cells:
            said.append(f"{sum(found.values())} {words} ({cells}).")
    return said


def notes(
    settings: EvalSettings, models: Models, runs: Sequence[CellResult], lists: int
) -> list[str]:
    """How the numbers were measured, for the reader of the report.

    Args:
        lists: number of reranked lists that were checked.
    """
    limit = "all queries" if settings.limit is None else f"{settings.limit} queries a cell at most"
    return [
        f"R@k: share of queries with a relevant candidate among the first k (M-BEIR's Recall@k); "
        f"{limit}; the mean of a split is over its cells.",
        *_benchmark(runs, settings),
        *_first_stage(settings, models, runs),
        *_prompts(settings),
        "Differences are paired by query, with 95 % bootstrap intervals (queries resampled within "
        "their cell).",
        *(["Relation keys were rounded to int8."] if settings.int8_keys else []),
        *([f"Weights were rounded to {settings.weights}."] if settings.weights != "model" else []),
        f"Seconds per query: equal shares of a batch of up to {settings.batch_size} on "
        f"{settings.device}, weights in {settings.dtype}, without encoding items; for the first "
        "stage, without embedding the pool.",
        "Well-formed: the model ended its reasoning itself, and its likeliest token was always "
        "allowed by the output format, which the engine enforces; an inspection beyond the limit "
        "is refused and does not count against it.",
        *_chains(settings),
        *_calibration(settings),
        f"Checked: all {lists} reranked lists have their answer at rank 1, and scores that never "
        f"rise, in [0, 1]{_but_fused(settings)}; the evaluation stops otherwise.",
    ]


def _chains(settings: EvalSettings) -> list[str]:
    """What is right in a chain of thought."""
    if "reason" not in settings.modes:
        return []
    return [
        "Chains: an ideal is right if it is the query's own words, without its wrapping, or the "
        "name of what it asks for or shows; a name or an inspection statement if it is a name of "
        "that candidate; the statement must also say the detail that tells it from another named "
        "candidate of the same name. Unaided: the engine enforced nothing and refused no "
        "inspection. Statements of which the data set's metadata knows nothing are not counted."
    ]


def _calibration(settings: EvalSettings) -> list[str]:
    """How it was measured whether scores are probabilities."""
    if not settings.calibration:
        return []
    return [
        f"Are scores probabilities: lists of 5 to {max(settings.k)} candidates of the first stage, "
        f"each query's with a chance of {settings.without_answer:.0%} without the answer, where "
        "every first place is wrong; there is none for an answer that the first stage does not "
        "find. Calibration error: 15 bins of equally many lists. AUROC: chance that none of these "
        "is likelier in a list without the answer than in one with it."
    ]


def _but_fused(settings: EvalSettings) -> str:
    return "" if settings.fuse is None else " unless both stages' are added"


def _benchmark(runs: Sequence[CellResult], settings: EvalSettings) -> list[str]:
    """What the column M-BEIR is, and which of its cells are missing from which part."""
    there: dict[str, set[str]] = {}
    for run in runs:
        there.setdefault(run.work.part, set()).add(run.work.cell.dataset)
    parts = {part: cells & set(CUTOFF_OF) for part, cells in there.items()}
    if not any(parts.values()):
        return []
    said = [
        "M-BEIR: the recall that the benchmark's tables show, R@10 for Fashion200K and FashionIQ "
        "and R@5 for the other cells, and its mean over the 16 cells."
    ]
    val = any(run.work.cell.split == "val" for run in runs)
    if val or settings.limit is not None or any(run.work.skipped for run in runs):
        said.append(
            "The benchmark's tables are over all queries of the test split, and this is not: do "
            "not compare the numbers."
        )
    for part, cells in parts.items():
        missing = [cell for cell in CUTOFF_OF if cell not in cells]
        if cells and missing:
            said.append(
                f"The mean M-BEIR of {part} is over {len(cells)} of 16 cells, so it is not the "
                f"benchmark's: without {', '.join(missing)}."
            )
    return said


def _first_stage(settings: EvalSettings, models: Models, runs: Sequence[CellResult]) -> list[str]:
    """Where the candidates come from."""
    ceiling = "so its R@K is the ceiling"
    if settings.candidates is not None:
        named = settings.candidates.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        return [
            f"K: the K best of the lists in {named} are reranked, {ceiling}. A part's pool is "
            "where their dids were looked up; which pool that first stage searched is not known."
        ]
    told = "behind their instruction" if models.reads_instructions else "without an instruction"
    said = [
        f"K: the first stage's K best of a cell's pool are reranked, {ceiling}. It reads queries "
        f"{told}; equal similarities are ordered by seed ({settings.seed}) and query."
    ]
    pools = {run.work.pool.candidates.path.name: run for run in runs}
    known = {name: (run.cut, len(run.work.task.pool)) for name, run in pools.items()}
    hit = {name: cut for name, (cut, _) in known.items() if cut}
    if any(cut is not None for cut, _ in known.values()):
        each = "".join(f"; {cut} of {name}" for name, cut in hit.items())
        total = sum(size for _, size in known.values())
        said.append(
            f"The first stage reads {models.max_text} tokens of a text: {sum(hit.values())} of "
            f"{total} candidates are longer{each}."
        )
    if cut := sum(run.cut_queries for run in runs):
        behind = ", their instruction included" if models.reads_instructions else ""
        said.append(f"It cut {cut} queries to {models.max_text} tokens{behind}.")
    return said


def _prompts(settings: EvalSettings) -> list[str]:
    """What prompts show, and how lists are ranked that no prompt holds."""
    if settings.order == "shuffled":
        order = (
            f"Prompts show candidates in an order shuffled by seed ({settings.seed}) and query, so "
            "that positions do not tell their ranks"
        )
    else:
        order = (
            "Prompts show candidates in the first stage's order; equal scores are ordered by seed "
            f"({settings.seed}) and query"
        )
    instructions = {
        "first": "the instruction is the first phrasing",
        "random": f"the instruction is a phrasing drawn by seed ({settings.seed}) and query",
        "none": "no task's instruction is shown, but the checkpoint's own, the same for all",
    }
    said = [f"{order}; {instructions[settings.instructions]}."]
    if max(settings.k) > settings.window:
        mode = "fast mode" if settings.earlier_windows == "fast" else "the mode of the system"
        said.append(
            f"Longer lists than {settings.window} are ranked by windows of {settings.window} "
            f"candidates, from the end to the start; those before the last in {mode}."
        )
        if settings.order == "retrieved":
            said.append(
                "The start of such a list reaches the last window without a comparison, so even a "
                "reranker that gives equal scores keeps some of the first stage's order: its R@k "
                "is no chance for k > 1."
            )
    if settings.fuse is not None:
        weight = "LamRA's weight of the cell" if settings.fuse == "lamra" else f"{settings.fuse:g}"
        said.append(f"pointwise + first stage: the first stage's score + {weight} × P(yes).")
    return said
