"""Which weights the SGLang engine's server has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from sglang_doubles import (
    CHECKPOINT,
    QUICK,
    FakeProcess,
    FakeServer,
    SmallModel,
    changed,
    make_engine,
    reasoning,
    until,
)

from retrv_engine import EngineDied
from retrv_engine.model import load_weights
from retrv_engine.sglang import client, connection
from retrv_engine.sglang.wire_format import sample_of
from retrv_engine.sglang.worker.checkpoint import SGLangCheckpointConfig, served_weights
from retrv_r1.model.checkpoint import resolve
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.conv_tower import ConvTowerConfig

pytest_plugins = ["sglang_fixtures"]

NAME = "language_model.1.weight"


def test_weights_reach_the_server_part_by_part_and_not_in_its_event_loop(
    small_model, fake_server, monkeypatch
):
    monkeypatch.setattr(client, "BUCKET_BYTES", 1)
    seen: list[str] = []
    dumps = client.pickle.dumps

    def note(values: Any) -> bytes:
        seen.append(threading.current_thread().name)
        sent = [path for path, _ in fake_server.asked if path == "/update_weights_from_tensor"]
        assert len(sent) == len(seen) - 1, "the part before is sent before this one is made"
        return dumps(values)

    monkeypatch.setattr(client.pickle, "dumps", note)
    monkeypatch.setattr(
        connection, "load_weights", noting(connection.load_weights, seen_copy := [])
    )
    with make_engine(small_model, url=fake_server.url) as engine:
        names = [*fake_server.weights]
        engine.load_weights({name: value + 1 for name, value in fake_server.weights.items()})
        assert len(seen) == len(names) and "retrv-sglang" not in [*seen, *seen_copy] and seen_copy
        versions = [body["weight_version"] for path, body in fake_server.asked if "update" in path]
        assert all("incomplete" in one for one in versions[:-1])
        assert versions[-1] == fake_server.version and "incomplete" not in fake_server.version
        same_weights(small_model, fake_server)
        assert engine.generate([QUICK])[0].answer == 0


def noting(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The function, which notes the name of the thread that it runs in."""

    def noted(*values: Any) -> Any:
        names.append(threading.current_thread().name)
        return function(*values)

    return noted


def same_weights(model: SmallModel, server: FakeServer) -> None:
    own = dict(model.named_parameters())
    for name, value in server.weights.items():
        torch.testing.assert_close(value, own[name].detach())


@pytest.mark.parametrize("error", [None, MemoryError("no memory"), TypeError("strange")])
def test_weights_that_the_server_took_in_part_are_sent_again(
    small_model, fake_server, monkeypatch, error
):
    """Whatever stopped it: the server refuses, or an error of our own."""
    monkeypatch.setattr(client, "BUCKET_BYTES", 1)
    with make_engine(small_model, url=fake_server.url) as engine:
        dumps, made = client.pickle.dumps, []

        def fail(values: Any) -> bytes:
            made.append(values)
            if error is not None and len(made) == 2:
                raise error
            return dumps(values)

        monkeypatch.setattr(client.pickle, "dumps", fail)
        fake_server.taken = 1 if error is None else 10**9
        with pytest.raises(EngineDied, match=r"did not take the new weights: .*(memory|strange)"):
            engine.load_weights({name: value + 1 for name, value in fake_server.weights.items()})
        assert "incomplete" in fake_server.version, "others that use the server notice"
        fake_server.taken = 10**9
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, fake_server)


def test_weights_loaded_while_no_server_starts_reach_the_next(small_model, processes, monkeypatch):
    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied):
            engine.generate([QUICK])

        def fail(*_: Any) -> FakeProcess:
            raise EngineDied("no memory")

        with monkeypatch.context() as broken:
            broken.setattr(connection, "ServerProcess", fail)
            with suppress(EngineDied):
                engine.load_weights(changed(small_model, NAME))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, processes[1].server)
        assert processes[1].server.version != CHECKPOINT


def test_weights_loaded_as_the_server_dies_reach_the_next(small_model, processes):
    weights = small_model.head.weight.detach().clone()
    weights[0, 1] += 1  # one that a comparison does not see: only the version tells
    assert sample_of(weights) == sample_of(small_model.head.weight)
    with make_engine(small_model) as engine:
        processes[0].end()
        with pytest.raises(EngineDied, match="has died"):
            engine.load_weights({"head.weight": weights})
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, processes[1].server)


@pytest.mark.parametrize("own", [False, True], ids=["at a url", "started here"])
def test_weights_that_the_model_took_in_part_reach_the_next_server(
    small_model, fake_server, processes, monkeypatch, own
):
    config = {} if own else {"url": fake_server.url}
    with make_engine(small_model, **config) as engine:
        weights = changed(small_model, NAME) | changed(small_model, "head.weight")

        def fail(model: SmallModel, _: Any) -> None:
            load_weights(model, {NAME: weights[NAME]})
            raise RuntimeError("a fault")

        with monkeypatch.context() as broken:
            broken.setattr(connection, "load_weights", fail)
            with pytest.raises(RuntimeError, match="a fault"):
                engine.load_weights(weights)
        assert torch.equal(small_model.language_model[1].weight, weights[NAME])
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, processes[1].server if own else fake_server)
        assert not own or processes[0].ended


def test_a_value_that_is_no_tensor_changes_nothing(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        weights: dict[str, Any] = dict(changed(small_model, NAME))
        weights["head.weight"] = small_model.head.weight.detach().numpy()
        with pytest.raises(ValueError, match=r"head\.weight is a ndarray: make it a tensor"):
            engine.load_weights(weights)
        same_weights(small_model, fake_server)
        assert engine.generate([QUICK])[0].answer == 0
        assert fake_server.version == CHECKPOINT


@pytest.mark.parametrize("name", [None, "compressor.weight"])
def test_no_weights_for_the_server_leave_its_version(small_model, fake_server, name):
    with make_engine(small_model, url=fake_server.url) as engine:
        engine.load_weights({} if name is None else changed(small_model, name))
        assert fake_server.count("/flush_cache") == 1, "cached rows are forgotten all the same"
        assert (
            fake_server.count("/update_weights_from_tensor") == 0
            and fake_server.version == CHECKPOINT
        )
        assert engine.generate([QUICK])[0].answer == 0
        with pytest.raises(ValueError, match="no parameter 'nothing'"):
            engine.load_weights({"nothing": torch.zeros(1)})


def test_all_calls_are_told_why_the_server_was_left(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        fake_server.computes.clear()
        first = engine.submit(reasoning(9))
        until(lambda: fake_server.count("/generate") == 1)
        fake_server.version = "somebody's"
        second = engine.submit(QUICK)
        until(lambda: fake_server.count("/generate") == 2)
        fake_server.computes.set()
        for one in (first, second):
            with pytest.raises(EngineDied, match="somebody else loaded others"):
                one.result(timeout=5)


def test_weights_loaded_on_top_of_somebody_elses_are_sent_whole(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        fake_server.weights["head.weight"] = fake_server.weights["head.weight"] + 1
        fake_server.version = "somebody's"
        engine.load_weights(changed(small_model, NAME))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, fake_server)


def test_a_server_at_a_url_with_other_weights_is_refused(small_model, fake_server):
    with make_engine(small_model, url=fake_server.url) as engine:
        fake_server.weights[NAME] = fake_server.weights[NAME] + 0.01  # somebody loads others
        fake_server.version = "somebody's"
        with pytest.raises(EngineDied, match="somebody else loaded others"):
            engine.generate([QUICK])
        with pytest.raises(EngineDied, match=f"other weights than the model here .{NAME} differs"):
            engine.generate([QUICK])
        with pytest.raises(EngineDied, match="other weights"):
            make_engine(small_model, url=fake_server.url)
        engine.load_weights(changed(small_model, "head.weight"))
        assert engine.generate([QUICK])[0].answer == 0
        same_weights(small_model, fake_server)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_change_of_weights_of_the_same_dtype_is_found(small_model, fake_server, dtype):
    small_model.to(dtype)
    fake_server.weights = {name: value.to(dtype) for name, value in fake_server.weights.items()}
    make_engine(small_model, url=fake_server.url).close()
    fake_server.weights[NAME] = fake_server.weights[NAME] * (1 + 0.6 * torch.finfo(dtype).eps)
    with pytest.raises(EngineDied, match=f"other weights than the model here .{NAME} differs"):
        make_engine(small_model, url=fake_server.url)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounded_weights_are_not_others(small_model, fake_server, dtype):
    fake_server.weights = {name: value.to(dtype) for name, value in fake_server.weights.items()}
    with make_engine(small_model, url=fake_server.url) as engine:
        assert engine.generate([QUICK])[0].answer == 0
    small_model.to(torch.bfloat16)
    with make_engine(small_model, url=fake_server.url) as engine:
        assert engine.generate([QUICK])[0].answer == 0


def test_a_server_for_a_model_of_another_shape_is_refused(small_model, fake_server):
    fake_server.weights[NAME] = torch.zeros(2)
    with pytest.raises(EngineDied, match="other weights"):
        make_engine(small_model, url=fake_server.url)
    del fake_server.weights[NAME]
    fake_server.answer = lambda path, body, usual=fake_server.answer: (
        (400, {"error": {"message": "failed"}}) if "by_name" in path else usual(path, body)
    )
    with pytest.raises(EngineDied, match=r"cannot say which weights it has \(failed\)"):
        make_engine(small_model, url=fake_server.url)


def test_a_server_that_we_start_gets_the_weights_of_the_model(small_model, processes):
    """The checkpoint was changed since, or the model was."""
    dict(small_model.named_parameters())[NAME].data += 1
    with make_engine(small_model) as engine:
        same_weights(small_model, processes[0].server)
        assert engine.generate([QUICK])[0].answer == 0


@pytest.mark.parametrize("own_tower", [False, True])
def test_a_server_takes_neither_the_compressor_nor_a_tower_of_our_own(own_tower):
    """By the names of a checkpoint and of our model; the config says whose the tower is."""
    config = RetrvR1Config.from_pretrained(resolve("tiny"))
    tower = ConvTowerConfig(out_hidden_size=config.hidden_size)
    config.tower_config = tower if own_tower else None
    served = SGLangCheckpointConfig.from_dict(config.to_dict())
    assert served.own_tower is own_tower and served.model_type == "retrv_r1"
    assert served.vision_config.out_hidden_size == config.hidden_size
    layers = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    of_tower = ["visual.layers.0.weight", "visual.out.bias"]
    for saved in ("backbone.model.", "model."):
        head = saved.removesuffix("model.") + "lm_head.weight"
        names = [f"{saved}language_model.layers.0.mlp.up_proj.weight", head, "icm.pool.query"]
        names += ["text_tower.out.weight"]
        names += [f"{saved}{name}" for name in of_tower]
        values = {name: torch.rand(2) for name in names}
        kept = dict(served_weights(values.items(), own_tower=served.own_tower))
        assert list(kept) == layers + ([] if own_tower else of_tower)
        assert kept[layers[0]] is values[names[0]]
