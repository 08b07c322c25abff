"""The file in which a teacher's chains are kept, a line for each list that was asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrv_r1.data.lists import CandidateList
from retrv_r1.teaching.judging import Verdict
from retrv_r1.teaching.prompt import FORM
from retrv_r1.types import RetrvError

_REPLY = 500
"""Characters of a reply that is not taken, kept for a look at it."""


class TeachingError(RetrvError):
    """A teacher that cannot be asked; the message says what to do."""


@dataclass
class Reply:
    """What a teacher said about one list, and what that cost.

    Attributes:
        text: its last reply.
        tokens: tokens that it read and wrote, over all tries.
    """

    verdict: Verdict
    text: str = ""
    tokens: tuple[int, int] = (0, 0)


@dataclass
class Totals:
    """Counts over a file: chains that were taken, reasons of the others, tokens."""

    taken: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    read: int = 0
    written: int = 0

    def cost(self, prices: tuple[float, float]) -> float:
        """Cost at prices of a million tokens that are read, and of a million that are written."""
        return (self.read * prices[0] + self.written * prices[1]) / 1e6


class ChainFile:
    """Appends a line for each list; a killed run goes on behind its last whole line.

    Args:
        path: file, which another teacher must not have written.
        model: name of the teacher.
        seed: seed of the candidates' order.
    Raises:
        TeachingError: the file is of another teacher, or is no such file.
    """

    def __init__(self, path: Path, model: str, seed: int) -> None:
        self.path, self.totals = path, Totals()
        form = hashlib.sha256(FORM.encode()).hexdigest()[:12]
        self.teacher = {"model": model, "seed": seed, "form": form}
        self.done: set[tuple[Any, ...]] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read() if path.is_file() else 0
        with path.open("ab") as file:
            file.truncate(kept)

    def add(self, asked: CandidateList, reply: Reply) -> None:
        """Adds a list; its line is in the file when this returns."""
        verdict = reply.verdict
        row = replace(asked, chain=verdict.chain).row() | {"teacher": self.teacher}
        row["tokens"] = list(reply.tokens)
        if verdict.rejected:
            row |= {"rejected": verdict.rejected, "reply": reply.text[:_REPLY]}
        with self.path.open("ab") as file:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        self._count(row)
        self.done.add(asked.key)

    def _count(self, row: dict[str, Any]) -> None:
        if row.get("rejected"):
            self.totals.rejected[row["rejected"]] += 1
        else:
            self.totals.taken += 1
        read, written = row["tokens"]
        self.totals.read += read
        self.totals.written += written

    def _read(self) -> int:
        """Reads the whole lines; returns their length in bytes."""
        kept = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            where = f"{self.path}:{number}"
            try:
                row = json.loads(line)
                teacher, _ = row["teacher"], row["tokens"]
            except (ValueError, KeyError, TypeError) as error:
                raise TeachingError(
                    f"{where} is no line of a file of chains: name another file"
                ) from error
            if teacher != self.teacher:
                raise TeachingError(
                    f"{where} is of another teacher ({_differ(teacher, self.teacher)}): name "
                    "another file"
                )
            self.done.add(CandidateList.of(row, where).key)
            self._count(row)
            kept += len(line)
        return kept


def _differ(one: dict[str, Any], other: dict[str, Any]) -> str:
    return ", ".join(
        f"{n} {one.get(n)!r}, not {other[n]!r}" for n in other if one.get(n) != other[n]
    )
