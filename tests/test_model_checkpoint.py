"""A checkpoint that cannot be used is refused with a message that says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrv_r1 import CheckpointError
from retrv_r1.model.checkpoint import load_checkpoint, resolve
from retrv_r1.model.tokens import train_tokenizer
from retrv_r1.rerank.reranker import Reranker


@pytest.fixture
def saved(model, processor, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def edit_config(saved) -> Callable[[Callable[[dict], object]], None]:
    def edit(change: Callable[[dict], object]) -> None:
        path = saved / "config.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


def test_a_reranker_loaded_from_disk_ranks_as_the_one_in_memory(model, processor, saved):
    candidates = ["a red apple", "a blue bird", "high in the sky"]
    expected = Reranker(model, processor).rank("a bird", candidates)
    for name in (saved, str(saved)):
        loaded = Reranker.from_pretrained(name, window=7, batch_size=3, device="cpu")
        assert (loaded.window, loaded.engine.config.max_sequences) == (7, 3)
        assert loaded.rank("a bird", candidates).ranking == expected.ranking
    for dtype in (torch.bfloat16, "bfloat16"):
        low = Reranker.from_pretrained(saved, device="cpu", dtype=dtype)
        assert low.model.dtype == torch.bfloat16
    found = low.rank("a bird", candidates)
    assert (len(found), found.device, found.dtype) == (3, "cpu", "bfloat16")


def test_a_name_is_a_folder_or_a_hub_id(saved, monkeypatch):
    assert resolve(saved) == saved
    assert resolve("owner/name") == "owner/name"
    monkeypatch.chdir(saved.parent)
    assert resolve("model") == Path("model")


@pytest.mark.parametrize("name", ["nothing-here", "./a/b", "/nowhere/at/all", "~/model", "a/b/c"])
def test_a_name_that_is_neither_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(name)


def test_a_folder_or_file_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "weights").write_text("x")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_checkpoint(tmp_path / "weights")


@pytest.mark.parametrize("text", [b"", b"{", b'{"model_type": "retrv', b"\x00", b"\xff\xfe\x00"])
def test_a_damaged_config_is_refused(saved, text):
    (saved / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"model_type": "qwen2_5_vl"}'])
def test_another_kind_of_model_is_refused_with_the_way_to_start_from_it(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"not 'retrv_r1'; .*from_backbone"):
        load_checkpoint(saved)


CHANGES = {
    "no backbone": (lambda c: c.pop("backbone_config"), "describes no backbone"),
    "backbone of another type": (lambda c: c.update(backbone_config=[1]), "describes no backbone"),
    "unknown compressor option": (lambda c: c["icm"].update(heds=3), "heds"),
    "heads that do not fit": (lambda c: c["icm"].update(heads_pool=7), "7 heads"),
    "another width": (lambda c: c["icm"].update(relate_dim=8), "size mismatch|mismatched|shape"),
    "reason temperature": (
        lambda c: c["calibration"].update(reason={"temperature": -1}),
        "positive",
    ),
    "unknown calibration": (lambda c: c["calibration"]["fast"].update(bias=1), "calibration"),
    "temperature": (lambda c: c.update(calibration=None, score_temperature=0), "positive"),
    "more layers": (
        lambda c: c["backbone_config"]["text_config"].update(num_hidden_layers=3),
        "num_hidden_layers",
    ),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_config_that_does_not_fit_is_refused(saved, edit_config, change, message):
    edit_config(change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.5, 0.999])
def test_cut_off_weights_are_refused(saved, share):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="model"):
        load_checkpoint(saved)


def test_weights_that_are_missing_are_named(saved):
    path = saved / "model.safetensors"
    weights = load_file(path)
    del weights["icm.relate.q_proj.weight"], weights["icm.pool.embedding"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 weights, icm\.pool\.embedding among them"):
        load_checkpoint(saved)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_a_file_that_is_missing_or_damaged_is_an_error(saved, name, damaged):
    (saved / name).unlink()
    if damaged:
        (saved / name).write_text("{")
    with pytest.raises(CheckpointError, match="model"):
        load_checkpoint(saved)


def test_a_tokenizer_of_another_checkpoint_is_refused(saved):
    words = [f"{a}{b}{c}" for a in "aeiou" for b in "bcdfg" for c in "hjklm"]
    larger = train_tokenizer(words, 600)
    larger.save_pretrained(saved)
    with pytest.raises(CheckpointError, match="belong to different checkpoints"):
        load_checkpoint(saved)
