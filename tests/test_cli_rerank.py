"""The command rerank from arguments to output, with a small stand-in for the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
from cli_doubles import WordReranker, run
from PIL import Image


@pytest.fixture(autouse=True)
def reranker(monkeypatch) -> type[WordReranker]:
    module = types.ModuleType("retrv_r1.rerank.reranker")
    vars(module)["Reranker"] = WordReranker
    monkeypatch.setitem(sys.modules, "retrv_r1.rerank.reranker", module)
    monkeypatch.setattr(WordReranker, "calls", [])
    return WordReranker


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (8, 8), name).save(f"pictures/{name}.png")
    return tmp_path


def test_ranking_reasoning_and_cost_are_printed(folder):
    result = run("rerank", "a red thing", "pictures")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert "pictures/red.png" in lines[1] and "answer, inspected" in lines[1]
    assert "reasoning, as the model wrote it" in result.stdout
    assert "▸ inspects [3] yes." in result.stdout
    assert "words, reasoning mode: 30 ms" in result.stdout
    assert "3 candidates; 30 prompt rows, 9 of them candidates" in result.stdout


def test_options_reach_the_model(folder, reranker):
    run("rerank", "red", "pictures", "--top", "2", "--mode", "fast", "--instruction", "pick")
    assert reranker.calls == [{"top_k": 2, "mode": "fast", "instruction": "pick", "votes": 1}]
    assert reranker.loaded == {"engine": "local", "weights": "model", "cache": None}
    run("rerank", "red", "pictures", "--engine", "plain", "--cache", "kept", "--votes", "3")
    assert reranker.calls[-1]["votes"] == 3
    assert reranker.loaded == {"engine": "plain", "weights": "model", "cache": Path("kept")}
    run("rerank", "red", "pictures", "--weights", "int8")
    assert reranker.loaded["weights"] == "int8"
    died = run("rerank", "red", "pictures", "--engine", "sglang", "--url", "http://host:3")
    assert reranker.loaded == {"engine": "sglang", "url": "http://host:3"}
    assert died.exit_code == 2 and died.stderr == "error: the server has died; its log says why\n"
    for options, why in (
        (("--url", "http://host:3"), "needs --engine sglang"),
        (("--engine", "sglang", "--weights", "int8"), "only the local engine rounds"),
    ):
        refused = run("rerank", "red", "pictures", *options)
        assert refused.exit_code == 2 and why in " ".join(refused.stderr.split())
    refused = run("rerank", "red", "pictures", "--mode", "fast", "--votes", "3")
    assert refused.exit_code == 2 and "nothing to vote on" in refused.stderr


def test_device_and_dtype_reach_the_model(folder, reranker):
    run("rerank", "red", "pictures")
    assert reranker.placed == (None, None)
    assert run("rerank", "red", "pictures", "--device", "cpu", "--dtype", "bfloat16").exit_code == 0
    assert reranker.placed == ("cpu", "bfloat16")
    refused = run("rerank", "red", "pictures", "--device", "cuda")
    assert refused.exit_code == 2 and refused.stderr == "error: no device cuda: say cpu\n"
    assert run("rerank", "red", "pictures", "--dtype", "int8").exit_code == 2


def test_stats_say_what_it_took(folder):
    table = run("rerank", "red", "pictures", "--stats").stdout
    assert "rows found cached" in table and "25 %" in table and "3 of 8" not in table
    stats = json.loads(run("rerank", "red", "pictures", "--stats", "--json").stdout)["stats"]
    assert stats["timings"] == {"features": 0.01, "decode": 0.02}
    assert stats["engine"]["hit_rate"] == 0.25 and stats["features"]["hit_rate"] == 0.25
    assert stats["tokens"]["prompt"] == 30


def test_json_is_the_response_form_and_nothing_else(folder):
    result = run("rerank", "red", "pictures", "--top", "2", "--json")
    response = json.loads(result.stdout)
    assert response["object"] == "rerank" and response["model"] == "words"
    assert [row["index"] for row in response["results"]] == [2, 0]
    best = {"index": 2, "id": "pictures/red.png", "relevance_score": 1.0, "truncated": False}
    assert response["results"][0] == best
    assert response["usage"] == {
        "prompt_tokens": 35,
        "completion_tokens": 9,
        "total_tokens": 44,
        "image_tokens": 0,
        "cached_tokens": 0,
    }
    assert response["retrv"]["answer"] == 2 and response["retrv"]["inspected"] == [2]
    assert result.stderr == ""


def test_picture_query_stdin_and_mixed_sources(folder):
    Path("more.txt").write_text("a red text\n")
    result = run(
        *("rerank", "", "--image", "pictures/red.png", "pictures/blue.png", "-", "more.txt"),
        "--json",
        stdin='from stdin\n{"id": "x", "image": "pictures/green.png"}\n',
    )
    ids = {row["index"]: row["id"] for row in json.loads(result.stdout)["results"]}
    assert [ids[k] for k in range(4)] == ["pictures/blue.png", "stdin:1", "x", "more.txt:1"]


def test_html_is_written_beside_the_output(folder):
    result = run("rerank", "red", "pictures", "--top", "1", "--html", "out/page.html", "--json")
    assert json.loads(result.stdout)["results"]
    page = Path("out/page.html").read_text(encoding="utf-8")
    assert "the best 1 of 3" in page and "data:image/png" in page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["red", "nope.png"], "no such file: 'nope.png'; to pass a text candidate use -"),
        (["", "pictures"], "the query is empty; give a text, --image, or both"),
        (["  ", "pictures"], "the query is empty"),
        (["pictures/red.png", "pictures"], 'write "" --image pictures/red.png'),
        (["", "pictures", "--image", "gone.png"], "no such picture file: gone.png"),
        (["red", "pictures", "--model", "missing"], "no model called missing; name a directory"),
        (["red", "pictures", "--html", "pictures"], "it is a folder; name a file"),
        (["red", "bad.png"], "bad.png is not a picture"),
        (["red", "a\x1b[2J.md"], "cannot tell what a\ufffd[2J.md holds"),
    ],
)
def test_errors_are_one_line_on_stderr(folder, arguments, expected):
    Path("bad.png").write_text("not a picture")
    Path("a\x1b[2J.md").write_text("neither")
    result = run("rerank", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_interrupt_is_clean(folder):
    result = run("rerank", "interrupt", "pictures")
    assert result.exit_code == 130 and result.stderr == "interrupted\n" and result.stdout == ""


@pytest.mark.parametrize(
    ("query", "option", "status"),
    [
        ("red", "--stats", 0),
        ("interrupt", "--stats", 130),
        ("red", "--votes=3", 2),  # an error while ranking
    ],
)
def test_the_engine_is_closed_however_the_command_ends(folder, query, option, status):
    closed = WordReranker.closed
    result = run("rerank", query, "pictures", "--mode", "fast", option)
    assert result.exit_code == status and WordReranker.closed == closed + 1


@pytest.mark.parametrize("option", ["", "--json"])
@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX shells close them")
def test_a_closed_pipe_is_clean(folder, option):
    Path("many.txt").write_text("red text\n" * 3_000)
    code = textwrap.dedent(
        f"""
        import sys, types
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from cli_doubles import WordReranker, app
        module = types.ModuleType("retrv_r1.rerank.reranker")
        module.Reranker = WordReranker
        sys.modules["retrv_r1.rerank.reranker"] = module
        sys.argv = ["retrv-r1", "rerank", "red", "many.txt", *{option.split()!r}]
        app()
        """
    )
    # Unbuffered, Python's text layer loses the rest of a write that a closing pipe cut short.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141
