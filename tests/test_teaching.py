"""Chains by a teacher: what it is asked, which replies are taken, and what a run survives."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from retrv_r1.command.cli import app
from retrv_r1.data.lists import CandidateList, ListsError, read_lists, write_lists
from retrv_r1.model.chains import parse
from retrv_r1.teaching.asking import Teacher
from retrv_r1.teaching.journal import TeachingError
from retrv_r1.teaching.judging import judge
from retrv_r1.teaching.prompt import Question, Shown
from retrv_r1.teaching.writing import write_chains

pytest_plugins = ("training_fixtures",)
asks = pytest.mark.skipif(not find_spec("openai"), reason="needs the extra teacher")
Answer = Callable[[dict[str, Any]], Any]


class Endpoint(ThreadingHTTPServer):
    """A chat endpoint on this machine; ``answer`` gives the text, or a status and headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Answer = right
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.now, self.most, self.guard = 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.guard:
            server.asked.append(body)
            server.keys.append(self.headers["Authorization"])
            server.now += 1
            server.most = max(server.most, server.now)
        found = server.answer(body)
        with server.guard:
            server.now -= 1
        status, headers, reply = found if isinstance(found, tuple) else (200, {}, found)
        if isinstance(reply, str) and status == 200:
            reply = completion(reply)
        content = json.dumps(reply).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def completion(text: str | None, **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": choice.pop("refusal", None)}
    return {
        **{"id": "x", "object": "chat.completion", "created": 0, "model": "m"},
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def texts(body: dict[str, Any]) -> list[str]:
    return [part.get("text", "picture") for part in body["messages"][1]["content"]]


def right(body: dict[str, Any]) -> str:
    """A right chain about names: the candidate whose name the query's picture cannot say."""
    said = texts(body)
    best = next(n for n, text in enumerate(said) if text.startswith("large red"))
    label = said[best - 1]
    other = next(text for text in said if text.startswith("[") and text != label)
    return (
        f"ideal: red apple. close: {other} another thing, {label} large red apple. "
        f"inspect {label} large red apple with a leaf; best: {label}"
    )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def lists(tmp_path: Path, pictographs: Path) -> Path:
    """Five lists: a picture, or the picture in another style, and names of which one is right."""
    path = tmp_path / "lists.jsonl"
    names = [f"100:{101 + n}" for n in range(10)]
    write_lists(
        path,
        [
            CandidateList("made_i2t", "train", f"201:{row}", tuple(names[:size]), "100:101")
            for row, size in ((1, 4), (11, 5), (1, 6), (11, 7), (1, 8))
        ],
    )
    return path


def teacher(endpoint: Endpoint, **options: Any) -> Teacher:
    return Teacher(endpoint.url, "m", **({"together": 2, "retries": 2} | options))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@asks
def test_right_chains_are_kept_with_places_of_the_list(endpoint, lists, pictographs, tmp_path):
    out = tmp_path / "chains.jsonl"
    totals = write_chains([pictographs], lists, out, teacher(endpoint, key="secret"))
    assert (totals.taken, totals.read, totals.written) == (5, 500, 50)
    assert totals.cost((1.0, 10.0)) == pytest.approx(1e-3)
    found = {len(one.candidates): one for one in read_lists(out)}
    assert sorted(found) == [4, 5, 6, 7, 8]
    places = set()
    for one in found.values():
        chain = parse(one.chain)
        assert chain.whole and chain.best is None
        assert chain.ideal == "red apple"
        assert (0, "large red apple") in chain.near
        assert chain.seen == ((0, "large red apple with a leaf"),)
        places |= {k for k, _ in chain.near if k}
    assert places and max(places) < 8
    assert set(endpoint.keys) == {"Bearer secret"}
    assert "secret" not in out.read_text()


@asks
def test_a_teacher_sees_pictures_texts_and_labels_but_no_ranks(
    endpoint, lists, pictographs, tmp_path
):
    write_chains([pictographs], lists, tmp_path / "chains.jsonl", teacher(endpoint))
    first_shown = []
    for body in endpoint.asked:
        said = texts(body)
        assert said[0].split("\n") in (["Which fits?", "Query:"], ["Find it.", "Query:"])
        assert said[1:3] == ["picture", "Candidates:"]
        shown = said[3:-1]
        assert shown[::2] == [f"[{n}]" for n in range(1, len(shown) // 2 + 1)]
        first_shown.append(shown[1])
        url = body["messages"][1]["content"][1]["image_url"]["url"]
        kind, _, data = url.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (16, 16)
    assert any(not text.startswith("large red") for text in first_shown)


@asks
@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("ideal: apple. close: [1] one, [2] two. best: [9]", "no such candidate"),
        ("ideal: apple. close: [1] one, [2] two. inspect [40] it; best: [1]", "no such candidate"),
        ("It is the first one.", "not of the form"),
        ("ideal: apple. close: [1] one, [2] two.", "not of the form"),
        (completion("ideal: apple.", finish_reason="length"), "cut off"),
        (completion(None, refusal="I cannot."), "refused"),
        (completion("", finish_reason="content_filter"), "refused"),
        ((400, {}, {"error": {"message": "too long"}}), "refused"),
    ],
)
def test_replies_that_are_not_taken_say_why(endpoint, lists, pictographs, tmp_path, reply, why):
    endpoint.answer = lambda _: reply
    out = tmp_path / "chains.jsonl"
    totals = write_chains([pictographs], lists, out, teacher(endpoint))
    assert totals.taken == 0 and totals.rejected == {why: 5}
    assert all(one.chain is None for one in read_lists(out))
    assert {row["rejected"] for row in rows(out)} == {why}


def question(answer: str = "a") -> Question:
    asked = CandidateList("c", "train", "1:1", ("a", "b", "c", "d"), answer)
    shown = [Shown(did, None) for did in asked.candidates]
    return Question.of(asked, "Find.", Shown("q", None), shown, seed=0)


def label(asked: Question, did: str) -> str:
    return f"[{asked.order.index(asked.asked.candidates.index(did)) + 1}]"


@pytest.mark.parametrize(
    ("form", "rejected"),
    [
        ("ideal: x. close: {a} one, {b} two. best: {a}", None),
        ("<think>perhaps {b}</think>\nideal: x. close: {a} one,\n{b} two. best: {a}", None),
        ("ideal: x. close: {a} one, {b} two. best: {b}", "wrong answer"),
        ("ideal: x. close: {a} one, {b} two. inspect {c} three; best: {a}", "not of the form"),
        ("ideal: x. close: {a} one, {b} two. inspect {a} 1; inspect {a} 1; best: {a}", None),
        ("ideal: x. close: {a} one, {a} two. best: {a}", "not of the form"),
        ("ideal: x. close: {b} one, {c} two. best: {a}", "not of the form"),
        ("ideal: x. close: {a} --, {b} two. best: {a}", "not of the form"),
        ("Sure! ideal: x. close: {a} one, {b} two. best: {a}", "not of the form"),
    ],
)
def test_only_chains_of_the_form_about_named_candidates_are_taken(form, rejected):
    asked = question()
    if form.count("inspect {a}") == 2:
        rejected = "not of the form"
    found = judge(form.format(**{did: label(asked, did) for did in "abc"}), asked)
    assert found.rejected == rejected
    if rejected is None:
        assert parse(found.chain).near == ((0, "one"), (1, "two"))


@asks
def test_a_second_try_replaces_a_wrong_reply_and_is_paid(endpoint, lists, pictographs, tmp_path):
    calls = []

    def answer(body: dict[str, Any]) -> str:
        calls.append(body)
        return "no" if len(calls) % 2 else right(body)

    endpoint.answer = answer
    out = tmp_path / "chains.jsonl"
    totals = write_chains([pictographs], lists, out, teacher(endpoint, tries=2, together=1))
    assert totals.taken == 5 and totals.read == 1000


@asks
def test_so_many_requests_are_in_flight_and_no_more(endpoint, lists, pictographs, tmp_path):
    def slow(body: dict[str, Any]) -> str:
        time.sleep(0.15)
        return right(body)

    endpoint.answer = slow
    write_chains([pictographs], lists, tmp_path / "chains.jsonl", teacher(endpoint, together=3))
    assert endpoint.most == 3


@asks
def test_what_fails_on_the_way_is_asked_again(endpoint, lists, pictographs, tmp_path):
    calls = []

    def flaky(body: dict[str, Any]) -> Any:
        calls.append(body)
        if len(calls) in (1, 3):
            status = 429 if len(calls) == 1 else 503
            return status, {"retry-after-ms": "1"}, {"error": {"message": "busy"}}
        return right(body)

    endpoint.answer = flaky
    out = tmp_path / "chains.jsonl"
    assert write_chains([pictographs], lists, out, teacher(endpoint, together=1)).taken == 5
    assert len(calls) == 7


@asks
@pytest.mark.parametrize(
    ("status", "why"),
    [(401, "refuses the API key"), (403, "use m"), (404, "no model 'm'"), (429, "limits the rate")],
)
def test_an_endpoint_that_cannot_be_used_stops_the_run(
    endpoint, lists, pictographs, tmp_path, status, why
):
    endpoint.answer = lambda _: (status, {"retry-after-ms": "1"}, {"error": {"message": "no"}})
    with pytest.raises(TeachingError, match=why):
        write_chains([pictographs], lists, tmp_path / "chains.jsonl", teacher(endpoint, key="k"))


@asks
def test_an_endpoint_that_calls_every_request_bad_stops_the_run(endpoint, pictographs, tmp_path):
    path = tmp_path / "many.jsonl"
    names = [f"100:{101 + n}" for n in range(10)]
    sizes = [(row, n) for row in (1, 11) for n in range(2, 11)]
    write_lists(
        path,
        [
            CandidateList("made_i2t", "train", f"201:{row}", tuple(names[:n]), "100:101")
            for row, n in sizes
        ],
    )
    endpoint.answer = lambda _: (400, {}, {"error": {"message": "max_tokens is unknown"}})
    with pytest.raises(TeachingError, match="max_tokens is unknown"):
        write_chains([pictographs], path, tmp_path / "chains.jsonl", teacher(endpoint))
    assert len(endpoint.asked) < 15


@asks
def test_an_endpoint_that_is_down_is_named(lists, pictographs, tmp_path):
    nobody = Teacher("http://127.0.0.1:9/v1", "m", retries=0, seconds=5)
    with pytest.raises(TeachingError, match=r"no answer from http://127\.0\.0\.1:9/v1"):
        write_chains([pictographs], lists, tmp_path / "chains.jsonl", nobody)


@asks
def test_a_killed_run_goes_on_and_asks_nothing_twice(endpoint, lists, pictographs, tmp_path):
    out = tmp_path / "chains.jsonl"
    calls = []

    def dies(body: dict[str, Any]) -> Any:
        calls.append(body)
        return right(body) if len(calls) <= 3 else (401, {}, {})

    endpoint.answer = dies
    with pytest.raises(TeachingError):
        write_chains([pictographs], lists, out, teacher(endpoint, together=1))
    assert len(rows(out)) == 3
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])  # killed while a line was written
    endpoint.answer, endpoint.asked = right, []
    told: list[tuple[int, int]] = []
    totals = write_chains(
        [pictographs], lists, out, teacher(endpoint), told=lambda n, of, _: told.append((n, of))
    )
    assert len(endpoint.asked) == 3 and totals.taken == 5
    assert told[0] == (2, 5) and told[-1] == (5, 5)
    assert len({one.key for one in read_lists(out)}) == 5
    endpoint.asked = []
    assert write_chains([pictographs], lists, out, teacher(endpoint)).taken == 5
    assert not endpoint.asked


@asks
def test_a_file_of_another_teacher_is_refused(endpoint, lists, pictographs, tmp_path):
    out = tmp_path / "chains.jsonl"
    write_chains([pictographs], lists, out, teacher(endpoint))
    other = Teacher(endpoint.url, "n")
    with pytest.raises(TeachingError, match="model 'm', not 'n'"):
        write_chains([pictographs], lists, out, other)
    with pytest.raises(TeachingError, match="no line of a file of chains"):
        write_chains([pictographs], lists, lists, other)


@asks
def test_the_command_asks_and_reports(endpoint, lists, pictographs, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    out = tmp_path / "chains.jsonl"
    args = ["data", "chains", str(lists), str(out), "--data", str(pictographs)]
    args += ["--url", endpoint.url, "-m", "m", "--key-variable", "A_KEY", "--prices", "1,10"]
    result = CliRunner().invoke(app, [*args, "--limit", "3", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["taken"] == 3 and report["cost"] == pytest.approx(6e-4)
    assert report["tokens"] == {"read": 300, "written": 30}
    assert "3 of 3 lists: 3 chains" in result.stderr
    assert set(endpoint.keys) == {"Bearer secret"}


@asks
def test_the_command_fails_if_no_chain_is_right(endpoint, lists, pictographs, tmp_path):
    endpoint.answer = lambda _: "no"
    args = ["data", "chains", str(lists), str(tmp_path / "c.jsonl"), "--data", str(pictographs)]
    result = CliRunner().invoke(app, [*args, "--url", endpoint.url, "-m", "m"])
    assert result.exit_code == 2 and "no chain was right" in result.stderr


def test_without_the_client_the_message_says_what_to_install(
    endpoint, lists, pictographs, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrv_r1.teaching.asking.find_spec", lambda _: None)
    with pytest.raises(TeachingError, match=r"\[teacher\]"):
        write_chains([pictographs], lists, tmp_path / "chains.jsonl", teacher(endpoint))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"candidates": []}, "a list of candidates"),
        ({"candidates": ["100:1", "100:1"]}, "stands twice"),
        ({"answer": "100:9"}, "none of the candidates"),
        ({"qid": 3}, "qid"),
        ({"chain": 3}, "must be a text"),
    ],
)
def test_lines_that_are_no_lists_are_named(tmp_path, change, why):
    path = tmp_path / "lists.jsonl"
    row = CandidateList("c", "train", "1:1", ("100:1", "100:2"), "100:1").row()
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | change) + "\n")
    with pytest.raises(ListsError, match=rf"lists\.jsonl:2: .*{why}"):
        list(read_lists(path))


def test_lists_of_another_data_set_are_refused(endpoint, pictographs, tmp_path):
    path = tmp_path / "lists.jsonl"
    for one, why in (
        (CandidateList("other", "train", "1:1", ("100:1", "100:2"), "100:1"), "no cell other"),
        (CandidateList("made_i2t", "train", "201:1", ("100:101", "9:9"), "9:9"), "has no 9:9"),
        (CandidateList("made_i2t", "train", "9:9", ("100:101",), "100:101"), "has no 9:9"),
    ):
        write_lists(path, [one])
        with pytest.raises(ListsError, match=why):
            write_chains([pictographs], path, tmp_path / "c.jsonl", teacher(endpoint))
