"""Packs: the training and validation part of a built data set in one file.

Machines that cannot build a data set can still read a pack: it needs none of the data extra's
packages. A pack is a tar archive, compressed with xz, of the train and val cells, metadata,
manifest, attribution and the arrays of the pictures that these cells show. It has no test cells,
only the names that they hold out. A pack may leave out pictures, and what is asked of them; then it
has whole sets of drawings, because lists and near twins are of one set. The same data set gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from retrv_r1.data.mbeir_lines import json_lines
from retrv_r1.data.pictures import ARRAYS
from retrv_r1.files import replacing
from retrv_r1.types import RetrvError

FORMAT = 1
SPLITS = ("train", "val")
_HEADER, _MARKER = "pack.json", ".pack"
# Literal and position bits suit pixels of four bytes. The pictographs' pack, 18,306 pictures of
# 64 pixels a side with all texts, takes 45,982,300 bytes.
_FILTER = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26, "lc": 0, "lp": 2, "pb": 2}


_AGAIN = "build it again with `retrv-r1 data pictographs` or `retrv-r1 data icons`"
HELD_OUT = "held_out_names.json"
"""Names of pictures that are held out and left behind: nothing else may teach them."""


# Rows of some files that are read with a pack: of training queries those that ask for a detail,
# of validation all, because evaluation reads their targets, too.
_CHOSEN: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "query_metadata.jsonl": lambda row: (
        row.get("split") == "val" or (row.get("split") == "train" and bool(row.get("detail")))
    ),
    "terms.jsonl": lambda row: row.get("split", "train") == "train",
}


class PackError(RetrvError, ValueError):
    """A file that is not a valid pack, or a data set that cannot be packed."""


def pack(root: Path, out: Path, limit: int | None = None, levels: int = 256) -> int:
    """Writes a data set's training and validation part into one file; returns its size in bytes.

    Args:
        root: directory that ``retrv-r1 data pictographs`` or ``retrv-r1 data icons`` built.
        limit: number of pictures that training may show beside those of validation; None for all.
        levels: number of values that a colour channel and a coverage keep, 2 to 256. Fewer take
            fewer bytes: training changes colours by more than the steps between 32 levels.

    Raises:
        RetrvError: ``root`` is not such a directory, or a file in it is damaged.
    """
    if not 2 <= levels <= 256:
        raise PackError(f"levels must be 2 to 256, got {levels}")
    for name in ("manifest.json", "pictures.npy", "pictures.jsonl", "query"):
        if not (root / name).exists():
            raise PackError(f"{root} has no {name}: build it with `retrv-r1 data pictographs`")
    listed = [row for row, _ in json_lines(root / "pictures.jsonl")]
    shown = set().union(*(_pictures_of(root, split) for split in SPLITS))
    shown |= {row["img_path"] for row in listed if row.get("split") == "train"}
    if missing := shown - {row["img_path"] for row in listed}:
        raise PackError(f"{root}/pictures.jsonl lacks {sorted(missing)[0]}, {_AGAIN}")
    if limit is not None:
        shown = _whole_sets(shown, _pictures_of(root, "val"), limit)
    rows = [row for row in listed if row["img_path"] in shown]
    try:
        arrays = _arrays(root, [row["row"] for row in rows])
        manifest = (root / "manifest.json").read_bytes()
        header = {"format": FORMAT, "hash": _hash_of(manifest)}
    except (ValueError, KeyError, IndexError, EOFError) as error:
        raise PackError(
            f"{', '.join(ARRAYS)} or manifest.json of {root} is damaged ({error}), {_AGAIN}"
        ) from error
    held = {row["name"] for row in listed if row.get("split") in ("unseen", "composition")}
    files = {
        "pictures.jsonl": _json_lines([{**row, "row": n} for n, row in enumerate(rows)]),
        HELD_OUT: json.dumps(sorted(held), ensure_ascii=False).encode(),
    }
    with (
        replacing(out) as file,
        lzma.open(file, "wb", check=lzma.CHECK_SHA256, filters=[_FILTER]) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        _add_file(archive, _HEADER, io.BytesIO(json.dumps(header).encode()))
        for name, content in _texts(root) if limit is None else _texts_about(root, shown):
            _add_file(archive, name, io.BytesIO(content))
        for name, content in files.items():
            _add_file(archive, name, io.BytesIO(content))
        for name, pixels in arrays.items():
            with tempfile.TemporaryFile() as array:
                np.save(array, _rounded(pixels, levels))
                _add_file(archive, name, array)
    return out.stat().st_size


def _hash_of(manifest: bytes) -> str:
    """A data set's own hash, or that of its manifest where it says none."""
    return json.loads(manifest).get("hash") or hashlib.sha256(manifest).hexdigest()


def _arrays(root: Path, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """The pictures in some rows, by the names of their arrays."""
    found, first = {}, 0
    for name in ARRAYS:
        if (root / name).is_file():
            pixels = np.load(root / name, mmap_mode="r")
            found[name] = pixels[[r - first for r in rows if first <= r < first + len(pixels)]]
            first += len(pixels)
    if rows and max(rows) >= first:
        raise IndexError(f"{first} pictures have no row {max(rows)}")
    return found


def _rounded(pixels: np.ndarray, levels: int) -> np.ndarray:
    """Pictures or coverages ``uint8`` with the nearest of evenly spaced levels."""
    steps = np.round(np.arange(256) / 255 * (levels - 1)) * 255 / (levels - 1)
    return steps.round().astype(np.uint8)[pixels]


def _whole_sets(shown: set[str], always: set[str], limit: int) -> set[str]:
    """Pictures of validation, and of sets of drawings (folders) in a fixed random order."""
    sets: dict[str, list[str]] = defaultdict(list)
    for path in shown - always:
        sets[path.rpartition("/")[0]].append(path)
    kept: set[str] = set()
    for name in sorted(sets, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(kept) + len(sets[name]) <= limit:
            kept |= set(sets[name])
    return kept | always


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


def _texts(root: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all text files of a pack."""
    patterns = ["instructions/*", "metadata.jsonl", "manifest.json", "ATTRIBUTION.md"]
    patterns += ["concepts.json", "terms.jsonl", "query_metadata.jsonl"]
    for split in SPLITS:
        patterns += [f"query/{split}/*.jsonl", f"qrels/{split}/*.txt"]
        patterns += [f"cand_pool/local/*_{split}_cand_pool.jsonl"]
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        content = path.read_bytes()
        if path.name in _CHOSEN:
            rows = [row for row, _ in json_lines(path) if _CHOSEN[path.name](row)]
            content = _json_lines(rows)
        yield path.relative_to(root).as_posix(), content


def _texts_about(root: Path, shown: set[str]) -> Iterator[tuple[str, bytes]]:
    """The same, of a data set that had only some pictures; queries have their own judgements."""
    parsed = {
        name: [json.loads(line) for line in content.splitlines()]
        for name, content in _texts(root)
        if name.startswith(("query/", "cand_pool/")) or name == "metadata.jsonl"
    }
    dids = set()
    for name, rows in parsed.items():
        if name.startswith("cand_pool/"):
            parsed[name] = [c for c in rows if c["img_path"] is None or c["img_path"] in shown]
            dids |= {candidate["did"] for candidate in parsed[name]}
    for name, rows in parsed.items():
        if name.startswith("query/"):
            lists = ("pos_cand_list", "neg_cand_list")
            rows = [q | {x: [d for d in q[x] if d in dids] for x in lists} for q in rows]
            parsed[name] = [
                q for q in rows if q["pos_cand_list"] and q["query_img_path"] in {None, *shown}
            ]
    parsed["metadata.jsonl"] = [row for row in parsed["metadata.jsonl"] if row["did"] in dids]
    for name, content in _texts(root):
        if not name.startswith("qrels/") and (name not in parsed or parsed[name]):
            yield name, _json_lines(parsed[name]) if name in parsed else content


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
    arrays = [np.load(folder / n, mmap_mode="r") for n in ARRAYS if (folder / n).is_file()]
    shown = _pictures_of(folder, "val")
    for row, _ in json_lines(folder / "pictures.jsonl"):
        if row["img_path"] in shown:
            path, number = folder / row["img_path"], row["row"] - len(arrays[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < 0:
                Image.fromarray(arrays[0][row["row"]], "RGBA").save(path)
            else:  # a glyph is black
                black = np.zeros_like(arrays[1][number])
                Image.fromarray(np.stack([black] * 3 + [arrays[1][number]], -1), "RGBA").save(path)


def _keep_few_queries(folder: Path, queries: int) -> None:
    """Keeps each cell's first ``queries`` with two positives each, and ``queries`` candidates.

    What is relevant is in the queries' own lists; the judgements name candidates that are gone.
    """
    shutil.rmtree(folder / "qrels", ignore_errors=True)
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
