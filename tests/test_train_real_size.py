"""Training around a Qwen2.5-VL, from lists of picture files: the files in ``configs``, dry-run."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_stages as stages
import torch
import yaml
from narrow_backbone import SIDE, released_form, save_backbone, save_lists

from retrv_r1.data.lists import CandidateList, write_lists
from retrv_r1.model.chains import Chain
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train import run
from retrv_r1.train.chains import chain_of
from retrv_r1.train.config import ConfigError, read_config
from retrv_r1.train.list_corpus import GivenLists
from retrv_r1.train.machine import Machine, MachineError
from retrv_r1.train.stage import build_stage

pytest_plugins = ("training_fixtures",)
pytestmark = stages.pytestmark
undrawn = stages.undrawn
CONFIGS = Path(stages.__file__).parents[1] / "retrv_r1/train/configs"
FILES = sorted(CONFIGS.glob("qwen*/*.yaml"))
FEW = {
    "align": {"descriptions": 3, "lists": 2, "size": 4},
    "sft": {"rows": 12, "sizes": [4, 6], "full_sizes": [3], "full_every": 3, "lora": 4},
    "grpo": {
        **{"prompts": 2, "group": 2, "batch": 4, "sizes": [4], "lora": 4, "validation": 2},
        **{"max_reasoning_tokens": 6, "truncated": "count", "validation": 2},
    },
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictographs) -> Path:
    """A folder with a narrow backbone, a data set of files, and lists."""
    folder = tmp_path_factory.mktemp("real")
    save_backbone(folder / "backbone")
    released_form(pictographs, folder / "data")
    save_lists(folder)
    return folder


@pytest.fixture(scope="module")
def config(place) -> Callable[..., Path]:
    """A file of ``configs`` with other paths, fewer steps and smaller batches."""

    def write(stage: str, size: str = "3b", **changes: Any) -> Path:
        values = yaml.safe_load((CONFIGS / f"qwen2.5-vl-{size}/{stage}.yaml").read_text())
        values |= {"data": str(place / "data"), "out": str(place / stage), "side": SIDE}
        values["lists"] = [str(place / "lists.jsonl"), str(place / "chains.jsonl")]
        before = {"sft": "align", "grpo": "sft"}
        if stage == "align":
            values["init"] = {"backbone": str(place / "backbone")}
        else:
            values["init"] = {"model": str(place / before[stage] / "final")}
        values["loop"] |= {"steps": 3, "save_every": 2, "log_every": 1, "warmup": 1, "threads": 1}
        values["stage"] |= FEW[stage]
        for name, change in changes.items():
            values[name] = values[name] | change if isinstance(change, dict) else change
        path = place / f"{stage}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(RetrvR1ForConditionalGeneration.from_pretrained(folder).state_dict())


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {n for n in after if not torch.allclose(before[n], after[n], atol=1e-7)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_files_can_be_read_and_follow_each_other(path):
    found = read_config(path.stem, path)
    assert found.out == Path(f"runs/{path.parent.name}/{path.stem}")
    assert found.lists and found.stage.max_text >= 64
    for name, earlier in found.init.items():
        if name == "model":
            assert (path.parent / f"{earlier.parent.name}.yaml").is_file()
    if path.stem == "grpo":
        assert found.stage.prompts * found.stage.group % found.stage.batch == 0
        assert found.stage.sizes == (50,)


def test_both_sizes_have_all_their_stages():
    assert [f"{p.parent.name}/{p.stem}" for p in FILES] == [
        f"qwen2.5-vl-{size}/{stage}" for size in ("3b", "7b") for stage in ("align", "grpo", "sft")
    ]


@pytest.mark.skipif(not find_spec("trl"), reason="needs the extra rl")
def test_a_backbone_is_aligned_activated_and_reinforced(config, place, picture):
    aligned = run("align", config("align"), dtype="float32")
    start = weights(aligned)
    curve = stages.curve(place / "align/align.jsonl")
    assert any("list_divergence" in row for row in curve)
    assert all(np.isfinite(v) for row in curve for v in row.values() if isinstance(v, float))

    activated = run("sft", config("sft"), dtype="float32")
    changed = moved(start, weights(activated))
    assert any(name.startswith("icm.") for name in changed)
    assert any("self_attn.q_proj" in name for name in changed)
    tables = {name for name in changed if "embed_tokens" in name or "lm_head" in name}
    rest = {n for n in changed - tables if not n.startswith("icm.") and "_proj" not in n}
    assert tables and not rest, "LoRA, the compressor and our tokens are trained, nothing else"
    table, old = (
        w["backbone.model.language_model.embed_tokens.weight"] for w in (weights(activated), start)
    )
    rows = (table != old).any(1).nonzero()[:, 0]
    known = 300 + 22
    assert len(rows) and int(rows.min()) >= known, "embeddings of known tokens stay as they are"
    kinds = {key for row in stages.curve(place / "sft/sft.jsonl") for key in row}
    assert {"reason_token_loss", "val_answer_r1"} <= kinds or "answer_accuracy" in kinds

    final = run("grpo", config("grpo"), dtype="float32")
    assert any("_proj" in name for name in moved(weights(activated), weights(final)))
    steps = [json.loads(x) for x in (place / "grpo/grpo.jsonl").read_text().splitlines()]
    losses = [row for row in steps if "loss" in row]
    assert len(losses) == 3 and all(row["engine_difference_max"] < 1e-4 for row in losses)
    with Reranker.from_pretrained(final, device="cpu") as reranker:
        result = reranker.rank("a red apple", [picture(0), "an old house", picture(2, 64, 40)])
    assert sorted(line.index for line in result) == [0, 1, 2]
    record = json.loads((place / "grpo/record.json").read_text())
    assert len(record["data_hash"]) == 2, "the lists are on record"


def test_layers_computed_again_give_the_same_gradients(config, monkeypatch):
    found = {}
    for again in (False, True):
        stage: Any = build_stage(read_config("align", config("align")))
        if again:
            stage.model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(m, "gradient_checkpointing", False) for m in stage.model.modules())
        stage.model.train()
        loss, _ = stage.loss(stage.batch(0))
        loss.backward()
        found[again] = stage.model.icm.pool.attention.v_proj.weight.grad
    torch.testing.assert_close(found[False], found[True])


def test_only_lists_are_read_of_a_data_set(place):
    given = GivenLists((place / "data",), (place / "lists.jsonl", place / "chains.jsonl"), SIDE)
    corpus = given.corpus("train")
    cell = corpus.cells["made_t2i"]
    assert (len(cell.queries), len(cell.pool)) == (10, 10)
    assert given.bank.rgba([0, 3]).shape == (2, 4, SIDE, SIDE)
    assert sorted(cell.chains) == list(range(8))
    expected = Chain(
        "red thing",
        ((int(cell.retrieved[0][5]), "apple"), (int(cell.retrieved[0][1]), "bird")),
        ((int(cell.retrieved[0][5]), "red apple"),),
    )
    assert cell.chains[0] == expected


def test_lists_are_drawn_as_given_shuffled_with_their_chains(config):
    stage: Any = build_stage(read_config("align", config("align")))
    sampler = stage.sampler
    cell = stage.sampler._cells["made_t2i"].cell
    rng = np.random.default_rng(0)
    places, answers = set(), 0
    for example in sampler.draw(rng, 60, 6, 1.0):
        row = cell.queries.index(example.query)
        own = {cell.pool[n].key for n in cell.retrieved[row]}
        assert {c.key for c in example.candidates} == own
        answer = cell.pool[cell.retrieved[row][5]]
        assert example.candidates[example.answer].key == answer.key
        places.add(example.answer)
        if row < 8:
            chain = example.chain
            assert chain.near[0] == (example.answer, "apple")
            assert example.candidates[chain.near[1][0]].key == cell.pool[cell.retrieved[row][1]].key
            answers += 1
        else:
            assert example.chain is None and chain_of(example, rng) is None
    assert len(places) == 6 and answers
    for example in sampler.draw(rng, 20, 3, 1.0):
        assert len(example.candidates) == 3
        if cell.queries.index(example.query) < 8:
            assert example.chain is not None, "what a chain names stays in a shorter list"


def test_mistakes_are_named(config, place, tmp_path):
    decaying = {"loop": {"weight_decay": 0.1}, "init": {"backbone": str(place / "backbone")}}
    values = yaml.safe_load(config("sft", **decaying).read_text())
    del values["init"]["model"]
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="weight_decay to 0"):
        build_stage(read_config("sft", tmp_path / "sft.yaml"))
    alone = tmp_path / "train.jsonl"
    write_lists(alone, [CandidateList("made_t2i", "train", "200:1", ("100:1", "100:2"), "100:1")])
    with pytest.raises(ConfigError, match="no lists of the split 'val'"):
        build_stage(read_config("align", config("align", lists=[str(alone)])))
    with pytest.raises(ConfigError, match="side must be"):
        read_config("align", config("align", side="wide"))


def test_several_processes_of_a_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="one process"):
        Machine.of("cpu")
