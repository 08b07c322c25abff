"""Decodes one picture, and is the program that the decoding processes run.

Such a process reads requests from standard input and answers on standard output. A request is the
length of a picture's bytes (8 bytes, little-endian) and these bytes. An answer is the length of a
JSON header, the header, and the RGB pixels that it announces, if any.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import sys
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from retrv_r1.images import (
    MAX_PIXELS,
    MAX_SOURCE_PIXELS,
    load_image,
    pad_to_square,
    readable_formats,
)
from retrv_r1.serve.refused import PictureRefused
from retrv_r1.types import ItemError

LENGTH = struct.Struct("<Q")
_SVG = re.compile(rb"<svg[\s>:]|<!DOCTYPE\s+svg", re.IGNORECASE)


@dataclass(frozen=True)
class Fit:
    """The size that a model reads pictures at, so that larger ones need not be passed on.

    Args:
        factor: divisor of both sides.
        least, most: limits of the number of pixels.
        square: whether pictures are first padded to a square.
    """

    factor: int
    least: int
    most: int
    square: bool

    @classmethod
    def of(cls, processor: Any) -> Fit | None:
        """That of a :class:`RetrvR1Processor`; None if it resizes in another way."""
        images, cubic = processor.image_processor, Image.Resampling.BICUBIC
        if not images.do_resize or images.resample != cubic:
            return None
        size = images.size
        return cls(
            images.patch_size * images.merge_size,
            size["shortest_edge"],
            size["longest_edge"],
            processor.config.pad_to_square,
        )

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height at which Qwen2-VL's preprocessing reads a picture."""
        sides, pixels = (width, height), width * height
        near = [round(side / self.factor) for side in sides]
        found = near[0] * near[1] * self.factor**2
        if found > self.most:
            shrink = math.sqrt(pixels / self.most)
            near = [max(1, math.floor(side / shrink / self.factor)) for side in sides]
        elif found < self.least:
            grow = math.sqrt(self.least / pixels)
            near = [math.ceil(side * grow / self.factor) for side in sides]
        return near[0] * self.factor, near[1] * self.factor

    def apply(self, picture: Image.Image) -> Image.Image:
        """The picture as preprocessing would resize it, so that it will find nothing to do.

        A picture that preprocessing would change again is left as it is.
        """
        shown = pad_to_square(picture) if self.square else picture
        size = self.size(*shown.size)
        if self.size(*size) != size:
            return picture
        return shown.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Decoding:
    """How pictures are decoded.

    Args:
        max_pixels: most pixels that a file may decode to, at most ``MAX_SOURCE_PIXELS``.
        fit: size that the model reads; None keeps up to ``images.MAX_PIXELS`` pixels.
        memory: bytes that a decoding process may use beyond those that it starts with.
    """

    max_pixels: int = MAX_SOURCE_PIXELS
    fit: Fit | None = None
    memory: int = 2 * 2**30

    def to_json(self) -> str:
        """For the command line of a decoding process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Decoding:
        """What :meth:`to_json` wrote."""
        values = json.loads(text)
        fit = values.pop("fit")
        return cls(fit=None if fit is None else Fit(**fit), **values)


def decode(data: bytes, decoding: Decoding) -> tuple[Image.Image, tuple[int, int]]:
    """The RGB picture that a model reads, and the width and height of the file's picture.

    Raises:
        PictureRefused: the bytes are no picture, a damaged one, or one that is too large.
    """
    check_kind(data)
    try:
        with Image.open(io.BytesIO(data), formats=readable_formats()) as header:
            size = header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _over_pixels(decoding.max_pixels) from None
    except MemoryError:
        raise _over_memory() from None
    except UnidentifiedImageError:
        raise _unsupported() from None
    except Exception:  # headers of damaged files raise almost anything
        raise _damaged() from None
    if size[0] * size[1] > decoding.max_pixels:
        raise _over_pixels(decoding.max_pixels)
    try:
        picture = load_image(data, max_pixels=MAX_PIXELS)
        picture.info.clear()  # text of the file's author
        return (decoding.fit.apply(picture) if decoding.fit else picture), size
    except MemoryError:
        raise _over_memory() from None
    except ItemError as error:
        raise (_over_memory() if isinstance(error.__cause__, MemoryError) else _damaged()) from None


def check_kind(data: bytes) -> None:
    """Looks at the first bytes alone, so that no decoder sees what is no picture.

    Raises:
        PictureRefused: the bytes begin like no picture that is read.
    """
    if _is_svg(data):
        raise PictureRefused(
            415, "picture_unsupported", "SVG pictures are not read; render it to PNG and pass that"
        )
    begins = (Image.OPEN[name][1] for name in readable_formats())
    start = data[:16].ljust(16, b"\0")  # Pillow's checks expect as much
    if not any(accept is None or accept(start) for accept in begins):
        raise _unsupported()


def _is_svg(data: bytes) -> bool:
    start = data[:4096].lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0").replace(b"\0", b"")
    return start.startswith(b"<") and _SVG.search(start) is not None


def _unsupported() -> PictureRefused:
    return PictureRefused(
        415,
        "picture_unsupported",
        "the bytes are not a picture that is read, or their start is damaged; "
        "pass PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF",
    )


def _damaged() -> PictureRefused:
    return PictureRefused(
        400, "picture_damaged", "the picture is damaged; encode it again as PNG or JPEG"
    )


def _over_pixels(most: int) -> PictureRefused:
    return PictureRefused(
        413,
        "max_picture_pixels",
        f"the picture has more than the limit max_picture_pixels of {most} pixels; shrink it",
    )


def _over_memory() -> PictureRefused:
    return PictureRefused(
        413,
        "max_picture_memory",
        "decoding the picture needs more memory than the limit max_picture_memory; shrink it, or "
        "start the server with --limit max_picture_memory=N",
    )


def _limit(memory: int) -> None:
    """Limits what a decoder that was taken over, or that met a bomb, can do to the machine."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(data: bytes, decoding: Decoding) -> tuple[dict[str, Any], bytes]:
    """Header and pixels that answer a request."""
    try:
        picture, source = decode(data, decoding)
        return {"size": picture.size, "source": source}, picture.tobytes()
    except PictureRefused as refused:
        return {"refused": [refused.status, refused.code, refused.message]}, b""


def _serve(source: BinaryIO, target: BinaryIO, decoding: Decoding) -> None:
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        header, pixels = answer(data, decoding)
        text = json.dumps({**header, "pixels": len(pixels)}).encode()
        target.write(LENGTH.pack(len(text)) + text + pixels)
        target.flush()


def main() -> None:
    """Answers requests until standard input ends."""
    decoding = Decoding.from_json(sys.argv[1])
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    readable_formats()  # imports Pillow's decoders before memory is limited
    if sys.platform == "linux":
        _limit(decoding.memory)
    with target:
        _serve(sys.stdin.buffer, target, decoding)


if __name__ == "__main__":
    main()
