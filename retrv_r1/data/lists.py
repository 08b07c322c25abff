"""Files of candidate lists: what a first stage found for queries, and chains about it.

A line is the JSON of one list:

    {"cell": "cirr_task7", "split": "train", "qid": "8:12", "candidates": ["8:7", "8:3", …],
     "answer": "8:3", "chain": "ideal: …"}

``candidates`` are dids, best first, and ``answer`` is the only relevant one among them.
``chain`` is there once a teacher wrote one; its ``[k]`` is the k-th of ``candidates``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.files import replacing
from retrv_r1.types import RetrvError


class ListsError(RetrvError, ValueError):
    """A file of lists that cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class CandidateList:
    """A query with the candidates that a first stage found.

    Attributes:
        candidates: dids, best first.
        answer: did of the only relevant candidate among them.
        chain: the reasoning that a teacher wrote, as ``retrv_r1.model.chains`` parses it.
    """

    cell: str
    split: str
    qid: str
    candidates: tuple[str, ...]
    answer: str
    chain: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a list: its query, and its candidates in order."""
        return self.cell, self.split, self.qid, self.candidates, self.answer

    def row(self) -> dict[str, Any]:
        """The JSON of its line."""
        row: dict[str, Any] = {"cell": self.cell, "split": self.split, "qid": self.qid}
        row |= {"candidates": list(self.candidates), "answer": self.answer}
        return row if self.chain is None else row | {"chain": self.chain}

    @classmethod
    def of(cls, row: dict[str, Any], where: str) -> CandidateList:
        """The list of a line; other fields of it are left alone.

        Raises:
            ListsError: a field is missing or of another type, or the answer is no candidate.
        """
        cell, split, qid = (row.get(name) for name in ("cell", "split", "qid"))
        dids: Any
        dids, answer, chain = row.get("candidates"), row.get("answer"), row.get("chain")
        listed = isinstance(dids, list) and all(isinstance(did, str) for did in dids)
        if not (listed and dids and all(isinstance(text, str) for text in (cell, split, qid))):
            raise ListsError(
                f"{where}: cell, split, qid and a list of candidates are needed; write lists with "
                "`retrv-r1 data lists`"
            )
        if len(set(dids)) < len(dids):
            raise ListsError(f"{where}: a candidate stands twice in the list; keep its first place")
        if answer not in dids:
            raise ListsError(f"{where}: the answer {answer!r} is none of the candidates")
        if not isinstance(chain, str | None):
            raise ListsError(f"{where}: the chain must be a text")
        return cls(str(cell), str(split), str(qid), tuple(dids), str(answer), chain)


def read_lists(path: Path) -> Iterator[CandidateList]:
    """The lists of a file, one after the other.

    Lines whose ``rejected`` says why a teacher's chain was not taken are lists without a chain.

    Raises:
        ListsError: the file is missing or empty, or a line is no list.
    """
    if not path.is_file():
        raise ListsError(f"no file of lists {path}; write one with `retrv-r1 data lists`")
    found = False
    for row, where in json_lines(path):
        found = True
        yield CandidateList.of(row, where)
    if not found:
        raise ListsError(f"{path} has no lists; write some with `retrv-r1 data lists`")


def write_lists(path: Path, lists: Iterable[CandidateList]) -> int:
    """Writes a file of lists whole; returns their number."""
    count = 0
    with replacing(path) as file:
        for one in lists:
            file.write((json.dumps(one.row(), ensure_ascii=False) + "\n").encode())
            count += 1
    return count
