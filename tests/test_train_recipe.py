"""The recipe of the shipped checkpoint, on one machine in a given time."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import small_stages as stages
import yaml

from retrv_r1.command import recipe
from retrv_r1.command.recipe import SHARES, train_all
from retrv_r1.data.pack import pack
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train.machine import Machine
from retrv_r1.train.record import slug

pytest_plugins = ["training_fixtures"]

pytestmark = stages.pytestmark
undrawn = stages.undrawn


@pytest.fixture
def small_recipe(pictographs, tmp_path) -> Path:
    """YAML files with shapes of the test models, and the test data as ``set.pack``."""
    for stage in SHARES:
        settings = {
            "data": "elsewhere",
            "out": f"runs/any/{stage}",
            "init": {n: f"runs/any/{s}/final" for n, s in stages.BEFORE.get(stage, {}).items()},
            "teacher": False,
            "model": stages.MODELS.get(stage),
            "loop": stages.LOOP | {"steps": 1000, "save_every": 1000},
            "stage": stages.OPTIONS[stage],
        }
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
    pack(pictographs, tmp_path / "set.pack")
    return tmp_path


def ranks(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    reranker = Reranker.from_pretrained(folder / "checkpoint")
    assert len(reranker.rank("large red apple", ["a red apple", "a blue bird"])) == 2


def test_the_recipe_ends_in_a_checkpoint_that_ranks(small_recipe, tmp_path, monkeypatch):
    """All of it in a few seconds."""
    monkeypatch.undo()  # curves are drawn
    out = tmp_path / "out"
    record = train_all(
        [tmp_path / "set.pack"],
        out,
        tmp_path / "work",
        minutes=15 / 60,
        machine=Machine(workers=1),
        configs=tmp_path,
    )
    files = sorted(path.name for path in out.iterdir())
    curves = [f"{stage}.{kind}" for stage in SHARES for kind in ("jsonl", "png")]
    assert files == sorted(["record.json", "checkpoint.tar.gz", *curves]) and len(files) == 14
    assert json.loads((out / "record.json").read_text()) == record
    for stage in record["stages"].values():
        assert stage["steps"] >= 1 and stage["spent"]["steps_per_second"] > 0
        assert len(stage["data_hash"][0]) == 64
    assert record["machine"]["workers"] == 1 and record["ranked"]["candidates"] == 10
    ranks(out / "checkpoint.tar.gz", tmp_path)


def test_a_recipe_that_is_cut_off_leaves_what_ranks(small_recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "LARGEST", 100_000)
    whole = recipe.train_stage

    def cut(settings: Any, *words: Any, **options: Any) -> Path:
        if settings.name == "sft":
            raise stages.Killed
        return whole(settings, *words, **options)

    monkeypatch.setattr(recipe, "train_stage", cut)
    out, work = tmp_path / "out", tmp_path / "work"
    options = {"minutes": 15 / 60, "machine": Machine(), "configs": tmp_path}
    with pytest.raises(stages.Killed):
        train_all([tmp_path / "set.pack"], out, work, **options)
    record = json.loads((out / "record.json").read_text())
    assert list(record["stages"]) == list(SHARES)[:-1] and record["checkpoint"] == "lists"
    assert "put it together from its parts" in " ".join(capsys.readouterr().err.split())
    parts = sorted(out.glob("checkpoint.tar.gz.*"), key=lambda path: int(path.suffix[1:]))
    assert {path.stat().st_size for path in parts[:-1]} == {100_000}
    whole_again = tmp_path / "again.tar.gz"
    whole_again.write_bytes(b"".join(path.read_bytes() for path in parts))
    ranks(whole_again, tmp_path)


@pytest.mark.parametrize(("seconds", "queries"), [(48, 24), (20, 10), (1, 4), (900, 25)])
def test_little_time_calibrates_on_few_queries(monkeypatch, tmp_path, seconds, queries):
    """The clock stands still: all of the time is left when the stages are done."""
    asked = []
    for name in ("train_stage", "assemble", "_archive"):
        monkeypatch.setattr(recipe, name, lambda *_, **__: None)
    monkeypatch.setattr(recipe, "_keep", lambda *_: {})
    monkeypatch.setattr(recipe, "_calibrate_and_rank", lambda *words: asked.append(words[-1]) or {})
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    options = {"minutes": seconds / 60 + 1e-6, "machine": Machine()}
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint.tar.gz").touch()
    train_all([tmp_path], out, tmp_path / "work", **options)
    assert asked == [queries]
    assert [path.name for path in out.iterdir()] == ["record.json"], "nothing of an earlier run"


def test_a_missing_calibration_is_the_last_thing_said(monkeypatch, tmp_path, capsys):
    folders = []

    def trained(data: Path, out: Path, *_: Any, **__: Any) -> dict[str, Any]:
        folders.append(out)
        return {"calibration": {"failed": "no list has its answer"}}

    monkeypatch.setattr(recipe, "train_all", trained)
    recipe.main(tmp_path, tmp_path, 1.0, device="cpu")
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "the checkpoint is not calibrated: no list has its answer"
    assert (
        folders == [tmp_path / "cpu" / "train"] and slug("NVIDIA H100 80GB") == "nvidia-h100-80gb"
    )
