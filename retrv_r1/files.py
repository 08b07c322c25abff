"""Writes files of any kind whole: a reader finds the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrv_r1.types import RetrvError

_CLOSED = errno.EACCES, errno.EPERM, errno.EROFS
"""Errors of a folder in which no file can be made."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` at the end, unless an error ends the block.

    A link stays, and the file that it points to is replaced. Mode and, where that is permitted,
    group and owner are kept. What is no regular file (a device, a pipe) and what cannot be replaced
    (a file in a folder that is not writable, a mount) is written in place.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_special(path):
        with path.open("ab") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:32]}.", dir=target.parent)
    except OSError as error:
        if error.errno not in _CLOSED or not target.exists():
            raise
        with tempfile.TemporaryFile() as file:
            yield file
            _copy(file, target)
        return
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            _take_over(target, name)
            try:
                os.replace(name, target)
            except OSError as error:
                if error.errno != errno.EBUSY:  # a mounted file
                    raise
                _copy(file, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_whole(path: Path, text: str) -> None:
    """Writes a text as UTF-8; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def check_writable(path: Path) -> None:
    """Says before the work that a file cannot be written after it.

    Raises:
        RetrvError: it is a folder, or its folder cannot be written to.
    """
    if path.is_dir():
        raise RetrvError(f"cannot write {path}: it is a folder; name a file")
    if path.exists():
        fits = os.access(path, os.W_OK)
    else:
        above = next(folder for folder in Path(os.path.realpath(path)).parents if folder.exists())
        fits = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
    if not fits:
        raise RetrvError(f"cannot write {path}; name a file in a writable folder")


def _is_special(path: Path) -> bool:
    """Whether a path is no regular file, or one that a process has open, such as /dev/stdout."""
    folder = os.path.realpath(path.parent)
    opened = folder == "/dev" or (folder.startswith("/proc/") and folder.endswith("/fd"))
    return opened or (path.exists() and not path.is_file())


def _take_over(target: Path, name: str) -> None:
    """Gives a new file the mode of the one that it replaces, and its group and owner if it may."""
    try:
        old = target.stat()
    except FileNotFoundError:
        os.chmod(name, 0o666 & ~_umask())
        return
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):  # a group may be kept alone
        with contextlib.suppress(OSError, AttributeError):
            os.chown(name, owner, group)
    os.chmod(name, stat.S_IMODE(old.st_mode))  # last: chown clears bits of the mode


def _copy(file: IO[bytes], target: Path) -> None:
    file.seek(0)
    with target.open("wb") as out:
        while part := file.read(2**20):
            out.write(part)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
