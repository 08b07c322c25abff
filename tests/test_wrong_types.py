"""Values of a wrong type, and a closed reranker: one line that says it, before any work."""

from __future__ import annotations

import pytest
import torch

from retrv_engine import EngineConfig, Sampling
from retrv_r1.model.checkpoint import load_checkpoint
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import CheckpointError, RankRequest, RetrvError

WHOLE = "must be a whole number, not"


@pytest.fixture
def reranker(model, processor, monkeypatch) -> Reranker:
    """One that fails as soon as it encodes."""
    reranker = Reranker(model, processor, name="random")

    def fail(items: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(reranker.encoder, "encode", fail)
    return reranker


@pytest.mark.parametrize(
    "requests",
    [
        [("a", ["b"])],
        RankRequest("a", ["b"]),
        [RankRequest("a", ["b"]), None],
        "a",
        {"a": "b"},
        None,
    ],
)
def test_a_batch_is_a_list_of_requests(reranker, requests):
    with pytest.raises(ValueError, match="requests must be a list of RankRequest"):
        reranker.rank_batch(requests)


@pytest.mark.parametrize("given", [("a", ["b"]), ("a",), (RankRequest("a", ["b"]), ["b"])])
def test_one_request_is_submitted(reranker, given):
    with pytest.raises(TypeError, match=r"submit\(RankRequest\(query, candidates\)\)"):
        reranker.submit(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "x"}, "sampling must be a Sampling, got 'x'"),
        ({"instruction": 3}, "instruction must be a text or None, got 3"),
        ({"top_k": 1.5}, f"top_k {WHOLE} 1.5"),
        ({"votes": "3"}, f"votes {WHOLE} '3'"),
        ({"votes": "3", "sampling": Sampling(temperature=1)}, f"votes {WHOLE} '3'"),
        ({"mode": 3}, "mode must be"),
        ({"mode": ["fast"]}, "mode must be"),
        ({"reading": None}, "reading must be"),
    ],
)
def test_options_of_a_ranking(reranker, options, message):
    with pytest.raises(ValueError, match=message):
        reranker.rank("q", ["a", "b"], **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda **o: EngineConfig(page_size=1.5), f"page_size {WHOLE} 1.5"),
        (lambda **o: EngineConfig(cache_bytes="1G"), f"cache_bytes {WHOLE} '1G'"),
        (lambda **o: EngineConfig(weights=["int8"]), "weights must be one of"),
        (lambda **o: Sampling(temperature="hot"), "temperature must be finite"),
        (lambda **o: Sampling(max_reasoning_tokens=None), f"max_reasoning_tokens {WHOLE} None"),
        (lambda **o: Sampling(seed=0.5), f"seed {WHOLE} 0.5"),
        (lambda **o: Reranker(**o, config="x"), "config must be an EngineConfig or an SGLangC"),
        (lambda **o: Reranker(**o, window="5"), f"window {WHOLE} '5'"),
        (lambda **o: Reranker(**o, batch_size=1.5), f"batch_size {WHOLE} 1.5"),
        (lambda **o: Reranker(**o, engine="plain", batch_size="4"), f"batch_size {WHOLE} '4'"),
        (
            lambda **o: Reranker(**o, config=EngineConfig(cache_bytes=10)),
            "a cache of 10 bytes holds no page of 16 rows, which takes [0-9]+: raise",
        ),
    ],
)
def test_options_of_a_reranker(model, processor, make, message):
    with pytest.raises(ValueError, match=message):
        make(model=model, processor=processor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": None}, "a checkpoint is a str or a Path, not None"),
        ({"name": 3}, "a checkpoint is a str or a Path, not 3"),
        ({"config": "x"}, "config must be"),
        ({"engine": "fastest"}, "engine must be one of"),
        ({"window": 1}, "window must be at least 2"),
        ({"window": 129}, "window must be between 2 and 128"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"cache": 3}, "cache must be a directory or None, got 3"),
        ({"device": 1.5}, "no device is called 1.5"),
        ({"dtype": 3}, "the dtype must be one of"),
    ],
)
def test_options_of_loading_are_checked_before_weights_are_read(monkeypatch, options, message):
    read = []
    monkeypatch.setattr(
        "retrv_r1.model.modeling.RetrvR1ForConditionalGeneration.from_pretrained", read.append
    )
    with pytest.raises(ValueError, match=message):
        Reranker.from_pretrained(**{"device": "cpu"} | options)
    assert read == []


@pytest.mark.parametrize("engine", ["local", "plain"])
def test_a_closed_reranker_ranks_no_more(model, processor, engine):
    with Reranker(model, processor, engine=engine) as reranker:
        reranker.rank("q", ["a"], mode="fast")
    with pytest.raises(RetrvError, match="the reranker is closed: make a new one"):
        reranker.rank("q", ["a"], mode="fast")
    reranker.close()


def test_a_reranker_shows_what_it_is(reranker):
    assert repr(reranker) == "Reranker('random', device=cpu, engine=LocalEngine)"
    assert reranker.model.device == torch.device("cpu")


def test_a_model_that_cannot_be_downloaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no network, or no such model") as caught:
        load_checkpoint("no-such-owner/no-such-model")
    assert "\n" not in str(caught.value) and "again" not in str(caught.value)
