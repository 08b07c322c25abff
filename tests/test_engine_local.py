"""The correctness chain: the embedded engine writes what the plain one does, token for token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from engine_doubles import NAMES, Backbone, Steered, names_of, real_requests, same
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from retrv_engine import (
    EngineConfig,
    FeatureRows,
    LocalEngine,
    Output,
    PlainEngine,
    Request,
    runner,
)
from retrv_engine.runner import twin
from retrv_kernels import native, selection
from retrv_kernels.linear import PreparedLinear


@pytest.fixture(scope="module")
def steered(model, processor) -> Steered:
    return Steered(model, names_of(processor))


@pytest.fixture(scope="module")
def requests(processor) -> list[Request]:
    made = real_requests(processor.tokens.labels)
    again = [replace(r, sampling=replace(r.sampling, temperature=1.2, top_p=0.9)) for r in made]
    return [*made, *again, *(replace(r, reason=False) for r in made)]


@pytest.fixture(scope="module")
def expected(steered, requests) -> list[Output]:
    outputs = [PlainEngine(steered, steered.vocabulary).generate([one])[0] for one in requests]
    assert sum(len(output.inspected) for output in outputs) >= 8
    return outputs


SETTINGS = {
    "default": {},
    "small chunks": {"chunk_rows": 7, "page_size": 3},
    "a page a row": {"page_size": 1, "max_sequences": 4},
    "no radix": {"radix": False},
    "one at a time": {"max_sequences": 1},
    "fixed steps": {"graphs": True, "max_sequences": 6},
}


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS)
def test_tokens_are_those_of_the_plain_engine(steered, requests, expected, values):
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**22, **values))
    for one, output in zip(requests, expected, strict=True):  # alone, cold or half warm
        same(engine.generate([one]), [output])
    same(engine.generate(requests), expected)  # with other requests, warm
    order = random.Random(1).sample(range(len(requests)), len(requests))
    engine.flush()
    same(engine.generate([requests[i] for i in order]), [expected[i] for i in order])
    engine.check()


def test_tokens_survive_a_cache_that_is_much_too_small(steered, requests, expected):
    """Pages run out all the time: evicted, preempted, computed again."""
    row = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, bytes
    engine = LocalEngine(
        steered, steered.vocabulary, EngineConfig(cache_bytes=220 * row, page_size=4)
    )
    for _ in range(2):
        same(engine.generate(requests), expected)
        engine.check()
    assert engine.stats().preempted > 5 and engine.stats().evicted_pages > 50


def test_unwritten_memory_is_never_read(steered, requests, expected, poisoned):
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**20))
    assert engine.runner.cache.values.isnan().all()
    same(engine.generate(requests), expected)


@pytest.mark.parametrize("how", ["transformers' layers", "reference kernels", "layer by layer"])
def test_every_way_through_the_layers(steered, requests, expected, how, monkeypatch):
    """Few rows go through all layers in one native call where there is one."""
    if how == "transformers' layers":
        monkeypatch.setattr(runner, "fuse_layers", lambda *_: False)
    elif how == "reference kernels":
        monkeypatch.setenv(selection.IMPLEMENTATION, "reference")
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**22))
    if how == "layer by layer":
        monkeypatch.setattr(engine.runner.decoder.layers[0].fused, "usable", False)
    same(engine.generate(requests), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_does_not_matter(steered, requests, expected, dtype):
    """Kernels write float32, whatever a program makes new tensors of."""
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**22))
    torch.set_default_dtype(dtype)
    try:
        found = engine.generate(requests[:4])
    finally:
        torch.set_default_dtype(torch.float32)
    same(found, expected[:4])


def test_a_bfloat16_model_runs(make_model, processor):
    """Not through the fused layers; its logits are those of its plain pass, up to rounding."""
    model = make_model().to(torch.bfloat16)
    labels = processor.tokens.labels
    made = [Request(range(30, 40 + 9 * k), labels[:5], reason=False) for k in range(1, 5)]
    engine = LocalEngine(model, names_of(processor), EngineConfig(cache_bytes=2**22))
    plain = PlainEngine(model, names_of(processor))
    for one, other in zip(engine.generate(made), plain.generate(made), strict=True):
        scale = other.label_logits.abs().max()
        assert (one.label_logits - other.label_logits).abs().max() <= 0.05 * scale


def test_requests_with_one_that_is_refused_are_all_cancelled(steered, requests):
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**22))
    whole = FeatureRows(torch.zeros(3, 64, dtype=torch.int8), 0, 3, 5)
    for piece, message in ((10**6, "token 1000000"), (whole, "torch.int8")):
        with pytest.raises(ValueError, match=message):
            engine.generate([requests[0], replace(requests[0], prompt=[piece])])
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


@pytest.mark.parametrize(("weights", "bound"), [("float16", 5e-3), ("int8", 0.1)])
def test_rounded_weights_come_close(make_model, steered, requests, weights, bound):
    """And are rounded again when new ones are loaded."""
    fast = [one for one in requests if not one.reason]
    config = EngineConfig(cache_bytes=2**22, weights=weights)
    for seed in (0, 1):
        model = Steered(make_model(seed), steered.vocabulary)
        exact = PlainEngine(model, steered.vocabulary).generate(fast)
        if seed == 0:
            engine = LocalEngine(model, steered.vocabulary, config)
        else:
            engine.load_weights({name: p.data for name, p in model.named_parameters()})
        for one, other in zip(engine.generate(fast), exact, strict=True):
            error = (one.label_logits - other.label_logits).abs().max()
            assert 0 < error <= bound * other.label_logits.abs().max()
    with pytest.raises(ValueError, match="one of model, float16, int8, not int4"):
        EngineConfig(weights="int4")


def test_the_model_is_left_as_it_is(model, steered, requests):
    before = model.language_model.config._attn_implementation
    engine = LocalEngine(steered, steered.vocabulary, EngineConfig(cache_bytes=2**20))
    assert model.language_model.config._attn_implementation == before
    linears = [m for m in engine.runner.decoder.modules() if isinstance(m, PreparedLinear)]
    read = {weight.data_ptr() for linear in linears for weight, _, _ in linear.parts()}
    own = {one.data_ptr() for one in model.language_model.parameters()}
    assert len(read) == 2 * 7 and read <= own, "weights are not copied"
    module = twin(model.language_model)
    assert module is not model.language_model and module.config is not model.language_model.config


def test_scores_do_not_depend_on_chunks(steered, requests):
    prompt, tokens = [11, 12, *requests[0].prompt], [40, 41, 42, 43, 44, 45]
    configs = (EngineConfig(cache_bytes=2**22, chunk_rows=rows) for rows in (8, 512))
    engines = [LocalEngine(steered, steered.vocabulary, config) for config in configs]
    for _ in range(2):
        small, large = (engine.score(prompt, tokens) for engine in engines)
        assert small == pytest.approx(large, abs=1e-4)
    rows = 2 + requests[0].prompt[0].length
    assert engines[0].stats().cached_rows == rows - 1, "the rest gives logits"


TEXT = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.15,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
ROPE = dict(rope_type="default", rope_theta=10000.0)
VISION = dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64)
FAMILIES = {
    "qwen2.5-vl": Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
        vision_config=VISION,
        tie_word_embeddings=True,
    ),
    "qwen3-vl": Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 24, "rope_parameters": ROPE | {"mrope_section": [4, 4, 4]}},
        vision_config=VISION | {"deepstack_visual_indexes": []},
        tie_word_embeddings=True,
    ),
    "a layer pair of qwen2.5-vl-3b": Qwen2_5_VLConfig(
        text_config=TEXT
        | dict(hidden_size=2048, intermediate_size=11008, num_attention_heads=16)
        | dict(initializer_range=0.02, max_window_layers=36)
        | {"rope_parameters": ROPE | {"rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        vision_config=VISION | {"out_hidden_size": 2048},
        tie_word_embeddings=True,
    ),
}


@pytest.mark.parametrize("isa", native.isas() or [""])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_language_models_of_both_families(config, isa, monkeypatch, poisoned):
    """Grids of pictures inside, so that M-RoPE positions matter."""
    monkeypatch.setenv(selection.ISA, isa)
    backbone = Steered(Backbone(config), NAMES)
    made = real_requests(tuple(range(20, 60)), config.text_config.hidden_size)
    picture = real_requests(range(9), config.text_config.hidden_size, 5)[0].source.pieces[0]
    made = [replace(one, prompt=[12, *picture, *one.prompt]) for one in made]
    expected = [PlainEngine(backbone, NAMES).generate([one])[0] for one in made]
    assert sum(len(output.inspected) for output in expected) >= 3
    engine = LocalEngine(
        backbone, NAMES, EngineConfig(cache_bytes=2**24, chunk_rows=16, page_size=4)
    )
    for _ in range(2):
        same(engine.generate(made), expected)
