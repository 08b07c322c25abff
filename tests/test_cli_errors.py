"""Every command without its data, its extra or a valid path: one line that says the fix."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_doubles import run

from retrv_kernels.extras import install_command
from retrv_r1.command import recipe, ship

pytest_plugins = ("training_fixtures",)

EMBED = recipe.CONFIGS / "embed.yaml"
DEMO = Path(__file__).parents[1] / "examples" / "demo"
COMMANDS = {"recipe": recipe.app, "ship": ship.app}


@pytest.fixture
def folder(tmp_path, monkeypatch, pictographs) -> Path:
    """A working directory with little that is right: ``set`` is a data set."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").write_text("neither a pack nor a model")
    Path("set").symlink_to(pictographs)
    lines = EMBED.read_text()
    Path("syntax.yaml").write_text(lines + "}")
    Path("unknown.yaml").write_text(lines + "colour: red\n")
    Path("cut.jpg").write_bytes((DEMO / "cat.png").read_bytes()[:500])
    return tmp_path


def ends_in_one_line(words: str, expected: str) -> None:
    name, *rest = words.split()
    result = run(*rest, command=COMMANDS[name]) if name in COMMANDS else run(name, *rest)
    said = result.stderr
    assert result.exit_code == 2, result.exception
    assert said.splitlines()[-1].startswith("error: ") and re.search(expected, said), said
    assert said.count("error") == 1 and "Traceback" not in said


TRAIN, RECIPE = f"train embed --config {EMBED}", "recipe --minutes 1 --device cpu"
WRONG = {
    f"rerank q {DEMO}/cat.png --model empty": "empty is not a checkpoint",
    f"rerank q {DEMO}/cat.png --model file": "file is not a checkpoint",
    f"rerank q {DEMO}/cat.png --model none": "no checkpoint 'none': give a directory",
    f"rerank q {DEMO}/cat.png --device cuda:77": "no device cuda:77: ",
    f"rerank q {DEMO}/cat.png --cache file": "cannot use file as a feature cache",
    f"rerank q {DEMO}/cat.png --html file/page.html": "cannot write file/page.html",
    f"rerank q {DEMO}/cat.png --engine sglang --url host": "url must begin with http",
    "rerank q empty": "empty holds no pictures",
    "rerank q cut.jpg": r"error: cut\.jpg is damaged",
    "data pictographs file --no-download": "cannot use file",
    "data pictographs new --style none": "unknown style",
    "data pack none out.pack": "none has no manifest.json: build it with",
    "data pack file out.pack": "file has no manifest.json",
    "data pack empty out.pack": "empty has no manifest.json",
    "data pack set file/out.pack": "cannot use file",
    "train grow --config none.yaml": "unknown stage 'grow'; choose one of embed",
    "train embed --config none.yaml": "no configuration file none.yaml",
    "train embed --config empty": "no configuration file empty",
    "train embed --config syntax.yaml": "cannot read syntax.yaml as YAML",
    "train embed --config unknown.yaml": r"unknown options \['colour'\]",
    f"{TRAIN} --data none": "none is .*folder: .* builds a data set",
    f"{TRAIN} --data file": "file is no pack",
    f"{TRAIN} --data empty": "empty has no pictures.jsonl",
    f"{TRAIN} --data set --out file": "cannot use file",
    "eval none": "none has no `query` folder",
    "eval file": "file has no `query` folder",
    "eval empty": "empty has no `query` folder",
    "eval set --mode slow": "modes must be 'reason', 'fast' or both",
    "eval set --model empty": "empty has no first stage",
    "eval set --limit 1 --k 2 --out file": "cannot write to file",
    f"{RECIPE} --out new --data none": "none is .*folder: .* builds a data set",
    f"{RECIPE} --out new --data file": "file is no pack",
    f"{RECIPE} --out new --data empty": "empty has no pictures.jsonl",
    f"{RECIPE} --out new --data set --configs empty": "no configuration file",
    f"{RECIPE} --out new --data set --quick": "--quick needs a pack",
    f"{RECIPE} --out file --data set": "cannot use file",
    "ship none new set": "none has no sft/final: train the stage sft first",
    "ship file new set": "file has no sft/final",
    "ship empty new set": "empty has no sft/final",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_used_is_said_in_one_line(folder, words):
    ends_in_one_line(words, WRONG[words])


@pytest.mark.parametrize("words", ["rerank", "data pack", "train", "eval", "recipe", "ship"])
def test_no_arguments_are_a_usage_error(words):
    name, *rest = words.split()
    result = run(*rest, command=COMMANDS[name]) if name in COMMANDS else run(name, *rest)
    assert result.exit_code == 2 and "Missing" in result.stderr and "Usage" in result.stderr


OPTIONAL = [
    "accelerate",
    "diskcache",
    "emoji",
    "fontTools",
    "ir_measures",
    "matplotlib",
    "resvg_py",
]
BLOCKED = {
    "train": TRAIN,
    "data": "data pictographs new --no-download",
    "eval": "eval set",
    "cache": f"rerank q {DEMO}/cat.png --cache new",
    "recipe": f"{RECIPE} --out new --data set",
}


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory) -> dict[str, list]:
    """Exit status and last line of commands where no optional package can be imported."""
    code = f"""
import json, sys
sys.modules.update(dict.fromkeys({OPTIONAL}))
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cli_doubles import run
from retrv_r1.command import recipe
ended = {{}}
for name, words in {BLOCKED}.items():
    first, *rest = words.split()
    done = run(*rest, command=recipe.app) if first == "recipe" else run(first, *rest)
    ended[name] = done.exit_code, (done.stderr.splitlines() or [str(done.exception)])[-1]
print(json.dumps(ended))
"""
    where = tmp_path_factory.mktemp("blocked")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BLOCKED)
def test_a_missing_extra_is_named_with_its_command(without_extras, name):
    status, line = without_extras[name]
    extra = "train" if name == "recipe" else name
    assert status == 2 and line.startswith("error: ") and install_command(extra) in line
