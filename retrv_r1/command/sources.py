"""Candidates from command-line arguments: pictures, folders, text files, JSON Lines, stdin."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from retrv_r1.images import SUFFIXES, describe
from retrv_r1.item_values import URL
from retrv_r1.types import Item, ItemError

UNREAD = (
    *(".heic", ".heif", ".jxl", ".svg", ".svgz", ".psd", ".eps", ".tga", ".xcf"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw"),
)
"""Suffixes of picture files that no decoder here reads."""


def read_candidates(arguments: Iterable[str], stdin: BinaryIO | None = None) -> Iterator[Item]:
    """Yields the candidates that the arguments name, in order, one file open at a time.

    ======================  ====================================================================
    a picture file          one candidate; its id is the path
    a folder                its pictures at any depth, by suffix, sorted by path; hidden files and
                            folders are skipped, links to folders are not followed; a warning
                            counts the pictures of formats that cannot be read
    ``NAME.txt``            one text per line, blank lines skipped; id ``NAME.txt:LINE``
    ``NAME.jsonl``          one item per line: a string, or ``{"id"?, "text"?, "image"?}`` with the
                            picture's path relative to the file's folder, or the picture itself as
                            a ``data:`` URI; id ``NAME.jsonl:LINE``
    ``-``                   lines of ``stdin``: text, or such an object; id ``stdin:LINE``
    ======================  ====================================================================

    Files are UTF-8, with or without a byte order mark. A line ends with LF, CR LF or CR.

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
        elif URL.match(argument) or argument[:5].lower() == "data:":
            raise ItemError(
                f"{describe(argument)} is a URL; download it and name the file, or write "
                '{"image": "data:…"} to a .jsonl file'
            )
        elif not argument or not _exists(path):
            raise ItemError(
                f"no such file: {describe(argument)!r}; to pass a text candidate use - or a .txt "
                "file"
            )
        elif path.is_dir():
            yield from _folder(path)
        elif path.suffix.lower() in SUFFIXES:
            yield Item(image=path, id=_printable(path))
        elif path.suffix.lower() in (".txt", ".jsonl"):
            yield from _text_file(path)
        elif path.suffix.lower() in UNREAD:
            raise ItemError(
                f"cannot read {path.suffix.lower()} pictures: convert {_printable(path)} to PNG or "
                "JPEG"
            )
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
    unread: Counter[str] = Counter()
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(root, name)
            if path.suffix.lower() in SUFFIXES:
                found = True
                yield Item(image=path, id=_printable(path))
            elif path.suffix.lower() in UNREAD:
                unread[path.suffix.lower()] += 1
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
    passed_over = (
        f"{unread.total()} pictures of {_printable(folder)} cannot be read ({kinds}): convert them "
        "to PNG or JPEG"
    )
    if not found and unread:
        raise ItemError(passed_over)
    if not found:
        raise ItemError(f"{folder} holds no pictures ({' '.join(SUFFIXES[:6])} …)")
    if unread:
        warnings.warn(passed_over, stacklevel=2)


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
    for number, raw in enumerate(_split(file), start=1):
        place = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ItemError(f"{place} is not UTF-8 text; convert the file to UTF-8") from error
        if "\0" in line:  # UTF-16 without a byte order mark
            raise ItemError(f"{place} holds NUL characters; convert the file to UTF-8")
        if not line:
            continue
        found = True
        if form == "json" or (form == "either" and line.startswith("{")):
            yield _json_item(line, place, folder)
        else:
            yield Item(text=line, id=place)
    if not found:
        raise ItemError(f"{name} holds no candidates; write one on each line")


def _split(file: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends, which are LF, CR LF or CR."""
    for line in file:
        yield from line.rstrip(b"\r\n").split(b"\r")


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
    if not image or image[:5].lower() == "data:":
        picture: Path | str | None = image or None
    elif URL.match(image):
        raise ItemError(
            f"{place}: image is the URL {describe(image)}; download it and name the file"
        )
    elif not _exists(picture := folder / image):
        raise ItemError(
            f"{place}: no such picture file: {describe(picture)}; image is a path relative to "
            f"{folder.as_posix()}/, or a data: URI"
        )
    try:
        return Item(text=text, image=picture, id=place if name is None else name)
    except ItemError as error:
        raise ItemError(f"{place}: {error}") from error
