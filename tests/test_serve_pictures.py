"""Pictures of requests: every form and kind, and everything that must not get in."""

from __future__ import annotations

import asyncio
import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_internet import internet, reply
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from retrv_r1.images import SourceFile, content_hash, load_image, mark_loaded, source_of
from retrv_r1.serve.decoder import Fit
from retrv_r1.serve.fetching import Fetcher, FetchPolicy
from retrv_r1.serve.metrics import Metrics
from retrv_r1.serve.picture_strings import MOST_ESCAPES, file_bytes, inline_bytes
from retrv_r1.serve.pictures import PicturePolicy, PictureReader, ReadPicture
from retrv_r1.serve.refused import PictureRefused
from retrv_r1.types import Item


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(*values: str, policy: PicturePolicy | None = None, **options) -> list[ReadPicture]:
    """The pictures of all values, read at once."""

    async def run() -> list[ReadPicture]:
        reader = PictureReader(policy, **options)
        try:
            return await asyncio.gather(*map(reader.read, values))
        finally:
            await reader.aclose()

    return asyncio.run(run())


def refusal(value: str, **policy) -> PictureRefused:
    with pytest.raises(PictureRefused) as refused:
        read(value, policy=PicturePolicy(**policy))
    return refused.value


ICON = encoded(noise(48, 48))


@pytest.mark.parametrize(
    "value",
    [
        base64_of(ICON),
        base64_of(ICON).rstrip("="),
        base64.urlsafe_b64encode(ICON).decode(),
        "\n".join(base64_of(ICON)[i : i + 76] for i in range(0, 4 * len(ICON) // 3 + 4, 76)),
        f"data:image/png;base64,{base64_of(ICON)}",
        f"DATA:text/html;charset=utf-8;BASE64,{base64_of(ICON)}",
        f"data:;base64,{base64_of(ICON).replace('+', '%2B').replace('/', '%2F')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in ICON),
    ],
)
def test_data_uris_and_base64_in_all_their_spellings(value):
    (picture,) = read(value)
    assert picture.image.tobytes() == noise(48, 48).tobytes()
    assert (picture.bytes, picture.width, picture.height) == (len(ICON), 48, 48)
    assert picture.origin == "inline"
    source = source_of(picture.image)
    assert source is not None and source.size == len(ICON)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        *(("", "picture_malformed"), ("   ", "picture_malformed"), ("data:", "picture_malformed")),
        *(("data:image/png;base64", "picture_malformed"), ("data:,", "picture_unsupported")),
        *(("a b!", "picture_malformed"), ("é" * 9, "picture_malformed")),
        *(
            ("ftp://a/b.png", "picture_malformed"),
            ("javascript://%0aalert(1)", "picture_malformed"),
        ),
        *(("blob:https://a/b", "picture_malformed"), ("abcde", "picture_malformed")),
        *(("/etc/passwd", "picture_unsupported"), ("C:\\a.png", "picture_malformed")),
        ("https://pictures.example/a.png", "remote_pictures_off"),
        ("HTTP://pictures.example/a.png", "remote_pictures_off"),
        ("file:///etc/passwd", "picture_files_off"),
    ],
)
def test_what_is_no_picture_or_is_off_is_refused(value, code):
    refused = refusal(value)
    assert (refused.status, refused.code) == (415 if "unsupp" in code else 400, code)


def test_the_kinds_that_images_have_are_read_as_images_reads_them():
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [noise(20, 20, seed) for seed in range(3)]
    deep = Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    kinds = [
        encoded(noise(40, 20), "JPEG", exif=exif),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        encoded(frames[0], save_all=True, append_images=frames[1:]),
        encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        encoded(deep),
        encoded(deep, "TIFF"),
        encoded(noise(30, 30).convert("P", palette=Image.Palette.ADAPTIVE), transparency=0),
        encoded(noise(30, 30).convert("LA")),
        encoded(noise(30, 30), "AVIF"),
        encoded(noise(600, 900), "JPEG"),
        encoded(Image.new("L", (3000, 20))),
    ]
    for data, picture in zip(kinds, read(*map(base64_of, kinds)), strict=True):
        assert picture.image.tobytes() == load_image(data).tobytes()
        assert content_hash(Item(image=picture.image)) == content_hash(Item(image=data))
        assert load_image(picture.image) is picture.image


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'


@pytest.mark.parametrize(
    "data",
    [
        SVG,
        b'\xef\xbb\xbf \n<?xml version="1.0"?>\n<!-- a -->\n' + SVG,
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://a/b.dtd">' + SVG,
        ('<?xml version="1.0" encoding="UTF-16"?>' + SVG.decode()).encode("utf-16"),
    ],
)
def test_svg_is_refused_by_its_content(data):
    for name in ("image/png", "image/svg+xml"):
        refused = refusal(f"data:{name};base64,{base64_of(data)}")
        assert (refused.status, refused.code) == (415, "picture_unsupported")
        assert "PNG" in refused.message


@pytest.mark.parametrize(
    "data",
    [
        b"<html><script>alert(1)</script></html>",
        b"%PDF-1.7\n" + ICON,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"PK\x03\x04" + ICON,
        b"\x1f\x8b\x08" + bytes(40),
        b"\x7fELF" + bytes(60),
        b"#!/bin/sh\n" + ICON,
        b"hello",
        bytes(1000),
    ],
)
def test_other_files_are_refused_whatever_they_are_called(data):
    refused = refusal(f"data:image/png;base64,{base64_of(data)}")
    assert (refused.status, refused.code) == (415, "picture_unsupported")


def test_a_polyglot_is_what_its_first_bytes_say_and_only_pixels_are_kept():
    gif = encoded(noise(20, 20), "GIF")
    extra = b"/*<script>alert(1)</script>*/PK\x03\x04"
    (plain,), (polyglot,) = read(base64_of(gif)), read(base64_of(gif + extra))
    assert polyglot.image.tobytes() == plain.image.tobytes()
    assert polyglot.image.info == {}


@pytest.mark.parametrize("data", [ICON[:200], ICON[:60] + bytes(99) + ICON[160:]])
def test_a_damaged_picture_is_malformed(data):
    refused = refusal(base64_of(data))
    assert (refused.status, refused.code) == (400, "picture_damaged")


def test_limits_have_names():
    large = base64_of(encoded(noise(200, 200)))
    refused = refusal(large, max_bytes=10_000)
    assert (refused.status, refused.code) == (413, "max_picture_bytes")
    assert "max_picture_bytes of 10000" in refused.message
    refused = refusal("data:," + "x" * 20_000, max_bytes=10_000)
    assert refused.code == "max_picture_bytes"
    for size in ((64, 64), (1000, 1000)):
        refused = refusal(base64_of(encoded(Image.new("L", size))), max_pixels=4095)
        assert (refused.status, refused.code) == (413, "max_picture_pixels")


def test_messages_hold_nothing_of_the_caller():
    secret = "c2VjcmV0c2VjcmV0"
    for value in (secret, f"https://{secret}/", f"file:///{secret}", f"x://{secret}", f"!{secret}"):
        refused = refusal(value)
        assert secret not in refused.message and secret not in str(refused.args)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a b.png").write_bytes(ICON)
    (tmp_path / "outside.png").write_bytes(ICON)
    (root / "in.png").symlink_to(root / "deep" / "a b.png")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "pictures-too").mkdir()
    (tmp_path / "pictures-too" / "a.png").write_bytes(ICON)
    os.mkfifo(root / "pipe.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    return root


def test_files_below_the_root_are_read(folder):
    urls = [f"file://{folder}/deep/a%20b.png", f"file://localhost{folder}/in.png"]
    urls += [f"file:{folder}/deep/../in.png"]
    for picture in read(*urls, policy=PicturePolicy(file_root=folder)):
        assert (picture.bytes, picture.origin) == (len(ICON), "file")


@pytest.mark.parametrize(
    "path",
    [
        *("/../outside.png", "/out.png", "/up/outside.png", "/%2e%2e/outside.png", "-too/a.png"),
        *("/nothing.png", "/deep", "", "/pipe.png", "/a%00.png", "/deep/a%2520b.png"),
        *("/" + "x" * 5000, "/circle.png"),
    ],
)
def test_files_elsewhere_and_what_is_no_file_get_the_same_answer(folder, path):
    refused = refusal(f"file://{folder}{path}", file_root=folder)
    absent = refusal(f"file://{folder}/absent", file_root=folder)
    assert (refused.status, refused.code) == (400, "picture_file")
    assert refused.message == absent.message
    assert refusal(f"file://server{folder}/in.png", file_root=folder).code == "picture_file"


@pytest.mark.parametrize("value", ["data:,", "data:image/png;base64,"])
def test_a_data_uri_of_percent_signs_does_not_fill_the_memory(value):
    with pytest.raises(PictureRefused, match="send base64 as it is"):
        inline_bytes(value + "%41" * (MOST_ESCAPES + 1), 2**30)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_what_is_no_file_is_closed_again(folder):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    for _ in range(3):
        with pytest.raises(PictureRefused):
            file_bytes(f"file://{folder}/deep", folder, 100)
    assert opened() == before


def test_a_device_is_no_picture_file():
    assert refusal("file:///dev/zero", file_root=Path("/dev")).code == "picture_file"


def test_remote_pictures_go_through_the_same_decoding_and_limits():
    async def run(body: bytes, **policy) -> ReadPicture:
        async with internet(reply("200 OK", body, Content_Type="image/png")) as (net, _):
            fetcher = Fetcher(FetchPolicy(), net.resolve, net)
            reader = PictureReader(PicturePolicy(remote=True, **policy), fetcher=fetcher)
            try:
                return await reader.read("http://pictures.example/a.png")
            finally:
                await reader.aclose()

    picture = asyncio.run(run(ICON))
    assert (picture.origin, picture.bytes) == ("remote", len(ICON))
    with pytest.raises(PictureRefused, match="SVG"):
        asyncio.run(run(SVG))


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from([8, 16, 28]),
    st.integers(1, 2000),
    st.integers(0, 20_000),
)
def test_the_fitted_size_is_that_of_the_models_preprocessing(width, height, factor, least, more):
    if max(width, height) > 200 * min(width, height):
        return
    limits = least * factor**2, (least + more) * factor**2
    height_, width_ = smart_resize(height, width, factor, *limits)
    found = Fit(factor, *limits, square=False).size(width, height)
    # A side of half a factor is rounded to none there; the picture is then left to preprocessing.
    if min(height_, width_):
        assert found == (width_, height_)


@pytest.mark.parametrize("square", [False, True])
def test_a_fitted_picture_gives_the_model_bit_for_bit_what_the_file_gives(processor, square):
    sizes = [(48, 48), (500, 300), (1200, 900), (10, 10), (700, 35), (2, 400)]
    processor.config.pad_to_square, before = square, processor.config.pad_to_square
    try:
        files = [encoded(noise(*size)) for size in sizes]
        pictures = read(*map(base64_of, files), fit=Fit.of(processor))
        for data, picture, size in zip(files, pictures, sizes, strict=True):
            one, other = (processor.encode(Item(image=image)) for image in (data, picture.image))
            assert one.grid == other.grid
            assert torch.equal(one.patches, other.patches)
            assert (picture.width, picture.height) == size
    finally:
        processor.config.pad_to_square = before


def test_no_fit_for_another_kind_of_preprocessing(processor):
    processor.image_processor.do_resize = False
    try:
        assert Fit.of(processor) is None
    finally:
        processor.image_processor.do_resize = True


def test_a_text_chunk_of_a_file_cannot_pose_as_another_picture():
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("_retrv_source", "x" * 32)
    data = encoded(noise(20, 20), pnginfo=text)
    opened = Image.open(io.BytesIO(data))
    assert content_hash(Item(image=opened)) == content_hash(Item(image=noise(20, 20)))
    marked = mark_loaded(noise(20, 20), SourceFile(b"x" * 32, 9))
    assert content_hash(Item(image=marked)) != content_hash(Item(image=noise(20, 20)))


def test_pictures_and_refusals_are_counted():
    metrics = Metrics(routes=[], dialects=[])
    read(base64_of(ICON), metrics=metrics)
    with pytest.raises(PictureRefused):
        read("!", metrics=metrics)
    text = metrics.render()[0].decode()
    assert f'retrv_picture_bytes_total{{origin="inline"}} {float(len(ICON))}' in text
    assert 'retrv_refusals_total{reason="picture_malformed"} 1.0' in text


def test_a_policy_that_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_picture_pixels"):
        PicturePolicy(max_pixels=10**9)
    with pytest.raises(ValueError, match="does not exist"):
        PicturePolicy(file_root=tmp_path / "nothing")
