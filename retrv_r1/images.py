"""Loads pictures: upright, RGB, of bounded size; or raises an error that says the fix."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from retrv_r1.item_values import URL
from retrv_r1.types import ImageSource, Item, ItemError

MAX_PIXELS = 2**21
"""Most pixels of a loaded picture; larger ones are shrunk. No supported model reads more."""

MAX_SOURCE_PIXELS = 89_478_485
"""Most pixels that a file may decode to (a quarter GiB as RGB, where Pillow warns as well)."""

MAX_ASPECT = 20
"""Largest ratio of the sides. A longer strip is centred on a white canvas of this ratio, because
vision towers refuse extreme ratios (Qwen's at 200) and squeezing would distort the content."""

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".ico", ".qoi"),
)
"""Suffixes of picture files. The decoder is chosen by content alone."""

# Pillow's other decoders are left out: some start programs (EPS), and none is needed.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "PPM"),
    *("JPEG2000", "ICO", "QOI"),
)
_MIN_PIXELS = 1024


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Loads a picture as RGB, as a viewer would show it.

    EXIF orientation is applied. An animation gives its first frame, a PIL picture its current one.
    Transparent pixels are blended with white. 16-bit grey is scaled to 8 bits; float and 32-bit
    pictures are stretched from their lowest to their highest value. Pictures of more than
    ``max_pixels`` are shrunk, and strips longer than ``MAX_ASPECT`` are padded with white. A JPEG
    that lacks only its end mark is read; one that lacks pixels is damaged.

    Args:
        source: path, encoded bytes, or PIL picture (which is not changed).
        max_pixels: largest width times height of the result, at least 1024.

    Raises:
        ItemError: the file is missing, empty, damaged, not a picture, or decodes to more than
            ``MAX_SOURCE_PIXELS``; the message names the file and the fix.
    """
    if max_pixels < _MIN_PIXELS:
        raise ValueError(f"max_pixels must be at least {_MIN_PIXELS}, got {max_pixels}")
    if _origin(source) and source.width * source.height <= max_pixels:  # type: ignore[union-attr]
        return source  # type: ignore[return-value]
    return _fit(_decode(source, max_pixels), max_pixels)


def content_hash(item: Item) -> str:
    """Hex SHA-256 of an item's content, whatever its id and its file's name.

    Covers the text and, of a picture, the encoded bytes (path, bytes) or the decoded pixels (PIL):
    the same picture as a file and as a PIL picture has two hashes, never the other way round.

    Raises:
        ItemError: the picture's file cannot be read.
    """
    digest = hashlib.sha256(b"retrv-item-1")
    text = (item.text or "").encode("utf-8", "surrogatepass")
    digest.update(len(text).to_bytes(8, "big") + text)
    if origin := _origin(item.image):
        digest.update(b"encoded" + origin)
    elif isinstance(item.image, Image.Image):
        pixels = _decode(item.image, None)
        digest.update(b"pixels" + pixels.width.to_bytes(8, "big") + pixels.tobytes())
    elif item.image is not None:
        digest.update(b"encoded" + hashlib.sha256(_encoded(item.image)).digest())
    return digest.hexdigest()


def mark_loaded(picture: Image.Image, origin: bytes) -> Image.Image:
    """Marks a picture as what a model reads of a file, so that it stands for the file.

    :func:`load_image` then returns it as it is, and :func:`content_hash` gives the file's hash.

    Args:
        picture: RGB picture that was loaded from the file and perhaps fitted to the model.
        origin: SHA-256 of the file's bytes.
    """
    # An attribute, not `info`: the text chunks of a file end up there.
    picture._retrv_origin = origin  # type: ignore[attr-defined]
    return picture


def _origin(source: object) -> bytes | None:
    """Hash of the file of a marked picture."""
    return source.__dict__.get("_retrv_origin") if isinstance(source, Image.Image) else None


def pad_to_square(picture: Image.Image) -> Image.Image:
    """An RGB picture in the middle of a white square."""
    if picture.width == picture.height:
        return picture
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def describe(source: ImageSource) -> str:
    """Name of a picture in messages: its path, or its kind."""
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "the PIL picture")
    if isinstance(source, bytes):
        return f"the picture of {len(source)} bytes"
    name = str(source)
    return name if len(name) <= 200 else f"{name[:197]}…"


def _check_file(source: str | Path) -> Path:
    """Path of a non-empty regular file; any other path raises an error that says what it is."""
    name = describe(source)
    if isinstance(source, str) and URL.match(source):
        raise ItemError(f"{name} is a URL, not a file; download it and pass the file or its bytes")
    path = Path(source)
    try:
        if path.is_dir():
            raise ItemError(f"{name} is a folder, not a picture; pass a picture file in it")
        if not path.exists():
            raise ItemError(f"no such picture file: {name}; check the path")
        if not path.is_file():
            raise ItemError(f"{name} is not a regular file; save the picture to one")
        if path.stat().st_size == 0:
            raise ItemError(f"{name} is empty (0 bytes); copy or download it again")
    except ItemError:
        raise
    except (OSError, ValueError) as error:  # a NUL or too long a name, a folder without access
        raise ItemError(f"cannot read {name}: {error}; check path and permissions") from error
    return path


def _encoded(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return _check_file(source).read_bytes()
    except OSError as error:
        raise ItemError(
            f"cannot read {describe(source)}: {error.strerror}; check its permissions"
        ) from error


def _decode(source: ImageSource, target: int | None) -> Image.Image:
    """Upright RGB pixels, possibly fewer than in the file, but at least ``target`` of them."""
    name = describe(source)
    if not isinstance(source, Image.Image | str | Path | bytes):
        raise ItemError(f"a picture is a path, bytes or a PIL picture, not {type(source).__name__}")
    if source == b"":
        raise ItemError("the picture is empty (0 bytes); pass the bytes of a picture file")
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source, name)
        file = io.BytesIO(source) if isinstance(source, bytes) else _check_file(source)
        return _pixels(file, name, target)
    except ItemError:
        raise
    except UnidentifiedImageError as error:
        raise ItemError(
            f"{name} is not a picture, or its start is damaged; pass a PNG, JPEG, WebP, GIF, "
            "BMP, TIFF or AVIF file"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ItemError(f"{name} is too large; shrink it below {_bound()}") from error
    except PermissionError as error:
        raise ItemError(f"cannot read {name}: {error.strerror}; check its permissions") from error
    except Exception as error:  # decoders raise almost any exception for damaged files
        if not isinstance(source, Image.Image):
            whole = _without_end_mark(_encoded(source), name, target)
            if whole is not None:
                return whole
        raise ItemError(f"{name} is damaged ({error}); copy or download it again") from error


def _pixels(file: Path | io.BytesIO, name: str, target: int | None) -> Image.Image:
    with Image.open(file, formats=readable_formats()) as picture:
        _check_size(picture, name)
        if target is not None:
            _draft(picture, target)
        return _to_rgb(picture, name)


def _without_end_mark(data: bytes, name: str, target: int | None) -> Image.Image | None:
    """The picture of a JPEG that lacks its end mark only, as viewers show it; else None.

    Where pixels are missing too, bytes that are appended become pixels: so two different endings
    give two pictures.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    data = data.rstrip(b"\xff")
    try:
        one, other = (
            _pixels(io.BytesIO(data + more + b"\xff\xd9"), name, target)
            for more in (b"", b"\x5a\x17" * 64)
        )
    except Exception:  # damaged in other ways as well
        return None
    return one if one.tobytes() == other.tobytes() else None


def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, as far as this Pillow can (AVIF since 11.3)."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _bound() -> str:
    return f"{MAX_SOURCE_PIXELS / 1e6:.0f} million pixels"


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_SOURCE_PIXELS:
        raise ItemError(
            f"{name} has {picture.width} x {picture.height} pixels; shrink it below {_bound()}"
        )


def _draft(picture: Image.Image, target: int) -> None:
    """Lets the JPEG decoder halve a picture that is much too large while it decodes."""
    scale = math.sqrt(target / (picture.width * picture.height))
    if scale < 1:
        picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    upright = ImageOps.exif_transpose(picture)
    if upright.width == 0 or upright.height == 0:
        raise ItemError(f"{name} has no pixels; pass a picture of at least 1 x 1")
    if upright.mode == "I" or upright.mode == "F" or upright.mode.startswith("I;"):
        return _deep_grey(upright)
    if upright.mode == "La":
        upright = upright.convert("LA")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    colours = upright.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def _deep_grey(picture: Image.Image) -> Image.Image:
    """8-bit RGB from one channel of 16 or 32 bits."""
    values = np.asarray(picture).astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if picture.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / ((high - low) or 1)
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).convert("RGB")


def _fit(picture: Image.Image, max_pixels: int) -> Image.Image:
    """Shrinks to ``max_pixels`` and pads to ``MAX_ASPECT``, where a picture exceeds them."""
    length, breadth = max(picture.size), min(picture.size)
    canvas_breadth = max(breadth, math.ceil(length / MAX_ASPECT))
    scale = min(1.0, math.sqrt(max_pixels / (length * canvas_breadth)))
    short = max(1, int(canvas_breadth * scale))
    long = min(int(length * scale), short * MAX_ASPECT)
    inner = short if canvas_breadth == breadth else max(1, round(breadth * long / length))
    wide = picture.width >= picture.height
    size = (long, inner) if wide else (inner, long)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if inner == short:
        return picture
    canvas = Image.new("RGB", (long, short) if wide else (short, long), "white")
    left, top = (canvas.width - picture.width) // 2, (canvas.height - picture.height) // 2
    canvas.paste(picture, (left, top))
    return canvas
