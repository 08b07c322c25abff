"""Candidates from command-line arguments: pictures, folders, text files, JSON Lines, stdin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from retrv_r1.images import SUFFIXES
from retrv_r1.types import Item, ItemError


def read_candidates(arguments: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[Item]:
    """Yields the candidates that the arguments name, in order, one file open at a time.

    ======================  ====================================================================
    a picture file          one candidate; its id is the path
    a folder                its pictures at any depth, by suffix, sorted by path; hidden files and
                            folders are skipped, links to folders are not followed
    ``NAME.txt``            one text per line, blank lines skipped; id ``NAME.txt:LINE``
    ``NAME.jsonl``          one item per line: a string, or ``{"id"?, "text"?, "image"?}`` with the
                            picture's path relative to the file's folder; id ``NAME.jsonl:LINE``
    ``-``                   lines of ``stdin``: text, or such an object; id ``stdin:LINE``
    ======================  ====================================================================

    Raises:
        ItemError: an argument of another kind, an empty source, or a malformed line; the message
            names the argument or ``file:line``, and the fix.
    """
    used_stdin = False
    for argument in arguments:
        path = Path(argument)
        if argument == "-":
            if used_stdin:
                raise ItemError("- (standard input) can be given once")
            if stdin is None:
                raise ItemError("there is no standard input to read candidates from")
            used_stdin = True
            yield from _lines(stdin, "stdin", Path(), "either")
        elif not argument or not _exists(path):
            raise ItemError(
                f"no such file: {argument!r}; to pass a text candidate use - or a .txt file"
            )
        elif path.is_dir():
            yield from _folder(path)
        elif path.suffix.lower() in SUFFIXES:
            yield Item(image=path, id=_printable(path))
        elif path.suffix.lower() in (".txt", ".jsonl"):
            yield from _text_file(path)
        else:
            raise ItemError(
                f"cannot tell what {_printable(path)} holds; candidates are pictures "
                f"({' '.join(SUFFIXES[:6])} …), folders of them, .txt, .jsonl, or -"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a long text given as an argument is not a file name
        return False


def _printable(path: Path) -> str:
    """A path as valid UTF-8, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _folder(folder: Path) -> Iterator[Item]:
    def refuse(error: OSError) -> None:
        raise ItemError(f"cannot read {error.filename}: {error.strerror}; check its permissions")

    found = False
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES:
                found = True
                yield Item(image=path, id=_printable(path))
    if not found:
        raise ItemError(f"{folder} holds no pictures ({' '.join(SUFFIXES[:6])} …)")


def _text_file(path: Path) -> Iterator[Item]:
    try:
        with path.open("rb") as file:
            form: Literal["text", "json"] = "json" if path.suffix.lower() == ".jsonl" else "text"
            yield from _lines(file, _printable(path), path.parent, form)
    except OSError as error:
        raise ItemError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _lines(
    file: BinaryIO, name: str, folder: Path, form: Literal["text", "json", "either"]
) -> Iterator[Item]:
    """Items of a file's lines; ``either`` reads a line that starts with ``{`` as JSON."""
    found = False
    for number, raw in enumerate(file, start=1):
        place = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ItemError(f"{place} is not UTF-8 text; convert the file to UTF-8") from error
        if not line:
            continue
        found = True
        if form == "json" or (form == "either" and line.startswith("{")):
            yield _json_item(line, place, folder)
        else:
            yield Item(text=line, id=place)
    if not found:
        raise ItemError(f"{name} holds no candidates; write one on each line")


def _json_item(line: str, place: str, folder: Path) -> Item:
    form = 'a string or {"id", "text", "image"}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ItemError(f"{place} is not JSON ({error}); write {form}") from error
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise ItemError(f"{place} is {json.dumps(value)[:40]}; write {form}")
    name, text, image = value.get("id"), value.get("text"), value.get("image")
    if unknown := sorted(set(value) - {"id", "text", "image"}):
        raise ItemError(f"{place} has unknown fields {unknown}; use id, text, image")
    if not isinstance(text, str | None) or not isinstance(image, str | None):
        raise ItemError(f"{place}: text and image must be strings; write {form}")
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise ItemError(f"{place}: the text holds half a surrogate pair; write whole characters")
    if not isinstance(name, str | int | None) or isinstance(name, bool):
        raise ItemError(f"{place}: id must be a string or a whole number")
    picture = folder / image if image else None
    if picture is not None and not _exists(picture):
        raise ItemError(
            f"{place}: no such picture file: {picture}; image is a path relative to "
            f"{folder.as_posix()}/"
        )
    try:
        return Item(text=text, image=picture, id=place if name is None else str(name))
    except ItemError as error:
        raise ItemError(f"{place}: {error}") from error
