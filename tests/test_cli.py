"""The command line from arguments to output, with a small stand-in for the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from retrv_engine import EngineConfig, EngineDied, SGLangConfig, Stats
from retrv_r1 import __version__
from retrv_r1.command.cli import app
from retrv_r1.images import load_image
from retrv_r1.rerank.feature_encoder import FeatureStats
from retrv_r1.types import (
    CheckpointError,
    DeviceError,
    Item,
    ItemLike,
    Mode,
    RankedItem,
    RankedResults,
    TokenCounts,
)

ROOT = Path(__file__).parent.parent


class WordReranker:
    """Ranks by how many of the query's words a candidate's id or text has."""

    calls: list[dict] = []  # noqa: RUF012
    loaded: dict = {}  # noqa: RUF012
    placed: tuple[str | None, str | None] = (None, None)

    def close(self) -> None:
        pass

    def stats(self) -> tuple[Stats, FeatureStats]:
        engine = Stats(finished=1, computed_rows=30, cached_rows=10, pages=8, free_pages=5)
        return engine, FeatureStats(ram_hits=1, encoded=3)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        engine: str,
        config: EngineConfig | SGLangConfig,
        cache: Path | None,
        device: str | None,
        dtype: str | None,
    ) -> WordReranker:
        cls.placed = device, dtype
        if device == "cuda":
            raise DeviceError("no device cuda:\nsay cpu")
        if isinstance(config, SGLangConfig):
            cls.loaded = {"engine": engine, "url": config.url}
            raise EngineDied("the server has died;\nits log says why")
        cls.loaded = {"engine": engine, "weights": config.weights, "cache": cache}
        if name == "missing":
            raise CheckpointError("there is no model called missing;\nname a directory")
        return cls()

    def rank(
        self,
        query: ItemLike,
        candidates: Sequence[ItemLike],
        *,
        top_k: int | None = None,
        mode: Mode = "reason",
        instruction: str | None = None,
        votes: int = 1,
    ) -> RankedResults:
        if votes > 1 and mode == "fast":
            raise ValueError("fast mode has nothing to vote on")
        self.calls.append({"top_k": top_k, "mode": mode, "instruction": instruction})
        self.calls[-1]["votes"] = votes
        asked, items = Item.of(query), [Item.of(value) for value in candidates]
        for item in (asked, *items):
            if item.image is not None:
                load_image(item.image)
        if asked.text == "interrupt":
            raise KeyboardInterrupt
        words = (asked.text or "").split()
        hits = [sum(word in f"{i.id} {i.text}" for word in words) for i in items]
        order = sorted(range(len(items)), key=lambda k: -hits[k])
        ranking = [
            RankedItem(k, hits[k] / (len(words) or 1), items[k], k == order[0]) for k in order
        ]
        label = f"[{order[0] + 1}]"
        return RankedResults(
            query=asked,
            answer=order[0],
            ranking=tuple(ranking[:top_k]),
            reasoning=f"close: {label}. inspect {label} yes. so {label}"
            if mode == "reason"
            else "",
            inspected=(order[0],) if mode == "reason" else (),
            mode=mode,
            model="words",
            timings={"features": 0.01, "decode": 0.02},
            tokens=TokenCounts(prompt=30, candidates=3 * len(items), inspected=5, generated=9),
        )


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


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_ranking_reasoning_and_cost_are_printed(folder):
    result = run("rerank", "a red thing", "pictures")
    assert result.exit_code == 0 and result.stderr == ""
    lines = result.stdout.splitlines()
    assert "pictures/red.png" in lines[1] and "answer, inspected" in lines[1]
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
        (("--url", "http://host:3"), "goes with --engine sglang"),
        (("--engine", "sglang", "--weights", "int8"), "rounded by the local engine"),
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
    assert response["results"][0] == {"index": 2, "id": "pictures/red.png", "relevance_score": 1.0}
    assert response["usage"] == {
        "prompt_tokens": 35,
        "completion_tokens": 9,
        "total_tokens": 44,
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank", "red"],
        ["rerank", "red", "pictures", "--top", "0"],
        ["rerank", "red", "pictures", "--mode", "slow"],
        ["train", "grow", "--config", "x.yaml"],
        ["eval", "set", "--k", "1,x"],
        ["eval", "set", "--k", "1"],
        ["eval", "set", "--split", "half"],
        ["nonsense"],
    ],
)
def test_wrong_usage(folder, arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.stderr and "Error" in result.stderr


def test_interrupt_is_clean(folder):
    result = run("rerank", "interrupt", "pictures")
    assert result.exit_code == 130 and result.stderr == "interrupted\n" and result.stdout == ""


def test_version_and_help():
    assert run("--version").stdout == f"retrv-r1 {__version__}\n"
    for command in ([], ["rerank"], ["data", "pictographs"], ["train"], ["eval"], ["doctor"]):
        result = run(*command, "--help")
        assert result.exit_code == 0 and "Usage" in result.stdout


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = textwrap.dedent(
        """
        import sys
        sys.argv = ["retrv-r1", "rerank", "--help"]
        from retrv_r1.command.cli import app
        try:
            app()
        except SystemExit:
            print([m for m in ("torch", "numpy", "transformers", "jinja2") if m in sys.modules])
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("option", ["", "--json"])
@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX shells close them")
def test_a_closed_pipe_is_clean(folder, option):
    Path("many.txt").write_text("red text\n" * 3_000)
    code = textwrap.dedent(
        f"""
        import importlib.util, sys, types
        spec = importlib.util.spec_from_file_location("here", {__file__!r})
        here = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(here)
        module = types.ModuleType("retrv_r1.rerank.reranker")
        module.Reranker = here.WordReranker
        sys.modules["retrv_r1.rerank.reranker"] = module
        sys.argv = ["retrv-r1", "rerank", "red", "many.txt", *{option.split()!r}]
        here.app()
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


def stand_in(monkeypatch, name: str, **functions) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


def test_pictographs_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}

    def build(out, **options):
        seen.update(options, out=out)
        if options["size"] < 8:
            raise ValueError("size must be at least 8")
        return types.SimpleNamespace(fresh=True, root=out, counts={"a": 1}, hash="f" * 64)

    monkeypatch.setitem(sys.modules, "retrv_r1.data", types.ModuleType("retrv_r1.data"))
    stand_in(monkeypatch, "retrv_r1.data.pictographs", build=build)
    options = ("--size", "48", "--seed", "3", "--style", "a", "--style", "b", "--no-download")
    result = run("data", "pictographs", str(tmp_path), *options, "--limit-concepts", "9")
    assert result.exit_code == 0 and "built:" in result.stdout
    assert seen == {
        "out": tmp_path,
        "styles": ["a", "b"],
        "seed": 3,
        "size": 48,
        "download": False,
        "limit_concepts": 9,
    }
    assert run("data", "pictographs", str(tmp_path)).exit_code == 0
    assert seen["styles"] is None and seen["download"] is True
    wrong = run("data", "pictographs", str(tmp_path), "--size", "1")
    assert wrong.exit_code == 2 and "size must be at least 8" in wrong.stderr


def test_train_passes_its_options_on(monkeypatch):
    seen = []

    def train(stage, config, out=None, resume=True):
        seen.append((stage, config, out, resume))
        return Path("runs/final")

    stand_in(monkeypatch, "retrv_r1.train", run=train)
    assert run("train", "align", "--config", "a.yaml").stdout == "runs/final\n"
    run("train", "sft", "--config", "a.yaml", "--out", "o", "--no-resume")
    config = Path("a.yaml")
    assert seen == [("align", config, None, True), ("sft", config, Path("o"), False)]


def test_eval_passes_its_options_on(monkeypatch):
    seen = []

    def evaluate(dataset, **options):
        seen.append((dataset, options))
        return {"cells": []}

    def render(report, console):
        console.print(f"{len(report['cells'])} cells")

    stand_in(monkeypatch, "retrv_r1.eval", run=evaluate, render=render)
    assert run("eval", "set", "--k", "5, 20", "--limit", "7").stdout == "0 cells\n"
    options = {"model": "tiny", "k": (5, 20), "split": "all", "limit": 7, "out": None}
    systems = {"modes": ["reason", "fast"], "full_tokens": True, "int8_keys": False}
    systems |= {"weights": "model", "device": None, "dtype": None}
    assert seen == [("set", options | systems)]
    arguments = ("--split", "unseen", "--out", "o", "--model", "m", "--json")
    arguments += ("--mode", "fast", "--no-full-tokens", "--int8-keys")
    arguments += ("--weights", "int8")
    assert json.loads(run("eval", "set", *arguments).stdout) == {"cells": []}
    assert seen[1][1] == {
        "model": "m",
        "k": (10, 50),
        "split": "unseen",
        "limit": None,
        "modes": ["fast"],
        "full_tokens": False,
        "int8_keys": True,
        "weights": "int8",
        "device": None,
        "dtype": None,
        "out": Path("o"),
    }


def test_doctor(monkeypatch):
    problems: list[str] = []

    def render(report, console):
        console.print("all well")

    stand_in(
        monkeypatch, "retrv_r1.command.doctor", report=lambda: {"problems": problems}, render=render
    )
    assert run("doctor").stdout == "all well\n"
    assert json.loads(run("doctor", "--json").stdout) == {"problems": []}
    problems.append("broken")
    assert run("doctor", "--json").exit_code == 1


@pytest.mark.parametrize("module", ["retrv_r1", "retrv_r1.command.recipe"])
def test_data_that_is_not_there_ends_in_one_line(module, tmp_path):
    """Also where nothing is installed, and in the command that trains by the clock."""
    given = {
        "retrv_r1": ["train", "embed", "--config", "retrv_r1/train/configs/tiny/embed.yaml"],
        "retrv_r1.command.recipe": ["--out", tmp_path, "--minutes", "1"],
    }
    words = [*given[module], "--data", tmp_path / "nothing", "--device", "cpu"]
    command = [sys.executable, "-m", module, *map(str, words)]
    paths = ":".join(str(ROOT / part) for part in ("", "engine", "kernels"))
    environment = os.environ | {"PYTHONPATH": paths}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("error:")
