"""README and docs are true: their code runs, their commands parse, what they name is there.

A Python block runs, unless the line before it is ``<!-- not run: reason -->``. After the line
``<!-- needs: PACKAGE -->`` it runs where that is installed, and always in ``make test-clients``. A
``text`` block that follows a Python block holds what that block prints.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from retrv_r1.command.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
HISTORY = {"LOG.md", "CHANGELOG.md"}  # they name files and commands that are gone
FOLDERS = ("bench", "docs", "engine", "examples", "kernels", "requirements", "retrv_r1", "tests")
FILE = re.compile(r"[\w./*-]+\.(?:py|pyi|md|cpp|h|yaml|toml|txt)")
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n")
NEEDS = re.compile(r"<!-- needs: (\w+) -->\n")


@cache
def parsed(page: Path) -> list[Token]:
    """A page's blocks and, each behind its own, what stands in their lines."""
    blocks = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or ()))]


def examples() -> Iterator[Any]:
    """Code of each Python block that runs, and what it prints, None where the page is silent."""
    for page in PAGES:
        blocks = [token for token in parsed(page) if token.type in ("fence", "html_block")]
        for before, block, behind in zip(
            [None, *blocks], blocks, [*blocks[1:], None], strict=False
        ):
            if block.info != "python":
                continue
            if before and before.type == "html_block" and NOT_RUN.match(before.content):
                assert before.map[1] == block.map[0], "the comment belongs to the next block"
                continue
            printed = behind.content if behind and behind.info == "text" else None
            needs = before and before.type == "html_block" and NEEDS.match(before.content)
            yield pytest.param(
                block.content,
                printed,
                id=f"{page.name}:{block.map[0] + 1}",
                marks=skip_without(needs[1]) if needs else (),
            )


def skip_without(package: str) -> pytest.MarkDecorator:
    found = os.environ.get("RETRV_CLIENTS") or importlib.util.find_spec(package)
    return pytest.mark.skipif(not found, reason=f"needs {package}: make test-clients")


def commands() -> Iterator[list[str]]:
    """Words of each command, in blocks and in lines, but for the variables that it sets."""
    for page in PAGES:
        for token in parsed(page) if page.name not in HISTORY else ():
            if token.type == "code_block":
                lines = token.content.replace("\\\n", " ").splitlines()
            else:
                lines = [token.content] if token.type == "code_inline" else []
            for line in lines:
                if line.startswith(("make ", "python ", "retrv-r1 ", "PYTHONPATH=")):
                    words = shlex.split(line, comments=True)
                    yield [word for word in words if not re.match(r"\w+=", word)]


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    tokens = parsed(page)
    titles = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    return {slug(title) for title in titles}


@pytest.mark.parametrize(("code", "printed"), [*examples()])
def test_code_runs(code, printed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # what it writes is no part of the checkout
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code, "<documentation>", "exec"), {"__name__": "__main__"})
    assert printed is None or out.getvalue() == printed


def test_readme_shows_what_its_example_prints():
    (example,) = [case for case in examples() if case.id.startswith("README.md")]
    assert example.values[1]


def test_commands_of_retrv_r1_parse():
    lines = [words[1:] for words in commands() if words[0] == "retrv-r1"]
    complete = [words for words in lines if not any(w.isupper() or "…" in w for w in words)]
    for words in complete:
        command: Any = typer.main.get_command(app)
        while hasattr(command, "commands") and words:
            command, words = command.commands[words[0]], words[1:]
        if not hasattr(command, "commands"):
            command.make_context("retrv-r1", words)
    assert len(complete) > 10


def test_targets_of_make_exist():
    asked = {word for words in commands() if words[0] == "make" for word in words[1:]}
    known = subprocess.run(["make", "-qp"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = {word for word in asked if word[0] != "-" and "…" not in word}
    assert targets and targets <= set(re.findall(r"^([\w-]+):", known, re.MULTILINE))


def test_modules_and_scripts_that_python_runs_exist():
    lines = [words[1:] for words in commands() if words[0] == "python"]
    ours = [words for words in lines if not (words[0] == "-m" and words[1].startswith("sglang"))]
    assert ours
    for first, *rest in ours:
        assert importlib.util.find_spec(rest[0]) if first == "-m" else (ROOT / first).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for token in parsed(page):
        link = str(token.attrGet("href") or token.attrGet("src") or "")
        if link and not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_files_that_are_named_exist():
    files = [str(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    files += [str(path) for path in ROOT.iterdir()]
    for page in PAGES:
        for token in parsed(page) if page.name not in HISTORY else ():
            if token.type == "code_inline" and FILE.fullmatch(token.content):
                pattern = f"*/{token.content}"
                assert any(fnmatch(file, pattern) for file in files), (
                    f"{page.name}: {token.content}"
                )
