"""What a data set's metadata says of candidates and queries, to check what chains say of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retrv_r1.data import mbeir
from retrv_r1.model.chains import content_words, words

_Row = Mapping[str, Any]


class Names:
    """Names of candidates and of what queries ask for.

    Args:
        root: folder of the data set. ``metadata.jsonl`` may give candidates a ``name``,
            ``aliases`` and ``details`` (values by kind), by ``did``; ``query_metadata.jsonl`` may
            give queries a ``target`` and a ``source`` (names, or objects with one), by ``qid``.
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
        return _known([row.get("name"), *(row.get("aliases") or ()), candidate.text])

    def details(self, candidate: mbeir.Candidate) -> dict[str, str]:
        """Values of a candidate's details by kind, as ``words``."""
        found = self._candidates.get(candidate.did, {}).get("details") or {}
        return {kind: words(str(value)) for kind, value in found.items() if value}

    def of_query(self, query: mbeir.Query) -> frozenset[str]:
        """What a query may be said to ask for: content words of its text, or names.

        Names are those of what it wants and of what its picture shows; empty if nothing is known.
        """
        row = self._queries.get(query.qid, {})
        named = [_name_of(row.get(field)) for field in ("target", "source")]
        return frozenset(filter(None, map(content_words, filter(None, [query.text, *named]))))

    def wanted(self, query: mbeir.Query) -> str | None:
        """The bare name of what a query asks for; None if the metadata has none."""
        return _name_of(self._queries.get(query.qid, {}).get("target"))


def states(statement: str, names: Iterable[str], details: Mapping[str, str]) -> bool:
    """Whether a statement says a name, and nothing besides but details of the same thing."""
    said, known = set(statement.split()), {w for value in details.values() for w in value.split()}
    return any(set(name.split()) <= said <= {*name.split(), *known} for name in names)


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


def _known(texts: Iterable[str | None]) -> frozenset[str]:
    return frozenset(filter(None, (words(text) for text in texts if text)))
