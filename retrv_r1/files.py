"""Writes files of any kind whole: a reader finds the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from retrv_r1.types import RetrvError

_CLOSED = errno.EACCES, errno.EPERM, errno.EROFS
"""Errors of a folder in which no file can be made."""
_TORCH_WRITER = re.compile("PytorchStreamWriter|inline_container")
"""What torch.save says when it cannot write."""
_MOST_LINKS = 40
"""Links that Linux follows for one path."""


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
    if (special := _special(path)) is not None:
        with open(special, "ab") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    name = target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}")
    mode = 0o666 if old is None else 0o600  # a private file's new content is private from the start
    try:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        if error.errno not in _CLOSED or old is None:
            raise
        with tempfile.TemporaryFile() as file:
            yield file
            _copy(file, target)
        return
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if old is not None:
                _take_over(old, name)
            try:
                os.replace(name, target)
            except OSError as error:
                if error.errno != errno.EBUSY:  # a mounted file
                    raise
                _copy(file, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextmanager
def saving(place: str) -> Iterator[None]:
    """For weights and states of training: a full disk is an OSError, whatever writes.

    Args:
        place: what is written and where, for the message.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _TORCH_WRITER.search(str(error)):
            raise
        raise OSError(f"{place} cannot be written: {error}") from error


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


def _special(path: Path) -> Path | int | None:
    """What to write in place: no regular file, or what a process has open, such as /dev/stdout.

    A copy of the descriptor where this process has it open, so that both share their place in it.
    """
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder == f"/proc/{os.getpid()}/fd" and path.name.isdigit():
            return os.dup(int(path.name))
        if folder.startswith("/proc/") and folder.endswith("/fd"):
            return path
        if not path.is_symlink():
            break
        path = Path(folder, os.readlink(path))
    return path if folder == "/dev" or (path.exists() and not path.is_file()) else None


def _take_over(old: os.stat_result, name: Path) -> None:
    """Gives a new file the mode of the one that it replaces, and its group and owner if it may."""
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):  # a group may be kept alone
        with contextlib.suppress(OSError, AttributeError):
            os.chown(name, owner, group)
    new, mode = name.stat(), stat.S_IMODE(old.st_mode)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # they would lend the rights of another
    os.chmod(name, mode)  # last: chown clears bits of the mode


def _copy(file: IO[bytes], target: Path) -> None:
    file.seek(0)
    with target.open("wb") as out:
        while part := file.read(2**20):
            out.write(part)
