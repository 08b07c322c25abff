"""Ablations: what variants change, what they share, and the command from end to end."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import small_stages as stages
import yaml
from rich.console import Console
from small_stages import LOOP, OPTIONS
from typer.testing import CliRunner

from retrv_r1.ablation import training
from retrv_r1.ablation.report import Measuring, render, summary
from retrv_r1.ablation.run import ablations
from retrv_r1.ablation.training import Recipe, distinct
from retrv_r1.ablation.variants import ORDER, VARIANTS
from retrv_r1.command.cli import app
from retrv_r1.command.recipe import CONFIGS
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train.config import ConfigError
from retrv_r1.train.machine import Machine
from retrv_r1.types import RetrvError

pytest_plugins = ("training_fixtures",)
pytestmark = [
    stages.pytestmark,
    pytest.mark.skipif(not find_spec("trl"), reason="needs the extra rl"),
    pytest.mark.skipif(not find_spec("ir_measures"), reason="needs the extra eval"),
]
config, folder, trained = stages.config, stages.folder, stages.trained
undrawn = stages.undrawn
GRPO = {
    **{"prompts": 2, "group": 2, "batch": 4, "sizes": [3], "max_reasoning_tokens": 6},
    **{"truncated": "count", "validation": 2},
}


@pytest.fixture(scope="module")
def configs(folder, trained, pictographs) -> Path:
    """A recipe of the four stages that variants change, behind small earlier ones."""
    trained("read")
    out = folder / "configs"
    out.mkdir(exist_ok=True)
    for stage in ORDER:
        values = {
            "data": str(pictographs),
            "out": f"unused/{stage}",
            "init": {
                "model": str(folder / "read/final") if stage == "align" else "unused",
                "embed": str(folder / "words/final"),
            },
            "teacher": False,
            "loop": LOOP | {"steps": 2},
            "stage": GRPO if stage == "grpo" else OPTIONS[stage],
        }
        (out / f"{stage}.yaml").write_text(yaml.safe_dump(values))
    return out


@pytest.fixture
def recipe(configs, tmp_path) -> Recipe:
    return Recipe(configs, tmp_path / "stages", Machine())


def names(recipe: Recipe, variant: str, seed: int = 0) -> list[str]:
    return [step.config.out.name for step in recipe.plan(VARIANTS[variant], seed)]


def options(recipe: Recipe, variant: str) -> dict[str, Any]:
    return {step.config.name: step.config for step in recipe.plan(VARIANTS[variant], 0)}


def test_variants_train_from_the_first_stage_that_differs(recipe):
    full = names(recipe, "full")
    assert [name.split("-")[0] for name in full] == ["align", "lists", "sft", "grpo"]
    shared = {
        name: sum(a == b for a, b in zip(full, names(recipe, name), strict=False))
        for name in VARIANTS
    }
    assert shared == {
        **{"full": 4, "no-rl": 3, "fixed-price": 3, "margin": 3, "frozen-compressor": 3},
        **{"no-sft": 2, "no-inspection": 1, "full-tokens": 0, "no-content": 0},
        **{"no-relation": 0, "no-alignment": 0},
    }
    again = [recipe.plan(VARIANTS[name], 0) for name in ("full", "no-rl")]
    assert len(distinct(again)) == 4
    assert not set(full) & set(names(recipe, "full", seed=1))


def test_each_variant_changes_what_it_says(recipe):
    assert "align" not in options(recipe, "no-alignment")
    first = options(recipe, "no-alignment")["lists"]
    assert first.init["model"].parent.name == "read", "it starts where the recipe does"
    assert "sft" not in options(recipe, "no-sft")
    assert options(recipe, "no-sft")["grpo"].init["model"].parent.name.startswith("lists-")
    assert list(options(recipe, "no-rl")) == ["align", "lists", "sft"]
    fixed = options(recipe, "fixed-price")["grpo"].stage
    assert (fixed.price, fixed.constant) == ("constant", 0.5)
    assert options(recipe, "margin")["grpo"].stage.margin_weight > 0
    assert not options(recipe, "frozen-compressor")["grpo"].stage.compressor
    blind = options(recipe, "no-inspection")
    assert not blind["sft"].stage.inspections and blind["grpo"].stage.max_inspections == 0
    whole = options(recipe, "full-tokens")
    assert list(whole) == ["lists", "sft"] and whole["sft"].stage.full_every == 1
    alone = options(recipe, "no-content")
    assert alone["align"].prompts == {"candidate": "<|relation|>"} and not alone["sft"].prompts


def test_a_recipe_without_some_stages_has_the_variants_of_the_others(recipe, tmp_path, configs):
    for stage in ("align", "sft", "grpo"):
        (tmp_path / f"{stage}.yaml").write_text((configs / f"{stage}.yaml").read_text())
    short = Recipe(tmp_path, tmp_path / "stages", Machine())
    assert [name.split("-")[0] for name in names(short, "full")] == ["align", "sft", "grpo"]
    assert [name.split("-")[0] for name in names(short, "no-sft")] == ["align", "grpo"]
    with pytest.raises(ConfigError, match="has no"):
        _ = Recipe(tmp_path / "nothing", tmp_path, Machine()).stages


@pytest.mark.parametrize("path", [CONFIGS, *sorted(CONFIGS.parent.glob("qwen*"))])
def test_the_recipes_that_are_here_have_all_variants(path, tmp_path):
    recipe = Recipe(path, tmp_path, Machine())
    for variant in VARIANTS.values():
        assert recipe.plan(variant, 0)


def test_the_command_trains_measures_and_goes_on(configs, pictographs, tmp_path, monkeypatch):
    args = ["ablate", "--configs", str(configs), "--eval-data", str(pictographs)]
    args += ["--out", str(tmp_path), "--split", "val", "--k", "4", "--limit", "2"]
    args += ["--variant", "full", "--variant", "no-rl", "--variant", "no-inspection", "--json"]
    args += ["--device", "cpu", "--dtype", "float32", "--cell", "made_t2i"]
    calls: list[str] = []
    train = training.train_stage

    def counted(config: Any, *rest: Any, **more: Any) -> Any:
        calls.append(config.out.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(config, *rest, **more)

    monkeypatch.setattr(training, "train_stage", counted)
    assert CliRunner().invoke(app, args).exit_code == 130
    assert len(calls) == 3
    calls.append("again")
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert len(calls) == len(set(calls)) + 1, "only what was killed is trained again"
    # Two seeds of: align; lists and sft with and without inspections; grpo of two variants.
    assert len(set(calls)) - 1 == 2 * (1 + 2 + 2 + 2)
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [row["variant"] for row in report["variants"]] == ["full", "no-inspection", "no-rl"]
    for row in report["variants"]:
        assert row["failed"] is None and set(row["seeds"]) == {"0", "1"}
        both = [one["recall"]["1"] for one in row["seeds"].values()]
        assert row["recall"]["1"] == pytest.approx(sum(both) / 2)
        assert row["spread"]["1"] == pytest.approx(abs(both[0] - both[1]) / 2)
        assert {"mean", "low", "high"} <= set(row["seeds"]["0"]["gain"]["1"][0])
    blind = next(row for row in report["variants"] if row["variant"] == "no-inspection")
    assert blind["cost"]["inspections"] == 0
    count = len(calls)
    table = CliRunner().invoke(app, [one for one in args if one != "--json"])
    assert table.exit_code == 0 and len(calls) == count, "all is cached"
    assert "without RL" in table.stdout and "67.9" in table.stdout and "-5.2" in table.stdout


@pytest.mark.slow
def test_all_variants_can_be_trained_and_measured(recipe, pictographs, tmp_path):
    measuring = Measuring(pictographs, k=4, limit=1, cells=("made_t2i",))
    report = ablations(recipe, measuring, tmp_path, None, [0])
    assert [row["variant"] for row in report["variants"]] == list(VARIANTS)
    assert not any(row["failed"] for row in report["variants"])
    rows = {row["variant"]: row["cost"]["rows_per_candidate"] for row in report["variants"]}
    assert rows["no-content"] == rows["no-relation"] == rows["full"] - 1
    assert rows["full-tokens"] > rows["full"]


def test_a_model_without_one_of_the_tokens_sees_the_other_alone(recipe, picture, monkeypatch):
    step = recipe.plan(VARIANTS["no-relation"], 0)[0]
    final = recipe.train(step)
    before = RetrvR1ForConditionalGeneration.from_pretrained(step.config.init["model"])
    assert before.config.prompts["candidate"] == "<|content|><|relation|>"
    with Reranker.from_pretrained(final, device="cpu") as reranker:
        result = reranker.rank("a", [picture(0), picture(1)], mode="fast")
        assert result.tokens.candidates == 2 * 2, "a label and a content token"
        relate = reranker.model.icm.relate
        scores = [line.score for line in result]
        for weight in relate.parameters():
            weight.data.add_(1.0)
        reranker.load_weights({})
        again = reranker.rank("a", [picture(0), picture(1)], mode="fast")
        assert [line.score for line in again] == pytest.approx(scores, abs=1e-6)


def test_a_variant_that_fails_costs_itself_alone(recipe, pictographs, tmp_path, monkeypatch):
    def broken(config: Any, *_: Any, **__: Any) -> Any:
        if config.prompts or config.name == "grpo":
            raise FloatingPointError("the loss is NaN")
        (config.out / "final").mkdir(parents=True)
        (config.out / "final/config.json").write_text("{}")

    monkeypatch.setattr(training, "train_stage", broken)
    found = {"recall": {"1": 0.5, "5": 0.75}, "cost": {"inspections": 1.0}, "gain": {}}
    monkeypatch.setattr(Measuring, "measure", lambda *_: found)
    measuring = Measuring(pictographs)
    report = ablations(recipe, measuring, tmp_path, ["full", "no-content", "no-rl"], [0])
    failed = {row["variant"]: row["failed"] for row in report["variants"]}
    assert failed == {
        "full": "grpo: the loss is NaN",
        "no-content": "align: the loss is NaN",
        "no-rl": None,
    }
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render(report["variants"], console)
    said = console.export_text()
    assert "failed: align: the loss is NaN" in said and "75.0" in said


def test_an_unknown_variant_is_named(recipe, pictographs, tmp_path):
    with pytest.raises(RetrvError, match="choose from full, full-tokens"):
        ablations(recipe, Measuring(pictographs), tmp_path, ["nothing"], [0])


def test_remarks_say_what_does_not_follow_the_paper():
    for variant in VARIANTS.values():
        assert variant.remark or None not in variant.paper
    row = summary("margin", VARIANTS["margin"], {}, "why")
    assert row["remark"] and row["failed"] == "why" and row["recall"]["1"] is None
