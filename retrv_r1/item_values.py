"""What callers give as text, picture and id of an item, as the few types that the rest takes.

All functions raise ValueError for a value that they cannot take; the message says the fix.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.request import DataHandler, Request

from PIL import Image

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""Start of an address that is no file name."""

_FILES = Image.Image, Path, bytes, bytearray, memoryview, os.PathLike
_FORM = "pass a path, bytes, a PIL picture, or a uint8 array [height, width, 3]"


class Array(Protocol):
    """A NumPy array, or what converts to one, such as a tensor on the CPU."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


def text_of(value: object) -> str | None:
    """A text as ``str``."""
    if value is None or isinstance(value, str):
        return value
    shown = f" {value}" if isinstance(value, int | float) else ""
    raise ValueError(f"a text must be a string, not {type(value).__name__}{shown}; leave it out")


def id_of(value: object) -> str | int | float | None:
    """An id as ``str`` or number; a NumPy number becomes the Python number."""
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        value = item()
    fits = value is None or isinstance(value, str | int | float)
    infinite = isinstance(value, float) and not math.isfinite(value)  # or NaN
    if not fits or isinstance(value, bool) or infinite:
        shown = f" {value}" if isinstance(value, bool | float) else ""
        raise ValueError(
            f"an id must be a string or a number, not {type(value).__name__}{shown}; pass str(id)"
        )
    return value  # type: ignore[return-value]


def is_picture(value: object) -> bool:
    """Whether a value that is no ``str`` stands for a picture."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= {"bytes", "path"}
    return isinstance(value, _FILES) or hasattr(value, "read") or hasattr(value, "__array__")


def picture_of(value: Any) -> Image.Image | str | Path | bytes | None:
    """A picture as PIL picture, path or encoded bytes.

    Taken are also other buffers, open binary files (from their start), arrays, ``data:`` URIs, and
    the mappings with ``bytes`` and ``path`` of the datasets library.
    """
    if isinstance(value, str) and value[:5].lower() == "data:":
        return _decoded(value)
    if value is None or isinstance(value, Image.Image | str | Path | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return Path(value)
    if isinstance(value, Mapping) and is_picture(value):
        content = value.get("bytes")
        found = picture_of(value.get("path") if content is None else content)
        if found is None:
            raise ValueError("the picture has neither bytes nor a path; leave the candidate out")
        return found
    if hasattr(value, "read"):
        return _content(value)
    if hasattr(value, "__array__"):
        return _picture(value)
    raise ValueError(f"a picture cannot be of type {type(value).__name__}; {_FORM}")


def _decoded(uri: str) -> bytes:
    try:
        with DataHandler().data_open(Request(uri)) as answer:
            return answer.read()
    except Exception as error:  # a missing comma, a character outside base64
        raise ValueError(
            f"the data: URI of {len(uri)} characters is damaged ({error}); encode it again"
        ) from error


def _content(file: Any) -> bytes:
    """All bytes of an open file, whatever its position."""
    try:
        if file.seekable():
            file.seek(0)
        content = file.read()
    except Exception as error:  # file objects raise almost any
        raise ValueError(f"cannot read the open file ({error}); pass its path") from error
    if not isinstance(content, bytes):
        raise ValueError('the file is open as text; open it with mode "rb"')
    return content


def _picture(value: Array) -> Image.Image:
    import numpy as np

    try:
        array = np.asarray(value)
    except Exception as error:  # a tensor on a GPU, or with a gradient
        raise ValueError(f"cannot read the array ({error}); {_FORM}") from error
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    grey = array.ndim == 3 and array.shape[2] == 1
    pixels = array[:, :, 0] if grey else array
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        raise ValueError(f"an array {list(array.shape)} of {array.dtype} is no picture; {_FORM}")
    return Image.fromarray(np.ascontiguousarray(pixels))
