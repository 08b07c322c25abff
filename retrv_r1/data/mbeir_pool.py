"""A candidate pool that stays in its file: 20 bytes of memory for each candidate."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from retrv_r1.data.mbeir_lines import IDENTITY, Candidate, MBEIRError, lines, parse_candidate

_SHIFT = 40  # ids are `dataset:number`, below 2^20 and 2^40


class CandidatePool(Sequence[Candidate]):
    """The candidates of a pool file, in the file's order; each is read when it is asked for.

    Args:
        path: JSON-lines file of the pool; it must not change while this is used.
    Raises:
        MBEIRError: the file cannot be read, a line is damaged, or a did is repeated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, keys = array("q"), array("q")
        for line in lines(path):
            candidate = parse_candidate(line.json(), line.where)
            starts.append(line.start)
            keys.append(_key(candidate.did))
        if not starts:
            raise MBEIRError(f"{path} has no candidates; copy or build it again")
        with path.open("rb") as handle:
            self._file = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        self._fill(np.frombuffer(starts, np.int64), np.frombuffer(keys, np.int64))
        twice = np.flatnonzero(np.diff(self._sorted) == 0)
        if twice.size:
            did, rows = _did(self._sorted[twice[0]]), self._order[twice[0] : twice[0] + 2]
            first, second = sorted(map(self.line, rows.tolist()))
            raise MBEIRError(
                f"{path}:{second}: the did {did} is that of line {first}; {twice.size} dids are "
                "repeated, keep one line for each"
            )

    def _fill(self, starts: np.ndarray, keys: np.ndarray) -> None:
        self._starts = starts
        self._order = np.argsort(keys, kind="stable").astype(np.int32)
        self._sorted = keys[self._order]

    def without(self, rows: Iterable[int]) -> CandidatePool:
        """The same pool without some rows."""
        left = np.delete(np.arange(len(self)), list(rows))
        keys = np.empty_like(self._sorted)
        keys[self._order] = self._sorted
        pool = object.__new__(CandidatePool)
        pool.path, pool._file = self.path, self._file
        pool._fill(self._starts[left], keys[left])
        return pool

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, row: int) -> Candidate: ...
    @overload
    def __getitem__(self, row: slice) -> list[Candidate]: ...
    def __getitem__(self, row: int | slice) -> Candidate | list[Candidate]:
        if isinstance(row, slice):
            return [self._read(int(start)) for start in self._starts[row]]
        return self._read(int(self._starts[row]))

    def __iter__(self) -> Iterator[Candidate]:
        return (self._read(int(start)) for start in self._starts)

    def __contains__(self, did: object) -> bool:
        """Whether the pool has a candidate with this did."""
        return isinstance(did, str) and self._find(did) is not None

    def row(self, did: str) -> int:
        """Position of a did in the pool, from 0.

        Raises:
            KeyError: the pool has no such candidate.
        """
        row = self._find(did)
        if row is None:
            raise KeyError(did)
        return row

    def rows(self, dids: Sequence[str]) -> np.ndarray:
        """Positions of many dids in the pool, ``[n]``; -1 for those that it lacks."""
        keys = np.array([_key(did) for did in dids], np.int64)
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)

    def line(self, row: int) -> int:
        """Number of the file's line with a row, from 1."""
        return self._file[: int(self._starts[row])].count(b"\n") + 1

    def _find(self, did: str) -> int | None:
        if not IDENTITY.fullmatch(did):
            return None
        key = _key(did)
        place = int(np.searchsorted(self._sorted, key))
        found = place < len(self) and self._sorted[place] == key
        return int(self._order[place]) if found else None

    def _read(self, start: int) -> Candidate:
        end = self._file.find(b"\n", start)
        raw = self._file[start : end if end >= 0 else len(self._file)]
        row = json.loads(raw.decode("utf-8-sig" if start == 0 else "utf-8"))
        return parse_candidate(row, str(self.path))


def _key(did: str) -> int:
    dataset, _, number = did.partition(":")
    return (int(dataset) << _SHIFT) + int(number)


def _did(key: int) -> str:
    return f"{int(key) >> _SHIFT}:{int(key) & (2**_SHIFT - 1)}"
