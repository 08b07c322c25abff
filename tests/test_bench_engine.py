"""The benchmark of engines: all engines write the same tokens, and requests are as described."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image
from transformers import Qwen2ForCausalLM

from bench import harness, profile, run
from bench.peers import client
from bench.suites.engine.workload import PacedGeneration, Workload
from retrv_engine import LocalEngine


@pytest.mark.parametrize("suite", run.ENGINE_SUITES)
def test_every_engine_writes_the_same(suite):
    for trial in run.ENGINE_SUITES[suite]("cpu", True).trials:
        rows = harness.run(dataclasses.replace(trial, rounds=1), 0.0)
        assert not any(row["failed"] for row in rows)
        compared = [row["implementation"] for row in rows if row["error"] is not None]
        assert any(name.startswith("local") for name in compared)


def test_paced_requests_inspect_as_often_as_they_may():
    work = Workload.tiny("cpu")
    request = work.request(1, 5, tokens=20, inspections=3)
    engine = LocalEngine(work.model, work.tokens, generation_type=PacedGeneration)
    (output,) = engine.generate([request])
    assert len(output.inspected) == 3 and output.inspected_rows == 3 * work.rows
    assert len(output.tokens) == 20 + 4


def test_an_absent_peer_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "ENVIRONMENTS", tmp_path)
    assert "make bench-peers" in client.Peer("llama_cpp").because


def test_the_exported_weights_are_the_language_model(tmp_path):
    """Loaded as another engine does, with rows at text positions."""
    work = Workload.tiny("cpu")
    client.export(work.model, tmp_path)
    other = Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
    rows = 0.1 * torch.randn(1, 9, work.model.config.hidden_size)
    with torch.inference_mode():
        hidden = work.model.language_model(inputs_embeds=rows).last_hidden_state
        logits = work.model.get_output_embeddings()(hidden)
        torch.testing.assert_close(other(inputs_embeds=rows).logits, logits)


def test_profile_accounts_for_all_of_a_request(tmp_path):
    spans = profile.profile("tiny", 4, 12, 1)
    total = spans.seconds["request",]
    parts = {path[1] for path in spans.seconds if len(path) > 1}
    assert {"features", "compression", "prefill", "decode", "inspection"} <= parts
    for path in spans.seconds:
        assert 0 <= spans.own(path) <= total
    profile.draw(spans, tmp_path / "profile.png", "a caption")
    assert Image.open(tmp_path / "profile.png").width > 500
