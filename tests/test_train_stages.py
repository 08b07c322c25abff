"""Stages from their YAML files: reproducible batches, resuming, what is trained and saved; and
mistakes in a file, its data or an earlier result, each named with its fix."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import small_stages as stages
import torch
from PIL import Image
from safetensors import SafetensorError
from small_stages import EMBED, LOOP, OPTIONS, Killed, curve, same

from retrv_r1.command.recipe import CONFIGS
from retrv_r1.model.embedder import RetrvEmbedder
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train import loop, run
from retrv_r1.train import stage as stage_module
from retrv_r1.train.config import ConfigError, LoopConfig, read_config
from retrv_r1.train.curves import draw_curves
from retrv_r1.train.loop import fit
from retrv_r1.train.machine import Machine
from retrv_r1.train.stage import build_stage
from retrv_r1.train.training_data import TrainingData

pytest_plugins = ("training_fixtures",)
pytestmark = stages.pytestmark
build, config, folder, trained = stages.build, stages.config, stages.folder, stages.trained
undrawn = stages.undrawn


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_batch_is_a_function_of_the_step_alone(build, name):
    stage = build(name)
    batches = [stage.batch(step) for step in range(4)]
    part = next(iter(batches[0]))
    assert not same(batches[0][part], batches[3][part])
    other = build(name)
    other.batch(17)
    for step in (3, 0, 2):
        torch.manual_seed(step)  # global randomness has no part in it
        assert same(other.batch(step), batches[step])


@pytest.mark.parametrize(
    ("name", "workers", "processes"),
    [*((name, 0, 1) for name in OPTIONS), ("read", 2, 1), ("embed", 0, 2), ("sft", 0, 2)],
)
def test_a_killed_run_resumes_to_the_same_end(build, name, workers, processes, tmp_path):
    settings, machine = LoopConfig(**LOOP, processes=processes), Machine(workers=workers)
    whole = build(name)
    fit(whole, settings, tmp_path / "whole", resume=True, machine=machine)

    killed, calls = build(name), []
    loss = killed.loss

    def dies(batch: dict[str, Any]) -> Any:
        calls.append(batch)
        if len(calls) == 6:
            raise Killed
        return loss(batch)

    killed.loss = dies
    with pytest.raises(Killed):
        fit(killed, settings, tmp_path / "cut", resume=True, machine=machine)
    curves = [tmp_path / folder / f"{name}.jsonl" for folder in ("cut", "whole")]
    assert [row["step"] for row in curve(curves[0]) if "loss" in row][-1] == 5

    resumed, steps = build(name), []
    batch = resumed.batch
    resumed.batch = lambda step: (steps.append(step), batch(step))[1]
    final = fit(resumed, settings, tmp_path / "cut", resume=True, machine=machine)
    assert workers or steps == [4, 5], "it goes on from the checkpoint of step 4"
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5, msg=key)

    for mine, theirs in zip(*map(curve, curves), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert (final / "config.json").is_file()


def test_stages_build_on_each_other_to_a_model_that_ranks(trained, pictographs, folder):
    final = trained("sft")
    reranker = Reranker.from_pretrained(final)
    pictures = sorted((pictographs / "mbeir_images/flat").glob("*.png"))
    assert len(reranker.rank("large red apple", pictures)) == len(pictures)
    assert reranker.model.config.prompts["instruction"] == "Find."
    assert RetrvEmbedder.from_pretrained(final / "embedder").config.embedding_dim == 16
    record = json.loads((folder / "sft" / "record.json").read_text())
    assert record["stage"] == "sft" and len(record["data_hash"][0]) == 64
    assert record["steps"] == 2 and record["config"]["loop"]["steps"] == 2


TRAINED = {
    "read": {
        *(
            "backbone.model.language_model",
            "icm.pool",
            "icm.row_norm",
            "icm.content_norm",
            "naming",
            "reading",
        ),
    },
    "align": {"icm", "naming"},
    "lists": {"icm", "backbone.model.language_model", "naming"},
    "sft": {"icm", "backbone.model.language_model", "naming"},
}


@pytest.mark.parametrize("name", list(TRAINED))
def test_a_stage_trains_its_own_parts_only(build, name):
    stage = build(name)
    model = stage.model
    model.zero_grad()
    loss, metrics = stage.loss(stage.batch(1))
    loss.backward()
    assert torch.isfinite(loss) and metrics["tokens"] > 0
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {n: n.startswith(tuple(TRAINED[name])) for n, _ in model.named_parameters()}
    assert {n for n in moved if not parts[n]} == set()
    # Nobody teaches names here.
    idle = {n for n, part in parts.items() if part and n not in moved} - {"naming.project.weight"}
    assert idle == set()


def test_the_tower_of_the_first_stage_starts_the_backbone(build, trained):
    tower = RetrvEmbedder.from_pretrained(trained("words")).visual.state_dict()
    visual = build("read").model.visual.state_dict()
    assert all(torch.equal(visual[name], value) for name, value in tower.items())


def test_reading_goes_on_from_a_finished_model(config, trained, folder):
    trained("read")
    init = {"embed": str(folder / "words/final"), "model": str(folder / "read/final")}
    stage: Any = build_stage(read_config("read", config("read", init=init)))
    finished = RetrvR1ForConditionalGeneration.from_pretrained(folder / "read/final")
    ours = dict(stage.model.named_parameters())
    assert all(torch.equal(ours[name], value) for name, value in finished.named_parameters())


def test_a_tower_is_frozen_and_its_rows_are_computed_once(build, trained, folder):
    trained("sft")
    assert len(list((folder / "cache" / "float32").glob("rows-*.npy"))) == 1
    towers = [
        RetrvR1ForConditionalGeneration.from_pretrained(folder / name / "final").visual
        for name in ("read", "sft")
    ]
    before, after = (tower.state_dict() for tower in towers)
    assert all(torch.equal(before[name], value) for name, value in after.items())
    # Rows of the first stage have the size of what a language model adds to them.
    bank = build("read").bank
    assert bank.rows.float().pow(2).mean().sqrt().item() == pytest.approx(0.1, rel=0.5)


def test_parts_may_learn_more_slowly(build, tmp_path):
    stage = build("read")
    before = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
    rates = {"embed_tokens": 0.0}
    settings = LoopConfig(**LOOP | {"steps": 2}, rates=rates)
    stage.save = lambda out: None
    fit(stage, settings, tmp_path / "run", resume=False)
    names = set(before)
    held = {n for n in names if ".visual." in n or "embed_tokens" in n}
    moved = {n for n, p in stage.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("embed_tokens" in n for n in held) and not moved & held
    assert moved > {n for n in names if ".language_model.layers." in n}


def test_pictures_are_small_in_the_first_part_of_the_first_stage(build):
    """A convolutional tower takes them at any side."""
    stage = build("embed")  # six steps, half of them small
    assert [stage.batch(step)["side"] for step in range(6)] == [8, 8, 8, 16, 16, 16]
    for step, rows in ((0, 4), (5, 16)):
        batch = stage.batch(step)
        shown = sum(len(batch[part].get("pictures", ())) for part in ("queries", "targets"))
        shown += len(batch["pictures"]["pictures"])
        loss, metrics = stage.loss(batch)
        assert torch.isfinite(loss) and metrics["samples"] == shown
        assert metrics["tokens"] == shown * rows + 2 * batch["texts"]["size"]
    pictures = stage.batch(0)["pictures"]
    small, whole = (stage.train.embed(pictures, side) for side in (8, None))
    assert small.shape == whole.shape and not torch.equal(small, whole)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_files_of_the_shipped_recipe_can_be_read(name):
    found = read_config(name, CONFIGS / f"{name}.yaml")
    assert found.out == Path("runs/tiny") / name and found.teacher
    assert found.data == (Path("data/pictographs"), Path("data/icons"))
    assert all(path.parts[:2] == ("runs", "tiny") for path in found.init.values())
    assert found.loop.steps > 100 and getattr(found.stage, "steps", found.loop.steps) > 100


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_gpu_changes_the_size_of_batches(name):
    """And nothing else, so that one recipe is trained everywhere."""
    path = CONFIGS / f"{name}.yaml"
    here, there = read_config(name, path), read_config(name, path, gpu=True)
    assert there.loop == here.loop and there.model == here.model
    changed = {k: v for k, v in asdict(there.stage).items() if v != getattr(here.stage, k)}
    sizes = {"batch", "cells_per_batch", "named", "texts", "names", "descriptions", "lists", "rows"}
    assert changed and set(changed) <= sizes
    assert all(value > getattr(here.stage, key) for key, value in changed.items())


def test_stages_that_share_data_load_them_once(config, trained, monkeypatch):
    trained("read")
    settings = read_config("align", config("align"))
    data = TrainingData(settings.data, torch.device("cpu"))
    first: Any = build_stage(settings, data=data)
    monkeypatch.setattr(stage_module, "Corpus", None)
    monkeypatch.setattr(stage_module.RowBank, "build", None)
    again: Any = build_stage(settings, data=data)
    assert again.bank is first.bank and again.named is first.named


def test_an_embedder_is_saved_without_what_only_trains_it(trained):
    embedder, info = RetrvEmbedder.from_pretrained(trained("embed"), output_loading_info=True)
    assert not any(info.values()), info
    assert not hasattr(embedder, "naming")


def test_curves_are_drawn(tmp_path, monkeypatch):
    monkeypatch.undo()
    path = tmp_path / "x.jsonl"
    rows = [{"step": s, "loss": 1 / (s + 1), "lr": 0.1, "seconds": 1.0} for s in range(3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"step": 2, "val_r1": 0.5}]))
    with Image.open(draw_curves(path, "x")) as drawn:
        assert (drawn.format, drawn.mode) == ("PNG", "P") and len(drawn.getcolors()) > 4


def test_a_model_of_a_stage_loads_with_everything_tied(trained):
    model, info = RetrvR1ForConditionalGeneration.from_pretrained(
        trained("read"), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": LOOP | {"learning_rat": 1}}, r"loop: unknown options \['learning_rat'\]; known"),
        ({"stage": {"hards": 1}}, r"stage: unknown options \['hards'\]; known"),
        ({"lop": {}}, r"unknown options \['lop'\]; known"),
        ({"loop": {}}, r"loop: the options \['steps'\] are missing"),
        ({"loop": [1]}, "loop must be a mapping"),
        ({"gpu": {"model": {}}}, r"gpu: unknown options \['model'\]; known"),
        ({"loop": {"steps": 1, "learning_rate": "1e-3"}}, "must be of type float.* write 1.0e-3"),
    ],
)
def test_a_wrong_option_is_named(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_config("sft", config("sft", **changes))


def test_sections_that_every_stage_needs_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="at least data, out and loop"):
        read_config("sft", tmp_path / "list.yaml")


def test_shapes_of_a_new_model_are_checked(config):
    shape = {name: value for name, value in EMBED.items() if name != "vocab_size"}
    with pytest.raises(ConfigError, match=r"model: the options \['vocab_size'\] are missing"):
        build_stage(read_config("embed", config("embed", model=shape)))


def test_a_stage_without_the_one_before_says_so(config, folder):
    with pytest.raises(ConfigError, match=r"init\.model is missing"):
        build_stage(read_config("align", config("align", init={})))
    nowhere = config("align", init={"model": str(folder / "nowhere")})
    with pytest.raises(ConfigError, match=r"no finished model stage at .*nowhere"):
        build_stage(read_config("align", nowhere))


def test_a_rate_for_nothing_is_refused(build, tmp_path):
    settings = LoopConfig(**LOOP, rates={"visaul": 0.5})
    with pytest.raises(ValueError, match="no parameter's name contains 'visaul'"):
        fit(build("read"), settings, tmp_path / "run", resume=False)


@pytest.mark.parametrize("written", ["checkpoint-2", "final"])
def test_a_full_disk_is_named(config, trained, folder, monkeypatch, written):
    trained("embed")
    owner, name = (RetrvEmbedder, "save_pretrained") if written == "final" else (loop, "save_model")
    save = getattr(owner, name)

    def full(model: Any, place: Any, *arguments: Any, **options: Any) -> None:
        if written in str(place):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(model, place, *arguments, **options)

    monkeypatch.setattr(owner, name, full)
    path = config("words", out=str(folder / f"without-{written}"), loop=LOOP | {"steps": 2})
    with pytest.raises(OSError, match=rf"{written}.* cannot be written: .*No space left"):
        run("words", path, dtype="float32")
