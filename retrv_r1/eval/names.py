"""What a data set's metadata says of candidates and queries, to check what chains say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrv_r1.data import mbeir
from retrv_r1.model.chains import content_words, words
from retrv_r1.model.details import Shown, asked_for, asked_words, details_of, with_detail

_Row = Mapping[str, Any]


class Names:
    """Names of candidates and of what queries ask for.

    Args:
        root: folder of the data set. ``metadata.jsonl`` may give candidates a ``name``,
            ``aliases`` and ``details`` (values by kind), by ``did``; ``query_metadata.jsonl`` may
            give queries a ``target`` and a ``source`` (names, or objects with one) and a
            ``detail`` that is asked for (an object with its ``value``), by ``qid``.
            Without them, texts are all that is known.
    Raises:
        MBEIRError: a line is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._candidates = _rows(root / "metadata.jsonl", "did")
        self._queries = _rows(root / "query_metadata.jsonl", "qid")

    def of_candidate(self, candidate: mbeir.Candidate) -> frozenset[str]:
        """Names of a candidate, its text among them, as ``words``; empty if nothing is known."""
        row = self._candidates.get(candidate.did, {})
        return frozenset(filter(None, map(words, _names(row, candidate))))

    def shown(self, candidate: mbeir.Candidate) -> list[Shown]:
        """The same names, each with the values of the candidate's details."""
        row = self._candidates.get(candidate.did, {})
        return [Shown(n, details_of(row)) for n in _names(row, candidate) if words(n)]

    def of_query(self, query: mbeir.Query) -> frozenset[str]:
        """What a query may be said to ask for: content words of its text, or names.

        Names are those of what it wants, with the detail asked for or without, and of what its
        picture shows; empty if nothing is known.
        """
        row = self._queries.get(query.qid, {})
        target, source = (_name_of(row.get(field)) for field in ("target", "source"))
        said = [content_words(text) for text in (query.text, target, source) if text]
        said.append(asked_words(query.text or "", asked_for(row)))
        if target:
            said.append(content_words(with_detail(target, row)))
        return frozenset(filter(None, said))

    def wanted(self, query: mbeir.Query) -> str | None:
        """The bare name of what a query asks for; None if the metadata has none."""
        return _name_of(self._queries.get(query.qid, {}).get("target"))


def _rows(path: Path, key: str) -> dict[str, _Row]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as handle:
        try:
            return {row[key]: row for row in map(json.loads, handle)}
        except (ValueError, KeyError, TypeError) as error:
            raise mbeir.MBEIRError(f"{path}: a line is no object with {key!r} ({error})") from error


def _name_of(value: Any) -> str | None:
    """The name in a field that is a name, or an object with one."""
    return value.get("name") if isinstance(value, dict) else value


def _names(row: _Row, candidate: mbeir.Candidate) -> list[str]:
    names = (row.get("name"), *(row.get("aliases") or ()), candidate.text)
    return [name for name in names if name]
