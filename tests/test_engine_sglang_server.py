"""The SGLang engine with servers: refusals, silence, other weights, death, a whole reranker."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from engine_doubles import Source, names_of

from retrv_engine import EngineDied, Request, Sampling, SGLangConfig, SGLangEngine
from retrv_engine.sglang import process
from retrv_engine.sglang.weights import parameters_of
from retrv_engine.sglang.wire_format import tensor_to_json
from retrv_engine.sglang.worker import server
from retrv_r1 import Item, Reranker, RetrvError

pytest_plugins = ["sglang_fixtures"]

LAUNCHES = {
    "parallel": "--tp 2 --dp 4 --mem-fraction-static 0.8 --attention-backend flashinfer",
    "8-bit cache": "--kv-cache-dtype fp8_e4m3 --attention-backend triton",
    "hopper": "--attention-backend fa3 --mm-attention-backend fa3",
}


@pytest.mark.parametrize("asked", LAUNCHES.values(), ids=LAUNCHES)
def test_arguments_for_gpus_are_parsed(asked, sglang_python):
    """By SGLang's parser, with the radix cache on; no evidence that they run."""
    command = [sglang_python, "-m", "retrv_engine.sglang.worker.server", server.DRY_RUN]
    command += ["--model-path", "checkpoint", *asked.split()]
    done = subprocess.run(command, env=process._environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert parsed["disable_radix_cache"] is False and parsed["skip_tokenizer_init"] is True
    for name, value in zip(asked.split()[::2], asked.split()[1::2], strict=True):
        name = {"--tp": "tp_size", "--dp": "dp_size"}.get(name, name[2:].replace("-", "_"))
        assert str(parsed.get(name, value)) == value


@pytest.fixture(scope="module")
def engine(checkpoint, sglang_server) -> Iterator[SGLangEngine]:
    model, processor, _ = checkpoint
    config = SGLangConfig(url=sglang_server.url, silent_seconds=30)
    with SGLangEngine(model, names_of(processor), config) as made:
        yield made


def ask(*pieces: Any) -> Request:
    return Request([40, *pieces, 41], range(300, 320), reason=False)


def test_a_refused_request_touches_no_other(engine, sglang_server):
    items = [
        {"first": 5, "length": 9, "width": 0, "key": 1, "rows": tensor_to_json(torch.zeros(9, 64))}
    ]
    call = {"input_ids": [1, 2], "image_data": items, "sampling_params": {"max_new_tokens": 1}}
    answer = httpx.post(f"{sglang_server.url}/generate", json=call)
    assert answer.status_code == 400 and "an item at rows 5 to 14" in answer.text
    assert engine.generate([ask(7)])[0].answer >= 0


def test_a_silent_server_counts_as_dead(checkpoint, sglang_server):
    model, processor, _ = checkpoint
    config = SGLangConfig(url=sglang_server.url, silent_seconds=1.0)
    with SGLangEngine(model, names_of(processor), config) as impatient:
        group = os.getpgid(sglang_server._process.pid)
        os.killpg(group, signal.SIGSTOP)
        try:
            with pytest.raises(EngineDied, match="no answer from"):
                impatient.generate([ask(7)])
        finally:
            os.killpg(group, signal.SIGCONT)
        assert impatient.generate([ask(7)])[0].answer >= 0, "it connects again"


@pytest.mark.parametrize("seed", [2**32, 2**40 + 7, 2**63 - 1, -1, 10**30])
def test_any_seed_leaves_the_server_alive(engine, sglang_server, seed):
    sampling = Sampling(temperature=1.0, seed=seed, max_reasoning_tokens=4, max_inspections=0)
    asked = Request(
        [40, 41], range(300, 302), range(2), Source({0: [5], 1: [5]}), sampling=sampling
    )
    first, second = (engine.generate([asked])[0].tokens for _ in range(2))
    assert first == second
    if 0 <= seed < 2**63:  # from others that use the server
        values = {"max_new_tokens": 2, "temperature": 1.0, "sampling_seed": seed}
        call = {"input_ids": [1, 2], "sampling_params": values}
        answer = httpx.post(f"{sglang_server.url}/generate", json=call, timeout=60)
        assert answer.status_code == 200


def test_weights_loaded_by_somebody_else_are_noticed(engine, checkpoint, sglang_server):
    model, processor, _ = checkpoint
    config = SGLangConfig(url=sglang_server.url)
    name, value = next(iter(parameters_of(model).items()))
    with SGLangEngine(copy.deepcopy(model), names_of(processor), config) as other:
        other.load_weights({name: value.clone()})
        with pytest.raises(EngineDied, match="somebody else loaded others"):
            engine.generate([ask(7)])
        assert engine.generate([ask(7)])[0].answer >= 0, "they are the same"
        other.load_weights({name: 1.1 * value})
        with pytest.raises(EngineDied, match="somebody else loaded others"):
            engine.generate([ask(7)])
        with pytest.raises(EngineDied, match=f"other weights than the model here .{name} differs"):
            engine.generate([ask(7)])
        other.load_weights({name: value.clone()})
    assert engine.generate([ask(7)])[0].answer >= 0


@pytest.mark.parametrize("mode", ["reason", "fast"])
def test_a_reranker_on_a_server(checkpoint, sglang_server, picture, mode):
    model, processor, _ = checkpoint
    items: list[Any] = [Item(image=picture(k, 32 + 8 * (k % 3), 48), id=str(k)) for k in range(7)]
    items[3] = Item(text="a blue bird <|im_end|>", id="3")
    items[5] = Item(text="a red apple", image=picture(5), id="5")
    served = Reranker(model, processor, engine="sglang", config=SGLangConfig(url=sglang_server.url))
    plain = Reranker(model, processor, engine="plain")
    readings = ["compressed", "full"] + (["pointwise"] if mode == "fast" else [])
    for reading in readings:
        found, expected = (
            one.rank("a bird", items, mode=mode, reading=reading) for one in (served, plain)
        )
        assert [line.index for line in found] == [line.index for line in expected]
        scores = [[line.score for line in result] for result in (found, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        assert (found.reasoning, found.inspected) == (expected.reasoning, expected.inspected)
    served.close()


def test_a_server_that_dies_is_reported_and_started_again(sglang_python):
    """With the same weights; the shipped checkpoint has a head tied to its embeddings."""
    config = SGLangConfig(python=sglang_python)
    reranker = Reranker.from_pretrained("tiny", engine="sglang", config=config)
    plain = Reranker.from_pretrained("tiny", engine="plain")
    demo = sorted((Path(__file__).parents[1] / "examples" / "demo").glob("*.png"))[:12]
    found, expected = (one.rank("a fire engine", demo) for one in (reranker, plain))
    assert found.reasoning == expected.reasoning and found.answer == expected.answer

    weights = {
        name: one.detach() * 1.05
        for name, one in plain.model.named_parameters()
        if "mlp.down_proj" in name
    }
    for one in (reranker, plain):
        one.load_weights(weights)
    expected = plain.rank("a fire engine", demo)
    assert reranker.rank("a fire engine", demo).reasoning == expected.reasoning

    engine: Any = reranker.engine
    own = psutil.Process(engine._connection._process._process.pid)
    log = engine._connection._process.log
    workers = own.children(recursive=True)
    assert len(workers) >= 2
    handle = engine.submit(
        Request(
            [300, 301],
            reranker.processor.tokens.labels[:2],
            range(2),
            Source({0: [5], 1: [5]}),
            sampling=Sampling(max_reasoning_tokens=4000, max_inspections=0),
            banned=[reranker.processor.tokens.think_end],
        )
    )
    tokens = handle.tokens()
    assert next(tokens)
    scheduler = next(worker for worker in workers if "scheduler" in worker.cmdline()[0])
    scheduler.kill()
    with pytest.raises(EngineDied, match=r"the server has died, exit status"):
        handle.result(timeout=60)
    assert log.exists(), "the log is kept"
    log.unlink()
    again = reranker.rank("a fire engine", demo)
    assert again.reasoning == expected.reasoning, "the new server has the same weights"

    own = psutil.Process(engine._connection._process._process.pid)
    started = [own, *own.children(recursive=True)]
    reranker.close()
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert len(gone) == len(started) and not alive
    with pytest.raises(RetrvError, match="the reranker is closed"):
        reranker.rank("a fire engine", demo)


def test_a_checkpoint_that_cannot_be_served(tmp_path, checkpoint, sglang_python):
    model, processor, _ = checkpoint
    (tmp_path / "config.json").write_text("{}")
    config = SGLangConfig(python=sglang_python)
    with pytest.raises(EngineDied, match=r"(?s)did not start, exit status.*log"):
        SGLangEngine(model, names_of(processor), config, checkpoint=tmp_path)
