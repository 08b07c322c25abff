"""What is larger, slower or more than a server takes is refused by the limit's name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from PIL import Image
from serve_app import Server, ServiceDouble, double, png

from retrv_r1.images import MAX_PIXELS
from retrv_r1.serve.errors import ApiError
from retrv_r1.serve.limits import PIXEL_BYTES, Gate, Limits
from retrv_r1.serve.pictures import PicturePolicy
from retrv_r1.serve.settings import Settings

ASK = {"query": "apple", "documents": ["pear", "red apple"]}
SQUARES = [png(colour) for colour in ("red", "green", "blue")]


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"query": "a", "documents": ["b"] * 6}, "max_documents"),
        ({"text_1": ["a"] * 6, "text_2": "b"}, "max_documents"),
        ({"query": "a", "documents": [{"image": png("red")}] * 4}, "max_pictures"),
        ({"query": "a" * 51, "documents": ["b"]}, "max_text_characters"),
        ({"query": "a" * 50, "documents": ["b" * 50, "c" * 50]}, "max_total_characters"),
        ({"query": "a", "documents": [{"image": each} for each in SQUARES]}, "max_total_pixels"),
        ({"query": "a", "documents": ["b"], "filler": [[]] * 50}, "max_json_values"),
        ({"query": "a", "documents": ["b"], "filler": "x" * 9000}, "max_body_bytes"),
    ],
)
def test_what_is_over_a_limit_gets_its_name(body, limit):
    limits = Limits(
        max_body_bytes=8000,
        max_documents=5,
        max_pictures=3,
        max_total_pixels=3000,
        max_json_values=40,
        max_text_characters=50,
        max_total_characters=120,
    )
    with double(Settings(limits=limits)) as server:
        answer = server.post("/score" if "text_1" in body else "/v1/rerank", body)
        assert code_of(answer) == (413, limit)
        assert limit in answer.json()["message"]
        assert server.get("/info").json()["limits"][limit] == getattr(limits, limit)
        assert server.post("/v1/rerank", ASK).status_code == 200


def test_a_picture_in_many_lists_of_a_request_is_counted_once():
    """Pairs with distinct first texts are lists of their own; each shows the same picture."""
    with double(Settings(limits=Limits(max_total_pixels=1500))) as server:
        texts = [f"text {number}" for number in range(20)]
        pairs = {"text_1": texts, "text_2": {"image": png("red")}}
        assert server.post("/score", pairs).status_code == 200
        assert len(server.service.calls) == len(texts)
        assert len({id(call.candidates[0].image) for call in server.service.calls}) == 1
        pairs["text_2"] = [{"image": png(colour)} for colour in ("red", "blue")] * 10
        assert code_of(server.post("/score", pairs)) == (413, "max_total_pixels")


def test_a_thousand_documents_and_a_hundred_pictures_are_within_the_limits():
    limits = Limits()
    assert limits.max_documents >= 1000 and limits.max_pictures >= 101
    assert limits.max_total_pixels >= 101 * MAX_PIXELS
    assert limits.max_held_bytes >= PIXEL_BYTES * limits.max_total_pixels + limits.max_body_bytes


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 1000


def test_a_body_without_a_length_is_measured_while_it_comes():
    with double(Settings(limits=Limits(max_body_bytes=8000))) as server:
        headers = {"Content-Type": "application/json"}
        work = server.client.post("/v1/rerank", content=pieces(50), headers=headers)
        assert code_of(server.run(work)) == (413, "max_body_bytes")


def test_a_body_that_does_not_come_ends_the_request():
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    with double(Settings(limits=Limits(body_seconds=0.1))) as server:
        headers = {"Content-Type": "application/json"}
        work = server.client.post("/v1/rerank", content=slow(), headers=headers)
        assert code_of(server.run(work)) == (408, "body_seconds")


def while_one_is_ranked(server: Server, first: Any, second: Any) -> list[Any]:
    """Answers to the first request, to the second beside it, and to the second after it."""

    async def all_three() -> list[Any]:
        started, go = asyncio.Event(), asyncio.Event()

        async def pause() -> None:
            started.set()
            await go.wait()

        server.service.pause = pause
        ranked = asyncio.create_task(server.client.post("/v1/rerank", json=first))
        await started.wait()
        beside = await server.client.post("/v1/rerank", json=second)
        go.set()
        return [await ranked, beside, await server.client.post("/v1/rerank", json=second)]

    return server.run(all_three())


def test_more_requests_than_the_server_holds_are_sent_away():
    with double(Settings(limits=Limits(max_requests=1))) as server:
        first, second, third = while_one_is_ranked(server, ASK, ASK)
    assert first.status_code == third.status_code == 200
    assert code_of(second) == (429, "server_busy") and second.headers["Retry-After"] == "1"


@pytest.mark.parametrize("stream", [False, True])
def test_decoded_pictures_of_all_requests_together_are_bounded(stream):
    """Although their files are small; each is counted once."""
    red, blue = (
        {"query": "a", "documents": [{"image": png(colour, 100)}] * 9, "stream": stream}
        for colour in ("red", "blue")
    )
    bodies = len(json.dumps(red)) + len(json.dumps(blue))
    with double(Settings(limits=Limits(max_held_bytes=bodies + 60_000))) as server:
        first, second, third = while_one_is_ranked(server, red, blue)
        assert server.post("/v1/rerank", red).status_code == 200
    assert first.status_code == third.status_code == 200
    assert code_of(second) == (429, "server_busy")


def test_files_that_wait_to_be_decoded_are_bounded_and_counted_out_again(tmp_path):
    """Three small pictures in files of 100 kB each, which wait until a process has started."""
    for number, colour in enumerate(("red", "green", "blue")):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), colour).save(file)
        file.write_bytes(file.read_bytes().ljust(100_000, b"\0"))
    pictures = [{"image": f"file://{tmp_path}/{number}.png"} for number in range(3)]
    policy = PicturePolicy(file_root=tmp_path, kept_bytes=0)
    limits = Limits(max_held_bytes=250_000)
    with Server(Settings(limits=limits), ServiceDouble(), policy=policy) as server:
        answer = server.post("/v1/rerank", {"query": "a", "documents": pictures})
        assert code_of(answer) == (429, "server_busy")
        for _ in range(3):  # two are within the limit, and leave nothing counted
            asked = {"query": "a", "documents": pictures[:2]}
            assert server.post("/v1/rerank", asked).status_code == 200


def test_bytes_that_are_held_for_a_while_are_counted_out_within_the_request():
    gate = Gate(Limits(max_held_bytes=10))
    with gate.enter() as held:
        held.add(2)
        for _ in range(2):
            with held.adding(8):
                assert gate.held == 10
                with pytest.raises(ApiError), held.adding(1):
                    raise AssertionError
        assert gate.held == 2
    assert gate.held == 0


def test_bodies_of_all_requests_together_are_bounded():
    with double(Settings(limits=Limits(max_held_bytes=500))) as server:
        large = {**ASK, "filler": "x" * 600}
        assert code_of(server.post("/v1/rerank", large)) == (429, "server_busy")
        for _ in range(20):  # what was held is given back
            assert server.post("/v1/rerank", ASK).status_code == 200
