"""Packs: the training and validation part of a built data set in one file.

Machines that cannot build a data set can still read a pack: it needs none of the data extra's
packages. A pack is a tar archive, compressed with xz, of the train and val cells, metadata,
manifest, attribution and one array of the pictures that these cells show. It has no test cells.
The same data set gives the same bytes.
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

from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.files import replacing
from retrv_r1.types import RetrvError

FORMAT = 1
SPLITS = ("train", "val")
_HEADER, _MARKER = "pack.json", ".pack"
# Literal and position bits suit pixels of four bytes. The pictographs' pack, 18,306 pictures of
# 64 pixels a side with all texts, takes 45,982,300 bytes.
_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26, "lc": 0, "lp": 2, "pb": 2}


_AGAIN = "build it again with `retrv-r1 data pictographs`"


class PackError(RetrvError, ValueError):
    """A file that is not a valid pack, or a data set that cannot be packed."""


def pack(root: Path, out: Path) -> int:
    """Writes a data set's training and validation part into one file; returns its size in bytes.

    Args:
        root: directory that ``retrv-r1 data pictographs`` built.

    Raises:
        RetrvError: ``root`` is not such a directory, or a file in it is damaged.
    """
    for name in ("manifest.json", "pictures.npy", "pictures.jsonl", "query"):
        if not (root / name).exists():
            raise PackError(f"{root} has no {name}: build it with `retrv-r1 data pictographs`")
    texts = sorted(_texts(root))
    shown = set().union(*(_pictures_of(root, split) for split in SPLITS))
    rows = [row for row, _ in json_lines(root / "pictures.jsonl") if row["img_path"] in shown]
    if missing := shown - {row["img_path"] for row in rows}:
        raise PackError(f"{root}/pictures.jsonl lacks {sorted(missing)[0]}, {_AGAIN}")
    try:
        pixels = np.load(root / "pictures.npy", mmap_mode="r")[[row["row"] for row in rows]]
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
        header = {"format": FORMAT, "hash": manifest["hash"]}
    except (ValueError, KeyError, IndexError, EOFError) as error:
        raise PackError(
            f"pictures.npy or manifest.json of {root} is damaged ({error}), {_AGAIN}"
        ) from error
    numbered = [{**row, "row": number} for number, row in enumerate(rows)]
    with (
        replacing(out) as file,
        lzma.open(file, "wb", check=lzma.CHECK_SHA256, filters=[_FILTER]) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
        tempfile.TemporaryFile() as array,
    ):
        _add_file(archive, _HEADER, io.BytesIO(json.dumps(header).encode()))
        for path in texts:
            with path.open("rb") as content:
                _add_file(archive, path.relative_to(root).as_posix(), content)
        _add_file(archive, "pictures.jsonl", io.BytesIO(_json_lines(numbered)))
        np.save(array, pixels)
        _add_file(archive, "pictures.npy", array)
    return out.stat().st_size


def unpack(file: Path, folder: Path, queries: int | None = None) -> Path:
    """Unpacks a data set into a folder and returns it; a folder unpacked before is left as it is.

    Args:
        queries: number of queries that each cell keeps, for rehearsals; None for all.

    Raises:
        PackError: the file is not a pack, is damaged or cut off, or the folder holds other files.
    """
    try:
        with file.open("rb") as content:
            mark = f"{hashlib.file_digest(content, 'sha256').hexdigest()} {queries}"
    except OSError as error:
        raise PackError(
            f"cannot read {file}: {error}; `retrv-r1 data pack` writes a pack"
        ) from error
    marker = folder / _MARKER
    if marker.is_file() and marker.read_text() == mark:
        return folder
    if folder.exists() and not marker.is_file():
        raise PackError(f"{folder} was not made from a pack: name another folder for {file}")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _extract(file, temporary)
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise PackError(
            f"{file} is no pack of `retrv-r1 data pack`, or it is damaged or cut off ({error}); "
            "copy or pack it again"
        ) from error
    if queries is not None:
        _keep_few_queries(temporary, queries)
    _write_pictures(temporary)
    (temporary / _MARKER).write_text(mark)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def data_folder(data: Path, unpacked: Path) -> Path:
    """Folder of a data set: ``data`` itself, or ``unpacked`` if ``data`` is a pack."""
    return unpack(data, unpacked) if data.is_file() else data


def _extract(file: Path, folder: Path) -> None:
    with lzma.open(file) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        first = archive.next()
        content = archive.extractfile(first) if first and first.name == _HEADER else None
        if content is None:
            raise tarfile.ReadError(f"its first entry is not {_HEADER}")
        found = json.loads(content.read())["format"]
        if found != FORMAT:
            raise PackError(f"{file} has format {found}; this version reads {FORMAT}")
        while entry := archive.next():
            archive.extract(entry, folder, filter="data")
        while stream.read(2**20):  # xz compares its checksum at the end
            pass


def _texts(root: Path) -> Iterator[Path]:
    for split in SPLITS:
        yield from root.glob(f"query/{split}/*.jsonl")
        yield from root.glob(f"cand_pool/local/*_{split}_cand_pool.jsonl")
        yield from root.glob(f"qrels/{split}/*.txt")
    for pattern in ("instructions/*", "metadata.jsonl", "manifest.json", "ATTRIBUTION.md"):
        yield from root.glob(pattern)


def _pictures_of(root: Path, split: str) -> set[str]:
    """Paths of pictures in a split's queries and pools."""
    shown = set()
    for path in root.glob(f"query/{split}/*.jsonl"):
        shown |= {row["query_img_path"] for row, _ in json_lines(path)}
    for path in root.glob(f"cand_pool/local/*_{split}_cand_pool.jsonl"):
        shown |= {row["img_path"] for row, _ in json_lines(path)}
    return shown - {None}


def _write_pictures(folder: Path) -> None:
    """Writes the val split's pictures as files, which calibration reads."""
    pixels = np.load(folder / "pictures.npy", mmap_mode="r")
    shown = _pictures_of(folder, "val")
    for row, _ in json_lines(folder / "pictures.jsonl"):
        if row["img_path"] in shown:
            path = folder / row["img_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row["row"]], "RGBA").save(path)


def _keep_few_queries(folder: Path, queries: int) -> None:
    """Keeps each cell's first ``queries`` with two positives each, and ``queries`` candidates."""
    remaining: set[str] = set()
    for path in folder.glob("query/*/*.jsonl"):
        kept = [row for row, _ in json_lines(path)][:queries]
        pool = folder / "cand_pool/local" / f"{path.stem}_cand_pool.jsonl"
        rows = [row for row, _ in json_lines(pool)]
        named = {did for row in kept for did in row["pos_cand_list"][:2]}
        named |= {row["did"] for row in rows[:queries]}
        for row in kept:
            for name in ("pos_cand_list", "neg_cand_list"):
                row[name] = [did for did in row[name] if did in named]
        path.write_bytes(_json_lines(kept))
        pool.write_bytes(_json_lines([row for row in rows if row["did"] in named]))
        remaining |= named
    metadata = folder / "metadata.jsonl"
    rows = [row for row, _ in json_lines(metadata) if row["did"] in remaining]
    metadata.write_bytes(_json_lines(rows))


def _add_file(archive: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    """Adds a file without its time, owner and mode, so that bytes depend on content alone."""
    entry = tarfile.TarInfo(name)
    entry.size = content.seek(0, io.SEEK_END)
    content.seek(0)
    archive.addfile(entry, content)


def _json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
