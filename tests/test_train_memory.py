"""A compressor's memory: what content tokens remind of, and the names that codes spell."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import small_stages as stages
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.config import read_config
from retrv_r1.train.initialize import initialize_answer, initialize_layers, keep_agreement
from retrv_r1.train.memory import freeze_resemblance, initialize_memory
from retrv_r1.train.named import NamedPictures
from retrv_r1.train.stage import build_stage

pytest_plugins = ("training_fixtures",)
config, folder, trained = stages.config, stages.folder, stages.trained
THINGS = ["cat", "dog", "an apple", "blue car"]
ROWS, WIDTH = 4, 64


def kinds() -> Tensor:
    return torch.randn(len(THINGS), WIDTH, generator=torch.Generator().manual_seed(2))


def rows_of(pictures: list[int]) -> Tensor:
    """Picture n shows thing n modulo four, each by a hand of its own."""
    rows = []
    for picture in pictures:
        generator = torch.Generator().manual_seed(picture)
        own = torch.randn(ROWS, WIDTH, generator=generator)
        rows.append(kinds()[picture % len(THINGS)] + 0.3 * own)
    return torch.stack(rows)


@pytest.fixture
def named() -> NamedPictures:
    things = [THINGS[n % len(THINGS)] for n in range(40)]
    hands, glyphs = [f"hand {n}" for n in range(40)], np.zeros(40, bool)
    return NamedPictures(range(40), things, things, hands, glyphs, {}, {})


@pytest.fixture
def bare(make_model, processor) -> RetrvR1ForConditionalGeneration:
    model = make_model(icm={"agreement": True})
    initialize_layers(model.language_model)
    initialize_answer(model, processor.tokens.labels, [processor.tokens.answer_start])
    return model.requires_grad_(False)


@pytest.fixture
def remembering(bare, processor, named):
    made = copy.deepcopy(bare)
    initialize_memory(made, processor, named, rows_of, 10)
    return made


def new_pictures() -> tuple[Tensor, Tensor]:
    """Pictures that the memory has not seen, one of each thing, packed."""
    rows = rows_of([100, 101, 102, 103])
    return rows.flatten(0, 1), torch.arange(5) * ROWS


def test_a_new_picture_reminds_of_its_thing_and_has_the_code_of_its_name(remembering, processor):
    memory = remembering.icm.memory
    found = remembering.icm.contents(*new_pictures())
    best = found.reminds.argmax(-1)
    chosen = sorted(THINGS)  # all are as likely, so they keep the order of their names
    assert [chosen[k] for k in best] == [THINGS[n % 4] for n in range(100, 104)]
    table = remembering.get_input_embeddings().weight
    table = table - table.mean(0)
    room = memory.codes.shape[1] // 3
    shown = torch.linalg.svd(table, full_matrices=False).Vh[:room]
    for name, code in zip(chosen, memory.codes, strict=True):
        ids = processor.tokenizer.encode(f" {name}", add_special_tokens=False)[:3]
        spelled = [*ids, *[processor.tokens.end] * 3][:3]
        parts = code[: 3 * room].unflatten(0, (3, room))
        near = normalize(parts, dim=-1) @ normalize(table @ shown.T, dim=-1).T
        assert near.gather(1, torch.tensor(spelled)[:, None]).min() > 0.999


def test_tokens_stay_but_for_the_memorys_part(bare, remembering):
    rows, offsets = new_pictures()
    pairs = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    assert torch.equal(bare.icm.pooled(rows, offsets), remembering.icm.pooled(rows, offsets))
    added = remembering.icm.content(rows, offsets) - bare.icm.content(rows, offsets)
    assert not added[:, 0].any(), "the first component is free for agreement"
    scale = bare.icm.content_norm.weight.mean()
    torch.testing.assert_close(added.square().mean(-1).sqrt(), scale.expand(4), rtol=0.1, atol=0)
    before, after = (one.icm.relation(rows, offsets, *pairs) for one in (bare, remembering))
    code = remembering.icm.contents(rows, offsets).code
    alike = cosine_similarity(code[pairs[0]], code[pairs[1]], dim=-1)
    own = bare.icm.agree.weight.sum(1)
    torch.testing.assert_close(after - before, 0.25 * alike[:, None] * own, rtol=1e-3, atol=1e-5)


def test_it_is_saved_and_loaded_with_its_shape(remembering, processor, tmp_path):
    assert remembering.config.icm["memory_size"] == len(THINGS)
    assert remembering.config.icm["memory_rank"] == len(THINGS), "there are no more directions"
    remembering.save_pretrained(tmp_path)
    again = RetrvR1ForConditionalGeneration.from_pretrained(tmp_path).eval()
    for one, other in zip(
        remembering.icm.contents(*new_pictures()), again.icm.contents(*new_pictures()), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_it_resembles_is_frozen_and_its_codes_learn(remembering):
    remembering.requires_grad_(True)
    freeze_resemblance(remembering)
    keep_agreement(remembering)
    learning = {name for name, weight in remembering.icm.named_parameters() if weight.requires_grad}
    assert {"memory.codes", "memory.out.weight", "agree.weight"} <= learning
    assert not {n for n in learning if n.startswith(("pool.", "row_norm", "content_norm"))}
    assert not {"memory.basis", "memory.prototypes"} & learning
    rows, offsets = new_pictures()
    remembering.icm.content(rows, offsets).square().sum().backward()
    assert remembering.icm.memory.out.weight.grad[1:].any()
    assert not remembering.icm.memory.out.weight.grad[0].any(), "nothing learns to write there"


@stages.pytestmark
def test_a_stage_adds_a_memory_once(config, trained, folder):
    trained("lists")
    options = {**stages.OPTIONS["sft"], "memory": 5}
    path = config("sft", stage=options, out=str(folder / "remembers"))
    stage = build_stage(read_config("sft", path))
    memory = stage.model.icm.memory
    assert len(memory.codes) == 5 == stage.model.config.icm["memory_size"]
    assert not memory.prototypes.requires_grad and memory.codes.requires_grad
    learned = {n for n, p in stage.model.named_parameters() if p.requires_grad}
    assert not any(n.startswith("icm.pool") for n in learned)
    stage.save(folder / "remembers" / "final")
    init = {"model": str(folder / "remembers" / "final"), "embed": str(folder / "words" / "final")}
    more = {**options, "memory": 3}
    again = build_stage(read_config("sft", config("sft", stage=more, init=init)))
    assert torch.equal(again.model.icm.memory.prototypes, memory.prototypes)
    loss, _ = again.loss(again.batch(0))
    loss.backward()
    assert again.model.icm.memory.codes.grad.any() and memory.prototypes.grad is None


@stages.pytestmark
def test_names_weigh_what_they_are_given(config, trained):
    trained("lists")
    losses = []
    for weight in (1.0, 3.0):
        path = config("sft", stage={**stages.OPTIONS["sft"], "description_weight": weight})
        stage = build_stage(read_config("sft", path))
        loss, metrics = stage.loss(stage.batch(0))
        losses.append((loss.item(), metrics["content_name_loss"]))
    (one, names), (other, same) = losses
    assert names == pytest.approx(same)
    assert other - one == pytest.approx(2 * names, rel=1e-4)
