"""The outcome of each query, saved to disk at once, so that a killed run can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from retrv_r1.eval.cells import EvalError
from retrv_r1.types import RankedResults


@dataclass(frozen=True)
class Outcome:
    """One query's ranking by one system.

    Attributes:
        ranking: dids (M-BEIR's candidate ids), best first.
        scores: scores of the ranking, never rising.
        answer: did of the model's answer; None for the first stage.
        inspected: dids of the inspected candidates, in order.
        shown: number of candidates in the last prompt.
        prompt_rows, candidate_rows: rows of the last prompt, and of the candidates in it.
        inspected_rows: rows that inspections inserted.
        generated: number of generated tokens.
        seconds: the query's equal share of its batch's time, without encoding the items.
        cut: whether the first stage has cut the query's text.
        reasoning: text that the model wrote, where ``[k]`` is the candidate ``listed[k - 1]``.
        listed: dids in the order of the prompt, where there is a reasoning.
        refused: number of inspections that the model wished for in vain.
        none_of_these: probability that no candidate fits; None if the model does not say it.
    """

    qid: str
    ranking: tuple[str, ...]
    scores: tuple[float, ...]
    answer: str | None = None
    inspected: tuple[str, ...] = ()
    well_formed: bool = True
    shown: int = 0
    prompt_rows: int = 0
    candidate_rows: int = 0
    inspected_rows: int = 0
    generated: int = 0
    seconds: float = 0.0
    cut: bool = False
    reasoning: str = ""
    listed: tuple[str, ...] = ()
    refused: int = 0
    none_of_these: float | None = None

    @classmethod
    def of(
        cls, qid: str, dids: Sequence[str], result: RankedResults, shown: int, seconds: float
    ) -> Outcome:
        """The outcome of ranking the candidates ``dids``.

        Raises:
            EvalError: see :meth:`check`.
        """
        outcome = cls(
            qid=qid,
            ranking=tuple(dids[row.index] for row in result),
            scores=tuple(row.score for row in result),
            answer=None if result.answer is None else dids[result.answer],
            inspected=tuple(dids[index] for index in result.inspected),
            well_formed=result.well_formed,
            shown=shown,
            prompt_rows=result.tokens.prompt,
            candidate_rows=result.tokens.candidates,
            inspected_rows=result.tokens.inspected,
            generated=result.tokens.generated,
            seconds=seconds,
            reasoning=result.reasoning,
            listed=tuple(dids) if result.reasoning else (),
            refused=result.refused,
            none_of_these=result.none_of_these,
        )
        if sorted(outcome.ranking) != sorted(dids):
            raise EvalError(f"query {qid}: the ranking is not a permutation of its candidates")
        outcome.check()
        return outcome

    def check(self, *, probabilities: bool = True) -> None:
        """Checks what must be true of every reranked list.

        Args:
            probabilities: whether scores must be in [0, 1].
        Raises:
            EvalError: the answer is not rank 1, or a score rises or is outside [0, 1].
        """
        if not self.ranking or self.answer != self.ranking[0]:
            raise EvalError(f"query {self.qid}: the answer {self.answer} is not rank 1")
        if len(self.scores) != len(self.ranking):
            raise EvalError(
                f"query {self.qid}: {len(self.scores)} scores, {len(self.ranking)} dids"
            )
        if probabilities and not all(0 <= score <= 1 for score in self.scores):
            raise EvalError(f"query {self.qid}: a score is outside [0, 1]")
        if any(low > high for high, low in pairwise(self.scores)):
            raise EvalError(f"query {self.qid}: scores rise down the ranking")


class Journal:
    """Outcomes of one system on one cell, appended to a file.

    The file's name and first line have a fingerprint of everything that decides the outcomes, so
    another model, data set or setting uses another file. A line that a killed run left unfinished
    is removed.

    Args:
        folder: folder of the file; None keeps outcomes in memory only.
        name: beginning of the file's name.
        about: JSON values that decide the outcomes.
    """

    def __init__(self, folder: Path | None, name: str, about: Mapping[str, Any]) -> None:
        self.header = {"fingerprint": fingerprint(about), **about}
        self.path = folder and folder / f"{name}-{self.header['fingerprint'][:12]}.jsonl"
        self.outcomes: dict[str, Outcome] = {}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read(self.path) if self.path.is_file() else 0
        with self.path.open("ab") as handle:
            handle.truncate(kept)
            if not kept:
                handle.write(_line(self.header))

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Adds outcomes; they are on disk when this returns."""
        self.outcomes |= {outcome.qid: outcome for outcome in outcomes}
        if self.path is not None:
            with self.path.open("ab") as handle:
                handle.write(b"".join(_line(asdict(outcome)) for outcome in outcomes))

    def _read(self, path: Path) -> int:
        """Reads the complete lines of a file; returns their length in bytes."""
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                values = None
            if not isinstance(values, dict) or (not kept and values != self.header):
                break
            if kept:
                values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
                outcome = Outcome(**values)
                self.outcomes[outcome.qid] = outcome
            kept += len(line)
        return kept


def fingerprint(about: Mapping[str, Any]) -> str:
    """Hex SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def file_hash(root: Path, paths: Sequence[Path]) -> str:
    """Hex SHA-256 of files' contents and of their names relative to ``root``."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
