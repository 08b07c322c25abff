"""Standard output that is narrow, full or closed: nothing is lost without a line that says so."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from cli_doubles import WordReranker, run

from retrv_r1.command import shell
from retrv_r1.command.cli import app
from retrv_r1.rerank import reranker


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(reranker, "Reranker", WordReranker)
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a → 日本 text\na cat\n", encoding="utf-8")
    return tmp_path


def narrow(monkeypatch, encoding: str) -> io.BytesIO:
    """Makes standard output one of an encoding; returns its bytes."""
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    return content


def call(*words: str) -> str | int | None:
    with pytest.raises(SystemExit) as ended:
        app(words)
    return ended.value.code


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_characters_that_output_lacks_are_replaced_or_escaped(texts, monkeypatch, encoding):
    content = narrow(monkeypatch, encoding)
    assert call("rerank", "text", "t.txt") == 0
    assert b"a ? ?? text" in content.getvalue() and b"> inspects" in content.getvalue()
    content = narrow(monkeypatch, encoding)
    assert call("rerank", "text", "t.txt", "--json") == 0
    assert json.loads(content.getvalue())["results"][0]["id"] == "t.txt:1"
    content = narrow(monkeypatch, encoding)
    shell.print_json({"text": "a → 日本"})
    sys.stdout.flush()
    assert json.loads(content.getvalue()) == {"text": "a → 日本"}, "escaped, not replaced"
    assert call("--help") == 0


class Full(io.RawIOBase):
    """A file on a full disk."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(28, "No space left on device")


FORMS = {
    "table": ["rerank", "text", "t.txt"],
    "json": ["rerank", "text", "t.txt", "--json"],
    "stats": ["rerank", "text", "t.txt", "--stats"],
    "help": ["--help"],
    "version": ["--version"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_full_output_is_one_line(texts, monkeypatch, capsys, form):
    full = io.TextIOWrapper(io.BufferedWriter(Full()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", full)
    assert call(*FORMS[form]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write to standard output: No space left on device; ")
    assert said.count("\n") == 1
    monkeypatch.undo()
    full.buffer.raw.write = len  # so that the collector can flush


def test_a_page_is_written_before_output_fails(texts, monkeypatch):
    full = io.TextIOWrapper(io.BufferedWriter(Full()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", full)
    assert call("rerank", "text", "t.txt", "--html", "page.html") == 1
    assert "a cat" in Path("page.html").read_text(encoding="utf-8")
    full.buffer.raw.write = len


def test_a_closed_output_is_said_before_the_work(texts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    for words in (["rerank", "text", "gone.txt"], ["doctor"], ["eval", "gone"]):
        assert call(*words) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: standard output is closed") and said.count("\n") == 1


def test_other_streams_may_be_closed(texts, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert call("rerank", "text", "-") == 2
    assert "there is no standard input" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stderr", None)
    assert call("rerank", "text", "gone.txt") == 2
    assert call("rerank", "text", "t.txt") == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["doctor --json", "--help"])
def test_the_process_itself_ends_in_one_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "retrv_r1", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write to") and done.stderr.count("\n") == 1


def test_nan_and_warnings_are_one_line_each():
    command = typer.Typer()

    @command.command()
    @shell.clean_ending()
    def spoilt() -> None:
        warnings.warn("the cache\nis full", stacklevel=1)
        raise FloatingPointError("the model's logits are NaN")

    result = run(command=command)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "warning: the cache is full",
        "error: the model's logits are NaN",
    ]


def test_the_limit_of_texts_reaches_the_model(texts):
    assert run("rerank", "text", "t.txt").exit_code == 0
    assert WordReranker.max_text_tokens == 4096
    assert run("rerank", "text", "t.txt", "--max-text-tokens", "7").exit_code == 0
    assert WordReranker.max_text_tokens == 7
    assert run("rerank", "text", "t.txt", "--html", ".").exit_code == 2
