"""A built data set as one file, with what training, validation and shipping need of it.

For machines that nothing can be built on: reading a pack takes no package beyond the core ones.
It is a tar archive, compressed by xz: the train and val cells, metadata, manifest, attribution, and
one array of the pictures that these cells show, as they are stored. The same data set gives the
same bytes. Test cells stay behind.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from retrv_r1.types import RetrvError

FORMAT = 1
SPLITS = ("train", "val")
_LABEL, _MARK = "pack.json", ".pack"
# Literal and position bits for pixels of four bytes. The pictographs' training part, 18,306
# pictures of 64 pixels with all texts, takes 45,982,300 bytes.
_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26, "lc": 0, "lp": 2, "pb": 2}


class PackError(RetrvError, ValueError):
    """A file that is no pack, or a damaged one, or a data set that cannot be packed."""


def pack(root: Path, out: Path) -> int:
    """Writes a data set's training part into one file; returns its size in bytes.

    Args:
        root: what ``retrv-r1 data pictographs`` built.

    Raises:
        PackError: ``root`` is not such a directory.
    """
    for name in ("manifest.json", "pictures.npy", "pictures.jsonl", "query"):
        if not (root / name).exists():
            raise PackError(f"{root} has no {name}: build it with `retrv-r1 data pictographs`")
    texts = sorted(_texts(root))
    shown = set().union(*(_pictures_of(root, split) for split in SPLITS))
    rows = [row for row in _lines(root / "pictures.jsonl") if row["img_path"] in shown]
    if missing := shown - {row["img_path"] for row in rows}:
        raise PackError(f"{root}/pictures.jsonl lacks {sorted(missing)[0]}, which a cell shows")
    pixels = np.load(root / "pictures.npy", mmap_mode="r")[[row["row"] for row in rows]]
    numbered = [{**row, "row": number} for number, row in enumerate(rows)]
    label = {
        "format": FORMAT,
        "hash": json.loads((root / "manifest.json").read_text(encoding="utf-8"))["hash"],
    }
    spool = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        lzma.open(spool, "wb", check=lzma.CHECK_SHA256, filters=[_FILTER]) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
        tempfile.TemporaryFile() as array,
    ):
        _add(archive, _LABEL, io.BytesIO(json.dumps(label).encode()))
        for path in texts:
            with path.open("rb") as content:
                _add(archive, path.relative_to(root).as_posix(), content)
        _add(archive, "pictures.jsonl", io.BytesIO(_joined(numbered)))
        np.save(array, pixels)
        _add(archive, "pictures.npy", array)
    spool.replace(out)
    return out.stat().st_size


def unpack(file: Path, folder: Path, queries: int | None = None) -> Path:
    """Writes a pack's data set into a folder, which is returned; once, if it is there already.

    Args:
        queries: keep so many queries of each cell and little else, for rehearsals.

    Raises:
        PackError: the file is no pack, or is damaged or cut off; or the folder holds other things.
    """
    try:
        with file.open("rb") as content:
            mark = f"{hashlib.file_digest(content, 'sha256').hexdigest()} {queries}"
    except OSError as error:
        raise PackError(f"cannot read {file}: {error}") from error
    marked = folder / _MARK
    if marked.is_file() and marked.read_text() == mark:
        return folder
    if folder.exists() and not marked.is_file():
        raise PackError(f"{folder} was not made from a pack: name another folder for {file}")
    spool = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir(parents=True)
    try:
        _extract(file, spool)
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise PackError(
            f"{file} is no pack of `retrv-r1 data pack`, or it is damaged or cut off: {error}"
        ) from error
    if queries is not None:
        _thin(spool, queries)
    _write_pictures(spool)
    (spool / _MARK).write_text(mark)
    shutil.rmtree(folder, ignore_errors=True)
    spool.rename(folder)
    return folder


def data_folder(data: Path, unpacked: Path) -> Path:
    """A data set's folder: ``data`` itself, or ``unpacked``, with what is in the pack ``data``."""
    return unpack(data, unpacked) if data.is_file() else data


def _extract(file: Path, folder: Path) -> None:
    with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        first = archive.next()
        content = archive.extractfile(first) if first and first.name == _LABEL else None
        if content is None:
            raise tarfile.ReadError(f"its first entry is not {_LABEL}")
        found = json.loads(content.read())["format"]
        if found != FORMAT:
            raise PackError(f"{file} has format {found}; this version reads {FORMAT}")
        while entry := archive.next():
            archive.extract(entry, folder, filter="data")
        while stream.read(2**20):  # to the end, where xz compares its checksum
            pass


def _texts(root: Path) -> Iterator[Path]:
    for split in SPLITS:
        yield from root.glob(f"query/{split}/*.jsonl")
        yield from root.glob(f"cand_pool/local/*_{split}_cand_pool.jsonl")
        yield from root.glob(f"qrels/{split}/*.txt")
    for pattern in ("instructions/*", "metadata.jsonl", "manifest.json", "ATTRIBUTION.md"):
        yield from root.glob(pattern)


def _pictures_of(root: Path, split: str) -> set[str]:
    """Paths of the pictures that a split's cells show."""
    shown = set()
    for path in root.glob(f"query/{split}/*.jsonl"):
        shown |= {row["query_img_path"] for row in _lines(path)}
    for path in root.glob(f"cand_pool/local/*_{split}_cand_pool.jsonl"):
        shown |= {row["img_path"] for row in _lines(path)}
    return shown - {None}


def _write_pictures(folder: Path) -> None:
    """Writes the pictures of the val split as files: calibration reads those."""
    pixels = np.load(folder / "pictures.npy", mmap_mode="r")
    shown = _pictures_of(folder, "val")
    for row in _lines(folder / "pictures.jsonl"):
        if row["img_path"] in shown:
            path = folder / row["img_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row["row"]], "RGBA").save(path)


def _thin(folder: Path, queries: int) -> None:
    """Keeps the first ``queries`` of each cell, two answers each, and as many other candidates."""
    left: set[str] = set()
    for path in folder.glob("query/*/*.jsonl"):
        kept = list(_lines(path))[:queries]
        pool = folder / "cand_pool/local" / f"{path.stem}_cand_pool.jsonl"
        rows = list(_lines(pool))
        named = {did for row in kept for did in row["pos_cand_list"][:2]}
        named |= {row["did"] for row in rows[:queries]}
        for row in kept:
            for name in ("pos_cand_list", "neg_cand_list"):
                row[name] = [did for did in row[name] if did in named]
        path.write_bytes(_joined(kept))
        pool.write_bytes(_joined([row for row in rows if row["did"] in named]))
        left |= named
    metadata = folder / "metadata.jsonl"
    metadata.write_bytes(_joined([row for row in _lines(metadata) if row["did"] in left]))


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    """Adds a file without time, owner or mode of its own."""
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, io.SEEK_END)
    content.seek(0)
    archive.addfile(entry, content)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _joined(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
