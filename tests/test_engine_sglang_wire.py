"""The wire format of the SGLang engine: tensors, positions, and the rows of a prompt."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from sglang_doubles import make_engine, reasoning

from retrv_engine import FeatureRows
from retrv_engine.plain import embed_pieces
from retrv_engine.sglang import client, wire_format
from retrv_engine.sglang.wire_format import (
    WirePrompt,
    mrope_positions,
    tensor_from_json,
    tensor_to_json,
)

pytest_plugins = ["sglang_fixtures"]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64], ids=str
)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (2, 3, 2)], ids=str)
def test_tensors_arrive_unchanged(dtype, shape):
    tensor = (10 * torch.randn(*shape)).to(dtype)
    found = tensor_from_json(tensor_to_json(tensor.mT.contiguous().mT))  # whatever its strides
    assert found.dtype == dtype and torch.equal(found, tensor)


def test_positions_are_counted_as_in_the_plain_engine(model):
    rng = random.Random(0)
    for _ in range(50):
        pieces: list[Any] = []
        for k in range(rng.randint(1, 8)):
            width = rng.choice([0, 0, 1, 2, 5])
            length = rng.randint(1, 4) * max(1, width)
            rows = FeatureRows(torch.zeros(length, 64), 0, length, k, width)
            pieces += [rows] if rng.random() < 0.6 else [5 + k] * rng.randint(1, 3)
        prompt = WirePrompt()
        for piece in pieces:  # as a prompt grows
            prompt.extend([piece])
        embeds, positions, following = embed_pieces(model, pieces, 0)
        found = mrope_positions(prompt.items, len(prompt.ids))
        assert len(prompt.ids) == len(embeds) and torch.equal(found, positions)
        assert int(found.max()) + 1 == following, "where the server goes on"


@pytest.mark.parametrize(("first", "length"), [(0, 2), (3, 9), (-1, 1)])
def test_items_outside_the_prompt_are_refused(first, length):
    items = [{"first": 0, "length": 2, "width": 0}, {"first": first, "length": length, "width": 0}]
    with pytest.raises(ValueError, match="an item at rows"):
        mrope_positions(items[bool(first == -1) :], 6)


def test_rows_are_encoded_once_and_not_in_the_event_loop(small_model, fake_server, monkeypatch):
    encoded: list[str] = []
    joined: list[str] = []

    def noting(function: Any, names: list[str]) -> Any:
        def noted(values: Any) -> Any:
            names.append(threading.current_thread().name)
            return function(values)

        return noted

    message = noting(client._call_message, joined)
    monkeypatch.setattr(wire_format, "tensor_to_json", noting(tensor_to_json, encoded))
    monkeypatch.setattr(client, "_call_message", message)
    rows = [torch.randn(3, 4), torch.randn(2, 4)]
    prompt = [30, *(FeatureRows(one, 0, len(one), k, 0) for k, one in enumerate(rows)), 31]
    with make_engine(small_model, url=fake_server.url) as engine:
        assert engine.generate([replace(reasoning(5), prompt=prompt)])[0].answer == 0
    asked = [body for path, body in fake_server.asked if path == "/generate"]
    assert len(asked) == len(joined) == 2 and "retrv-sglang" not in joined
    assert encoded == [threading.current_thread().name] * 2
    for body in asked:
        items = [(one["first"], one["length"], one["key"]) for one in body["image_data"]]
        assert items == [(1, 3, 0), (4, 2, 1)] and body["stream"] is True
        for one, expected in zip(body["image_data"], rows, strict=True):
            assert torch.equal(tensor_from_json(one["rows"]), expected)
