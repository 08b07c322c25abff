"""Checks picture files and hashes their contents, each once for as long as it does not change."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from retrv_r1.data import mbeir
from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.eval.cells import EvalError
from retrv_r1.images import load_image
from retrv_r1.types import ItemError

FILE = "pictures.db"
_NAMED = 20  # bad pictures that an error names
_BATCH = 512  # old versions of SQLite take 999 parameters
_PIXELS = 1024  # a picture is decoded whole; JPEG's decoder makes it small at once

_TABLE = """CREATE TABLE IF NOT EXISTS pictures (
    name INTEGER PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER,
    content BLOB, error TEXT)"""


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        content: hash of the contents of all pictures, in their order.
        bad: error of each picture that cannot be used, by its place in the list.
    """

    content: str
    bad: dict[int, str]


class Pictures:
    """Picture files of a data set.

    A file's hash and error are kept in a database, and used again while its size and times stay.

    Args:
        root: folder that picture names start from.
        out: folder of the database; None keeps it in a temporary file.
    Raises:
        EvalError: the database is damaged, or another evaluation uses it.
    """

    def __init__(self, root: Path, out: Path | None) -> None:
        self.root, self.out = root, out
        # An empty name is SQLite's word for a temporary file.
        self._known = sqlite3.connect(out / FILE if out else "", isolation_level=None)
        try:
            self._known.execute("PRAGMA synchronous=NORMAL")
            self._known.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from error
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def _unusable(self, error: sqlite3.DatabaseError) -> EvalError:
        locked = "locked" in str(error)
        fix = "another evaluation uses this folder: name another --out" if locked else "delete it"
        return EvalError(f"cannot use {FILE} in {self.out} ({error}); {fix}")

    def close(self) -> None:
        self._known.close()
        self._threads.shutdown()

    def check(self, names: Iterable[str | None]) -> Checked:
        """Checks that pictures can be decoded; a None is an item without a picture."""
        digest, bad = hashlib.sha256(), {}
        numbered = enumerate(names)
        while part := list(islice(numbered, _BATCH)):
            try:
                found = self._look(sorted({name for _, name in part if name}))
            except sqlite3.DatabaseError as failure:
                raise self._unusable(failure) from failure
            for place, name in part:
                if name:
                    content, error = found[name]
                    digest.update(f"{place} {name} ".encode() + content)
                    if error:
                        bad[place] = error
        return Checked(digest.hexdigest(), bad)

    def _look(self, names: Sequence[str]) -> dict[str, tuple[bytes, str | None]]:
        """Content hash and error of each picture."""
        keys = {name: _key(name) for name in names}
        marks = ",".join("?" * len(names))
        known = {
            row[0]: row[1:]
            for row in self._known.execute(
                f"SELECT * FROM pictures WHERE name IN ({marks})", list(keys.values())
            )
        }
        found, waiting = {}, []
        for name in names:
            stamp, kept = _stamp(self.root / name), known.get(keys[name])
            if stamp is not None and kept is not None and kept[:3] == stamp:
                found[name] = kept[3:]
            else:
                waiting.append((name, stamp))
        results = self._threads.map(lambda one: _examine(self.root / one[0]), waiting)
        rows = []
        for (name, stamp), result in zip(waiting, results, strict=True):
            found[name] = result
            if stamp is not None and result[1] is None:  # a failure may pass: look again
                rows.append((keys[name], *stamp, *result))
        if rows:
            self._known.execute("BEGIN")
            self._known.executemany("REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._known.execute("COMMIT")
        return found


def _key(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Size and times of a file; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: Path) -> tuple[bytes, str | None]:
    """Hash of a picture file's content, and why it cannot be used."""
    try:
        load_image(path, max_pixels=_PIXELS)
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").digest(), None
    except (ItemError, OSError) as error:
        return b"", str(error)


def bad_candidates(pool: mbeir.CandidatePool, bad: dict[int, str]) -> str:
    """The error of a pool with bad pictures, by the candidates' rows."""
    named = [f"line {pool.line(row)}: {error}" for row, error in list(bad.items())[:_NAMED]]
    return _bad_pictures(pool.path, "candidates", len(bad), named)


def bad_queries(path: Path, bad: dict[str, str]) -> str:
    """The error of a file of queries with bad pictures, by qid."""
    places = [
        f"line {where.rpartition(':')[2]}: {bad[row['qid']]}"
        for row, where in json_lines(path)
        if row["qid"] in bad
    ]
    return _bad_pictures(path, "queries", len(bad), places[:_NAMED])


def _bad_pictures(path: Path, things: str, count: int, named: Sequence[str]) -> str:
    more = f"; and {count - len(named)} more" if count > len(named) else ""
    return (
        f"{path}: {count} {things} have pictures that cannot be used: {'; '.join(named)}{more}; "
        "repair them, or leave them out with --skip-bad"
    )
