"""Parsers for the files of M-BEIR's format: candidates, queries, qrels, instructions."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from retrv_r1.types import RetrvError

# Task id -> (modality of the query, modality of the candidates).
TASKS: Mapping[int, tuple[str, str]] = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
_MODALITIES = frozenset({"text", "image", "image,text"})
IDENTITY = re.compile("(?:0|[1-9][0-9]{0,5}):(?:0|[1-9][0-9]{0,11})")


class MBEIRError(RetrvError, ValueError):
    """A directory or line that is not in M-BEIR's format; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a pool.

    Args:
        image: path relative to the data root.
    """

    did: str
    text: str | None
    image: str | None
    modality: str


@dataclass(frozen=True, slots=True)
class Query:
    """A query with its judgements.

    Args:
        image: path relative to the data root.
        positives: dids of relevant candidates, in the file's order.
        negatives: dids of the listed hard negatives; may be empty.
        instructions: wordings of its instruction; empty if the table has none.
        disputed: whether its own list of positives differs from the qrels.
    """

    qid: str
    text: str | None
    image: str | None
    modality: str
    task_id: int
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    instructions: tuple[str, ...] = ()
    disputed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a text file, without its end.

    Args:
        number: number of the line, from 1.
        start: place of its first byte in the file.
        whole: whether the line has an end; a file that was cut off ends without one.
    """

    path: Path
    text: str
    number: int
    start: int
    whole: bool

    @property
    def where(self) -> str:
        """``file:line``, for messages."""
        return f"{self.path}:{self.number}"

    def json(self) -> dict[str, Any]:
        """The JSON object in the line.

        Raises:
            MBEIRError: the line is no JSON object.
        """
        try:
            row = json.loads(self.text)
        except json.JSONDecodeError as error:
            cut = "" if self.whole else "; the file seems to be cut off"
            raise MBEIRError(
                f"{self.where}: not JSON ({error.msg}){cut}; copy or build it again"
            ) from error
        if not isinstance(row, dict):
            raise MBEIRError(f"{self.where}: a JSON object is needed, not {type(row).__name__}")
        return row


def lines(path: Path) -> Iterator[Line]:
    """Yields the lines of a UTF-8 file that are not blank; a byte order mark is passed over.

    Raises:
        MBEIRError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as handle:
            start = 0
            for number, raw in enumerate(handle, 1):
                text = decode(raw, f"{path}:{number}", first=number == 1)
                if text.strip():
                    yield Line(path, text.rstrip("\r\n"), number, start, raw.endswith(b"\n"))
                start += len(raw)
    except OSError as error:
        raise MBEIRError(f"cannot read {path}: {error.strerror}; copy or build it again") from error


def decode(raw: bytes, where: str, *, first: bool) -> str:
    """The text of a line; ``first`` says that it may begin with a byte order mark.

    Raises:
        MBEIRError: the line is not UTF-8.
    """
    if first and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise MBEIRError(f"{where}: the file is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise MBEIRError(
            f"{where}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def json_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the objects of a JSON-lines file, each with ``file:line`` for messages.

    Raises:
        MBEIRError: the file cannot be read, or a line is no JSON object.
    """
    for line in lines(path):
        yield line.json(), line.where


def _text(row: Mapping[str, Any], key: str, where: str) -> str | None:
    """An optional string; an absent or empty one counts as None."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise MBEIRError(f"{where}: {key!r} must be a string or null")
    return value if value and value.strip() else None


def _image(row: Mapping[str, Any], key: str, where: str) -> str | None:
    path = _text(row, key, where)
    if path and (path.startswith("/") or ".." in path.split("/")):
        raise MBEIRError(f"{where}: {key!r} must stay inside the data directory, not {path!r}")
    return path


def _identity(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _text(row, key, where)
    if value is None or not IDENTITY.fullmatch(value):
        raise MBEIRError(f"{where}: {key!r} must look like '9:12', not {row.get(key)!r}")
    return value


def _modality(
    row: Mapping[str, Any], key: str, where: str, text: str | None, image: str | None
) -> str:
    value = _text(row, key, where)
    if value not in _MODALITIES:
        raise MBEIRError(f"{where}: {key!r} must be one of {sorted(_MODALITIES)}, not {value!r}")
    for part, content in (("text", text), ("image", image)):
        if part in value.split(",") and content is None:
            raise MBEIRError(f"{where}: {key!r} is {value!r}, but there is no {part}")
    return value


def _ids(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key) or []
    if not isinstance(value, list) or not all(
        isinstance(did, str) and IDENTITY.fullmatch(did) for did in value
    ):
        raise MBEIRError(f"{where}: {key!r} must be a list of ids such as '9:12'")
    return tuple(value)


def parse_candidate(row: Mapping[str, Any], where: str) -> Candidate:
    """A candidate from a line of a pool; ``where`` is named by MBEIRError."""
    text, image = _text(row, "txt", where), _image(row, "img_path", where)
    modality = _modality(row, "modality", where, text, image)
    return Candidate(_identity(row, "did", where), text, image, modality)


def parse_query(
    row: Mapping[str, Any],
    where: str,
    judged: Mapping[str, list[str]],
    prompts: Mapping[tuple[str, str, str], tuple[str, ...]],
) -> Query:
    """A query from a line; MBEIRError as above.

    Positives are those of the qrels, and the line's own list only where the qrels lack the query.

    Args:
        judged: relevant dids by qid, from the qrels.
        prompts: instructions; see :func:`read_instructions`.
    """
    qid = _identity(row, "qid", where)
    text, image = _text(row, "query_txt", where), _image(row, "query_img_path", where)
    modality = _modality(row, "query_modality", where, text, image)
    task = row.get("task_id")
    if not isinstance(task, int) or task not in TASKS:
        raise MBEIRError(f"{where}: 'task_id' must be one of {sorted(TASKS)}, not {task!r}")
    listed = _ids(row, "pos_cand_list", where)
    positives = tuple(judged.get(qid, listed))
    if not positives:
        raise MBEIRError(
            f"{where}: query {qid} has no positive, and the qrels have none either; add one to the "
            "qrels, or remove the query"
        )
    return Query(
        qid=qid,
        text=text,
        image=image,
        modality=modality,
        task_id=task,
        positives=positives,
        negatives=_ids(row, "neg_cand_list", where),
        disputed=bool(listed) and set(listed) != set(positives),
        instructions=prompts.get((qid.split(":")[0], modality, TASKS[task][1]), ()),
    )


def read_qrels(path: Path) -> dict[str, list[str]]:
    """Relevant dids of each judged qid, if any; empty if there is no such file."""
    found: dict[str, list[str]] = {}
    for line in lines(path) if path.is_file() else ():
        fields = line.text.split()
        if len(fields) not in (4, 5) or not fields[3].lstrip("-").isdecimal():
            raise MBEIRError(
                f"{line.where}: `qid 0 did 1 task_id` is needed, not {line.text.strip()!r}"
            )
        if not (IDENTITY.fullmatch(fields[0]) and IDENTITY.fullmatch(fields[2])):
            raise MBEIRError(f"{line.where}: ids must look like '9:12', not {line.text.strip()!r}")
        relevant = found.setdefault(fields[0], [])
        if int(fields[3]) > 0:
            relevant.append(fields[2])
    return found


def read_instructions(path: Path) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Wordings by (dataset id, query modality, candidate modality); empty without the file."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for line in islice(lines(path), 1, None) if path.is_file() else ():
        fields = line.text.split("\t")
        if len(fields) < 5:
            raise MBEIRError(f"{line.where}: five or more tab-separated columns are needed")
        query, candidate, _, dataset = fields[:4]
        found[dataset, query, candidate] = tuple(p.strip() for p in fields[4:] if p.strip())
    return found
