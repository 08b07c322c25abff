"""Pictures on disk: files, one array of all pixels, and duplicates."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retrv_r1.data.pictographs.catalog import image_path
from retrv_r1.data.pictographs.concepts import Concept
from retrv_r1.data.pictographs.splits import Splits
from retrv_r1.types import RetrvError

# Territories with another country's flag; the country keeps the picture.
_BORROWED_FLAGS = frozenset({"BV", "SJ", "UM", "CP", "MF", "HM", "EA", "AC", "DG", "TA", "IC"})


@dataclass(frozen=True)
class Picture:
    """A row of `pictures.npy`.

    Args:
        duplicate_of: code whose picture in this style has the same pixels; such a row is in no
            cell.
    """

    row: int
    style: str
    code: str
    duplicate_of: str | None

    @property
    def img_path(self) -> str:
        """Path relative to the data root."""
        return image_path(self.style, self.code)


def write_pixels(paths: Mapping[str, Mapping[str, Path]], size: int, target: Path) -> list[str]:
    """Writes all pictures as one uint8 array [N, size, size, 4] (RGBA) to `target`.

    Returns:
        Digest of the pixels of each row, style by style and code by code.

    Raises:
        RetrvError: a picture in the cache is damaged.
    """
    count = sum(len(codes) for codes in paths.values())
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    array = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=np.uint8, shape=(count, size, size, 4)
    )
    digests = []
    row = 0
    for codes in paths.values():
        for path in codes.values():
            try:
                with Image.open(path) as image:
                    array[row] = pixels = np.asarray(image)
            except (OSError, ValueError) as error:
                raise RetrvError(f"{path} is damaged ({error}); delete it, build again") from error
            digests.append(hashlib.sha256(pixels.tobytes()).hexdigest())
            row += 1
    array.flush()
    del array
    os.replace(temporary, target)
    return digests


def picture_rows(
    paths: Mapping[str, Mapping[str, Path]],
    digests: Iterable[str],
    concepts: Mapping[str, Concept],
    splits: Splits,
) -> list[Picture]:
    """Rows of the array, with duplicates inside a style marked.

    Of equal pictures a held-out one is kept, so that training does not show it under another name;
    then one without tone and gender, and a country before its territories.
    """
    keys = [(style, code) for style, codes in paths.items() for code in codes]
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    listed = list(digests)
    for (style, code), digest in zip(keys, listed, strict=True):
        alike[style, digest].append(code)

    def rank(code: str) -> tuple[Any, ...]:
        concept = concepts[code]
        letters = "".join(
            chr(int(p, 16) - 0x1F1E6 + 65) for p in code.split("-") if p.startswith("1F1")
        ) if concept.is_flag else ""  # fmt: skip
        known = splits.side(concept) == "known"
        return known, letters in _BORROWED_FLAGS, code != concept.base, len(code), code

    keeper = {key: min(codes, key=rank) for key, codes in alike.items()}
    return [
        Picture(i, style, code, None if keeper[style, d] == code else keeper[style, d])
        for i, ((style, code), d) in enumerate(zip(keys, listed, strict=True))
    ]


def place_pictures(paths: Mapping[str, Mapping[str, Path]], root: Path) -> None:
    """Links cached pictures into `root/mbeir_images` and removes those of earlier builds."""
    folder = root / "mbeir_images"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.name not in paths:
            shutil.rmtree(entry)
    for style, codes in paths.items():
        target = folder / style
        target.mkdir(exist_ok=True)
        wanted = {f"{code}.png" for code in codes}
        for name in os.listdir(target):
            if name not in wanted:
                (target / name).unlink()
        for code, path in codes.items():
            _link(path, target / f"{code}.png")


def _link(source: Path, target: Path) -> None:
    """Makes a hard link, or a copy if the file system has no links; replaces atomically."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samefile(source, target):
            return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
