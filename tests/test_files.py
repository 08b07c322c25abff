"""Files are replaced whole: links, modes and special files stay what they are."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from retrv_r1 import files
from retrv_r1.data.pictographs import write
from retrv_r1.files import check_writable, replacing, write_whole
from retrv_r1.report import write_html
from retrv_r1.types import RetrvError

WRITERS = {
    "any file": write_whole,
    "page": lambda path, text: write_html(text, path),
    "data set": write.write_text,
}


@pytest.fixture(params=WRITERS)
def write_file(request):
    return WRITERS[request.param]


def test_a_link_stays_and_its_target_is_written(tmp_path, write_file):
    target, link = tmp_path / "real" / "page.html", tmp_path / "link.html"
    write_whole(target, "old")
    link.symlink_to(target)
    write_file(link, "né")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "né"
    hanging = tmp_path / "hanging.html"
    hanging.symlink_to(tmp_path / "real" / "later.html")
    write_file(hanging, "new")
    assert hanging.is_symlink() and (tmp_path / "real" / "later.html").read_text() == "new"
    assert {path.name for path in (tmp_path / "real").iterdir()} == {"page.html", "later.html"}


def test_modes_are_kept_and_new_files_have_the_usual_one(tmp_path, write_file):
    path, usual = tmp_path / "a", tmp_path / "usual"
    usual.write_text("")
    write_file(path, "1")
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o4640)
    write_file(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o4640 and path.read_text() == "2"


def test_the_group_is_kept_where_the_owner_cannot_be(tmp_path, monkeypatch):
    given = []

    def chown(_, owner: int, group: int) -> None:
        if owner != -1:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        given.append(group)

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(files.os, "chown", chown)
    write_whole(path, "new")
    assert path.read_text() == "new" and given == [path.stat().st_gid]


def test_another_owner_lends_no_rights(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "a"
    path.touch()
    path.chmod(0o6755)
    values = list(path.stat())
    values[stat.ST_UID] += 1
    monkeypatch.setattr(files.os, "chown", refuse)
    files._take_over(os.stat_result(values), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_the_mask_of_the_process_is_never_changed(tmp_path, monkeypatch):
    """Other threads would make files with the changed mask."""
    monkeypatch.delattr(os, "umask")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_new_content_of_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o600)
    with replacing(path) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600


def test_pipes_and_devices_are_written_in_place(tmp_path, write_file):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_file(pipe, "through")
    reader.join(10)
    assert found == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    write_file(Path("/dev/null"), "nothing")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_process_has_open_is_continued(tmp_path):
    with (tmp_path / "out").open("w+") as file:
        file.write("before ")
        file.flush()
        write_whole(Path(f"/dev/fd/{file.fileno()}"), "page ")
        assert (tmp_path / "out").read_text() == "before page "
        (tmp_path / "first").symlink_to(f"/dev/fd/{file.fileno()}")
        (tmp_path / "second").symlink_to("first")
        write_whole(tmp_path / "second", "more")
        file.write(" after")
        file.flush()
        assert (tmp_path / "out").read_text() == "before page more after"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_file_in_a_closed_folder_is_written_in_place(tmp_path, monkeypatch, number):
    really = os.open

    def refuse(name, *rest):
        if Path(name).parent == tmp_path:
            raise OSError(number, os.strerror(number))
        return really(name, *rest)

    path = tmp_path / "a"
    path.write_text("old and longer")
    monkeypatch.setattr(files.os, "open", refuse)
    write_whole(path, "new")
    assert path.read_text() == "new"
    with pytest.raises(OSError, match=os.strerror(number)):
        write_whole(tmp_path / "b", "new")


def test_a_mounted_file_is_written_in_place(tmp_path, monkeypatch):
    """As containers mount single files, which cannot be replaced."""

    def refuse(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    path = tmp_path / "a"
    path.write_text("old and longer")
    monkeypatch.setattr(files.os, "replace", refuse)
    write_whole(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("\N{MICROSCOPE}" * 63)  # 252 bytes
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said_before(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "page.html"):
        with pytest.raises(RetrvError, match="cannot write"):
            check_writable(path)
    check_writable(tmp_path / "new" / "folder" / "page.html")
    check_writable(tmp_path / "file")
    check_writable(Path("/dev/null"))
