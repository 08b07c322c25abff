"""Candidate lists of another first stage: TREC runs, and the JSON files that LamRA writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from retrv_r1.data import mbeir
from retrv_r1.eval.cells import EvalError
from retrv_r1.eval.outcomes import fingerprint

_NAMES, _DIDS, _SCORES = "_query_names.json", "_cand_names.json", "_scores.json"
_SUFFIXES = (".trec", ".txt", ".run", _NAMES)
_OURS = "first-stage"


@dataclass(frozen=True)
class GivenList:
    """The candidates of one query, best first.

    Attributes:
        scores: scores that never rise. Where the file's never fall they are distances, and these
            are their negatives; where they do neither, these are negative ranks.
        similarities: whether ``scores`` are the file's own.
    """

    dids: tuple[str, ...]
    scores: tuple[float, ...]
    similarities: bool

    @classmethod
    def of(cls, dids: Sequence[str], scores: Sequence[float] | None, where: str) -> GivenList:
        """A list in the file's order.

        Raises:
            EvalError: there is no did, one stands twice, or a score is no finite number.
        """
        if not dids:
            raise EvalError(f"{where}: the list is empty; give the query one candidate at least")
        if len(set(dids)) < len(dids):
            twice = next(did for did in dids if list(dids).count(did) > 1)
            raise EvalError(f"{where}: {twice} stands twice in one list; keep its first place")
        ranks = [float(-rank) for rank in range(1, len(dids) + 1)]
        if scores is None:
            return cls(tuple(dids), tuple(ranks), similarities=False)
        if len(scores) != len(dids) or not all(map(math.isfinite, scores)):
            raise EvalError(f"{where}: a finite score for each of {len(dids)} candidates is needed")
        falls = all(high >= low for high, low in pairwise(scores))
        rises = all(low <= high for low, high in pairwise(scores))
        own = scores if falls else [-score for score in scores] if rises else ranks
        return cls(tuple(dids), tuple(own), similarities=falls)


class KeptLists:
    """Lists of a cell's queries in a temporary file, so that they take no memory until its turn.

    Args:
        asked: qids of the lists to keep.
        folder: folder of the file; None for the system's.
    Attributes:
        content: hash of the dids of all lists.
    """

    def __init__(
        self, lists: Mapping[str, GivenList], asked: Iterable[str], folder: Path | None
    ) -> None:
        self.content = fingerprint({qid: one.dids for qid, one in lists.items()})
        self._file = TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115
        kept = {qid: lists[qid] for qid in asked}
        rows = {qid: (one.dids, one.scores, one.similarities) for qid, one in kept.items()}
        json.dump(rows, self._file)

    def load(self) -> dict[str, GivenList]:
        """The lists, by qid."""
        self._file.seek(0)
        return {
            qid: GivenList(tuple(dids), tuple(scores), own)
            for qid, (dids, scores, own) in json.load(self._file).items()
        }


def read_lists(path: Path) -> dict[str, GivenList]:
    """The candidates of every query of a file, by qid.

    Args:
        path: a TREC run of six columns, or of seven as UniIR writes them; or one of the three
            files that LamRA writes, which lie beside each other.
    Raises:
        EvalError: the file cannot be read, or is not in such a format; the message names the line.
    """
    try:
        lists = dict(_lamra(path) if path.suffix == ".json" else _trec(path))
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, EvalError):
            raise
        raise EvalError(f"cannot read {path}: {error}; write or copy it again") from error
    if not lists:
        raise EvalError(f"{path} has no candidates")
    return lists


def _trec(path: Path) -> Iterator[tuple[str, GivenList]]:
    """Lists of ``qid Q0 did rank score tag [task]`` lines, by rank."""
    rows: dict[str, dict[int, tuple[str, float]]] = {}
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                qid, _, did, rank, score = fields[:5]
                place, value = int(rank), float(score)
            except ValueError:
                fields = []
            if len(fields) not in (6, 7):
                raise EvalError(
                    f"{path}:{number}: `qid Q0 did rank score tag` is needed, with or without a "
                    f"task id behind it, not {line.strip()[:80]!r}"
                )
            if place in rows.setdefault(qid, {}):
                raise EvalError(
                    f"{path}:{number}: query {qid} has rank {place} twice; number its candidates"
                )
            rows[qid][place] = (did, value)
    for qid, found in rows.items():
        ordered = [found[place] for place in sorted(found)]
        dids, scores = zip(*ordered, strict=True)
        yield qid, GivenList.of(dids, scores, f"{path}, query {qid}")


def _lamra(path: Path) -> Iterator[tuple[str, GivenList]]:
    """Lists of LamRA's files, in the files' order."""
    stem = str(path)
    for ending in (_NAMES, _DIDS, _SCORES):
        stem = stem.removesuffix(ending)
    if stem == str(path):
        raise EvalError(f"{path}: LamRA's files end in {_NAMES}, {_DIDS} or {_SCORES}")
    qids, rows = _json_list(Path(stem + _NAMES)), _json_list(Path(stem + _DIDS))
    kept = Path(stem + _SCORES)
    scores = _json_list(kept) if kept.is_file() else [None] * len(rows)
    if not len(qids) == len(rows) == len(scores):
        raise EvalError(
            f"{stem}_*.json have {len(qids)} queries, {len(rows)} lists of candidates and "
            f"{len(scores)} of scores; copy all three from one run"
        )
    seen: set[str] = set()
    for qid, dids, values in zip(qids, rows, scores, strict=True):
        where = f"{stem}{_DIDS}, query {qid}"
        if qid in seen:
            raise EvalError(f"{where}: the query stands twice; keep one of its lists")
        seen.add(qid)
        if values and isinstance(values[0], list):  # each row is nested once
            (values,) = values
        if not isinstance(dids, list) or not all(isinstance(did, str) for did in dids):
            raise EvalError(f"{where}: a list of dids is needed")
        yield qid, GivenList.of(dids, values, where)


def _json_list(path: Path) -> list[Any]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(value, list):
        raise EvalError(f"{path}: a JSON list is needed, not {type(value).__name__}")
    return value


def find_file(path: Path, cell: str, split: str, pool: str) -> Path:
    """The file with a cell's candidates.

    Args:
        path: a file, which is taken for every cell; or a folder, where the path of a cell's file
            names the cell (``cirr_task7``), and may name the split and the pool (``single`` or
            ``local``, ``union`` or ``global``).
    Raises:
        EvalError: no such path, or not exactly one file for the cell.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise EvalError(f"{path} is neither a file nor a folder of candidates")
    named = re.compile(rf"(?<![a-z0-9]){re.escape(cell)}(?![0-9])")
    found = {}
    for file in sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES)):
        place = file.relative_to(path).as_posix()
        words = set(re.split(r"[_./-]", place))
        foreign = ({"test", "val", "train"} - {split}) & words
        if named.search(place) and not foreign:
            found[file] = words
    own, other = {"single", "local"}, {"union", "global"}
    if pool == "global":
        own, other = other, own
    choice = (
        [file for file, words in found.items() if words & own]
        or [file for file, words in found.items() if not words & other]
        or ([] if pool == "global" else list(found))
    )
    choice = [file for file in choice if file.name.startswith(_OURS)] or choice
    if len(choice) != 1:
        names = ", ".join(file.name for file in choice) or "none"
        raise EvalError(
            f"{path} has {len(choice)} files of candidates for {cell} ({split}, {pool} pool): "
            f"{names}; keep one there, or name it alone"
        )
    return choice[0]


def lists_of(
    path: Path,
    cell: mbeir.Cell,
    pool: str,
    known: Iterable[str],
    asked: Iterable[str],
    read: Callable[[Path], Mapping[str, GivenList]] = read_lists,
) -> dict[str, GivenList]:
    """The candidates of a cell's queries, from its file.

    Args:
        pool: kind of the pool.
        known: qids of the cell's queries; the file may have others.
        asked: qids of those that need candidates.
        read: function that reads a file.
    Raises:
        EvalError: see :func:`read_lists` and :func:`find_file`; or a query has no candidates.
    """
    file = find_file(path, cell.dataset, cell.split, pool)
    lists = read(file)
    wanted = list(asked)
    if absent := [qid for qid in wanted if qid not in lists]:
        raise EvalError(
            f"{file} has no candidates for {len(absent)} of {len(wanted)} queries of "
            f"{cell.dataset}, {absent[0]} among them; add them, or rank fewer with --limit"
        )
    return {qid: lists[qid] for qid in known if qid in lists}
