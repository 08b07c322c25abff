"""Pictures of every kind that users hold, sound and broken."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrv_r1.images import MAX_ASPECT, MAX_PIXELS, content_hash, load_image
from retrv_r1.types import Item, ItemError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def halves(left=RED, right=BLUE, size=(8, 4)) -> Image.Image:
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    data = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, body in ((b"IHDR", head), (b"IDAT", b"")):
        crc = struct.pack(">I", zlib.crc32(name + body))
        data += struct.pack(">I", len(body)) + name + body + crc
    return data


def test_paths_bytes_and_pil_give_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    halves().save(path)
    for source in (path, str(path), path.read_bytes(), halves()):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.tobytes() == halves().tobytes()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_common_formats(format):
    loaded = load_image(encoded(Image.new("RGB", (16, 16), RED), format))
    assert loaded.size == (16, 16)
    assert np.abs(np.asarray(loaded).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(halves(), exif=exif))
    sideways = orientation >= 5
    assert loaded.size == ((4, 8) if sideways else (8, 4))
    first = loaded.getpixel((0, 0))
    assert first == (RED if orientation in (1, 4, 5, 6) else BLUE)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(load_image(data)).astype(int) - RED).max() <= 4


def test_alpha_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    loaded = load_image(encoded(image))
    assert loaded.getpixel((0, 0)) == WHITE
    assert loaded.getpixel((1, 0)) == (127, 127, 127)


def test_palette_with_transparency():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    loaded = load_image(encoded(image, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]
    assert load_image(encoded(image)).getpixel((0, 0)) == RED


def test_transparent_colour_key_without_palette():
    grey = Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 200)
    loaded = load_image(encoded(grey, transparency=10))
    assert [loaded.getpixel((x, 0))[0] for x in (0, 1)] == [255, 200]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "PA", "P", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_pil_mode(mode):
    black = Image.new("RGBA", (3, 3), "black")
    path = {"La": ["LA", "La"], "PA": ["P", "PA"], "HSV": ["RGB", "HSV"]}
    for step in path.get(mode, [mode] if mode in ("LA", "RGBa") else ["RGB", mode]):
        black = black.convert(step)
    assert black.mode == mode
    assert max(load_image(black).getpixel((1, 1))) <= 2


def test_cmyk_jpeg():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    red, green, blue = np.asarray(load_image(data))[4, 4]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values), format))
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_float_and_32_bit_pictures_are_stretched():
    floats = np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32)
    loaded = load_image(encoded(Image.fromarray(floats), "TIFF"))
    assert [loaded.getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]
    integers = np.array([[-100_000, 100_000]], dtype=np.int32)
    loaded = load_image(encoded(Image.fromarray(integers), "TIFF"))
    assert [loaded.getpixel((x, 0))[0] for x in range(2)] == [0, 255]
    assert load_image(Image.new("F", (2, 2), 3.5)).getpixel((0, 0)) == (0, 0, 0)


def test_a_caller_s_picture_is_left_as_it_is():
    image = halves().convert("P")
    exif = image.getexif()
    exif[0x0112] = 6
    before = (image.mode, image.size, image.tobytes())
    assert load_image(image).size == (4, 8)
    assert (image.mode, image.size, image.tobytes()) == before


def test_wide_picture_is_clamped_by_padding_with_white():
    loaded = load_image(encoded(Image.new("RGB", (20_000, 100), RED)))
    assert loaded.width / loaded.height == pytest.approx(MAX_ASPECT, rel=1e-2)
    assert loaded.width <= MAX_ASPECT * loaded.height
    assert loaded.width * loaded.height <= MAX_PIXELS
    middle = (loaded.width // 2, loaded.height // 2)
    assert loaded.getpixel(middle) == RED and loaded.getpixel((middle[0], 0)) == WHITE
    tall = load_image(Image.new("RGB", (1, 700), RED))
    assert tall.size == (35, 700) and tall.getpixel((17, 350)) == RED


def test_large_pictures_are_shrunk_and_small_ones_are_not():
    loaded = load_image(encoded(Image.new("RGB", (4000, 3000), RED), "JPEG"))
    assert loaded.width * loaded.height <= MAX_PIXELS
    assert loaded.width / loaded.height == pytest.approx(4 / 3, rel=1e-2)
    assert load_image(Image.new("RGB", (1, 1), RED)).size == (1, 1)
    assert load_image(Image.new("RGB", (64, 64)), max_pixels=1024).size == (32, 32)
    with pytest.raises(ValueError, match="at least 1024"):
        load_image(halves(), max_pixels=10)


@pytest.mark.parametrize("size", [(1, 5000), (3, 100_000), (2001, 100), (33, 1000), (7, 140)])
def test_bounds_hold_for_awkward_sizes(size):
    for max_pixels in (1024, 5000, MAX_PIXELS):
        loaded = load_image(Image.new("L", size), max_pixels=max_pixels)
        assert loaded.width * loaded.height <= max_pixels
        assert max(loaded.size) <= MAX_ASPECT * min(loaded.size)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000)])
def test_far_too_large_is_refused_before_decoding(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(ItemError, match=r"bomb\.png .*shrink it below 89 million pixels"):
        load_image(path)


def broken_files(folder: Path) -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    png = encoded(Image.fromarray(noise))
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    return {
        "is empty (0 bytes)": b"",
        "is not a picture": b"hello, I am text",
        "is damaged (Truncated": png[:20],
        "or its start is damaged": png[:6],
        "is damaged": png[: len(png) // 2],
        "copy or download it again": jpeg[: len(jpeg) // 2],
        "damaged": png[:100] + b"\xff" * 200 + png[300:],
        "pass a PNG, JPEG": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


@pytest.mark.parametrize("expected", list(broken_files(Path())))
def test_broken_files_name_themselves_and_the_fix(tmp_path, expected):
    data = broken_files(tmp_path)[expected]
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(ItemError) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and expected in str(caught.value)
    with pytest.raises(ItemError, match="empty" if not data else f"{len(data)} bytes"):
        load_image(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_cut_of_a_file_escapes_as_another_error():
    for format in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG"):
        data = encoded(halves(size=(9, 9)), format)
        for end in range(0, len(data), 7):
            try:
                load_image(data[:end])
            except ItemError:
                continue


def test_missing_folder_url_and_unreadable(tmp_path):
    with pytest.raises(ItemError, match=r"no such picture file: .*nothing\.png; check the path"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(ItemError, match="is a folder, not a picture"):
        load_image(tmp_path)
    with pytest.raises(ItemError, match="is a URL"):
        load_image("https://example.org/a.png")
    with pytest.raises(ItemError, match="no such picture file"):
        load_image("a\0b.png")
    with pytest.raises(ItemError, match=r"cannot read x+…: .*check path"):
        load_image("x" * 5000)
    with pytest.raises(ItemError, match="not int"):
        load_image(3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ItemError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")


def test_a_closed_pil_picture_is_an_item_error(tmp_path):
    halves().save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    image.close()
    with pytest.raises(ItemError, match=r"a\.png"):
        load_image(image)


def test_content_hash(tmp_path):
    path = tmp_path / "a.png"
    halves().save(path)
    copy = tmp_path / "b.png"
    copy.write_bytes(path.read_bytes())
    text = content_hash(Item(text="a cat"))
    # Caches outlive a process: the value may change only together with its version prefix.
    assert text == "2ced05ac79289fa95da15043bcfad9a307c88f68e7a93de97c3e0be68d52756a"
    assert text == content_hash(Item(text="a cat", id="named"))
    assert content_hash(Item(image=path)) == content_hash(Item(image=copy))
    assert content_hash(Item(image=path)) == content_hash(Item(image=path.read_bytes()))
    assert content_hash(Item(image=halves())) == content_hash(Item(image=halves().copy()))
    distinct = [
        Item(text="a cat"),
        Item(text="a  cat"),
        Item(image=path),
        Item(image=path, text="a cat"),
        Item(image=halves()),
        Item(image=halves(size=(4, 8))),
        Item(image=Image.new("RGB", (8, 4))),
        Item(image=Image.new("RGB", (4, 8))),
    ]
    assert len({content_hash(item) for item in distinct}) == len(distinct)
