"""What is SGLang's alone: how rows travel, pictures, servers that die, other people's weights."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from conftest import sglang_python
from engine_doubles import LEANING, NAMES, Source, names_of, real_requests, request

from retrv_engine import (
    EngineDied,
    EngineMissing,
    FeatureRows,
    Output,
    PlainEngine,
    Request,
    Sampling,
    SGLangConfig,
    SGLangEngine,
)
from retrv_engine.generation import Generation
from retrv_engine.plain import embed_pieces
from retrv_engine.sglang import process, turns
from retrv_engine.sglang.turns import Part
from retrv_engine.sglang.waiting import Gate, Loader, Readers, Slots
from retrv_engine.sglang.wire import Picture, Prompt, pack, places, unpack
from retrv_engine.sglang.worker import server
from retrv_r1 import Item, Reranker

# How rows travel.


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64], ids=str
)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (0, 4), (2, 3, 2)], ids=str)
def test_tensors_arrive_as_they_are(dtype, shape):
    tensor = (10 * torch.randn(*shape)).to(dtype)
    found = unpack(pack(tensor.mT.contiguous().mT))  # whatever its strides
    assert found.dtype == dtype and torch.equal(found, tensor)


def test_positions_are_those_of_all_engines(model):
    rng = random.Random(0)
    for _ in range(50):
        pieces: list[Any] = []
        for k in range(rng.randint(1, 8)):
            width = rng.choice([0, 0, 1, 2, 5])
            length = rng.randint(1, 4) * max(1, width)
            rows = FeatureRows(torch.zeros(length, 64), 0, length, k, width)
            pieces += [rows] if rng.random() < 0.6 else [5 + k] * rng.randint(1, 3)
        prompt = Prompt()
        for piece in pieces:  # as it grows
            prompt.extend([piece])
        embeds, positions, behind = embed_pieces(model, pieces, 0)
        found = places(prompt.items, len(prompt.ids))
        assert len(prompt.ids) == len(embeds) and torch.equal(found, positions)
        assert int(found.max()) + 1 >= behind or pieces


@pytest.mark.parametrize(("first", "length"), [(0, 2), (3, 9), (-1, 1)])
def test_items_that_stand_nowhere_are_refused(first, length):
    items = [{"first": 0, "length": 2, "width": 0}, {"first": first, "length": length, "width": 0}]
    with pytest.raises(ValueError, match="an item at rows"):
        places(items[bool(first == -1) :], 6)


def test_a_picture_is_a_grid_of_merged_patches():
    picture = Picture(torch.zeros(24, 8), (1, 4, 6), 2, 7)
    assert (picture.length, picture.width, picture.advance) == (6, 3, 3)
    with pytest.raises(ValueError, match="no grid"):
        Picture(torch.zeros(24, 8), (1, 3, 8), 2, 7)


# Turns.


def part(tokens: list[int], wishes: list[int] | None = None) -> Part:
    wishes = tokens if wishes is None else wishes
    return Part(tokens, [-1.0] * len(tokens), wishes, {}, [], [], 0, 0, "")


def test_what_a_server_may_not_write_is_not_taken():
    written = Generation(request(), NAMES)
    turns.take_reasoning(written, part([30, 31]))
    with pytest.raises(RuntimeError, match="told not to"):
        turns.take_reasoning(written, part([NAMES.answer_start]))
    with pytest.raises(
        RuntimeError, match="told not to"
    ):  # a label is due, and that is not our turn
        turns.take_reasoning(written, part([NAMES.inspect_start, 30]))
    with pytest.raises(RuntimeError, match="another sampler"):
        turns.take_reasoning(written, part([30], []))


def test_a_server_that_gives_up_says_why():
    meta = {"finish_reason": {"type": "abort", "message": "no room"}}
    with pytest.raises(ValueError, match="no room"):
        Part.of({"output_ids": [], "meta_info": meta})


def test_the_highest_priority_comes_first_and_a_cancelled_one_never():
    async def run() -> list[int]:
        slots, order, held = Slots(1), [], asyncio.Event()

        async def work(number: int, priority: int) -> None:
            async with slots.take(priority, number):
                order.append(number)
                await held.wait()

        tasks = [asyncio.create_task(work(*one)) for one in enumerate([0, 0, 5, 1, 1])]
        await asyncio.sleep(0)
        tasks[3].cancel()
        held.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots._free == 1
        return order

    assert asyncio.run(run()) == [0, 2, 4, 1]


def test_who_is_alone_waits_for_all_and_holds_the_others_back():
    async def run() -> list[str]:
        gate, order = Gate(), []

        async def pass_through(name: str, steps: int) -> None:
            async with gate.together():
                for _ in range(steps):
                    await asyncio.sleep(0)
                order.append(name)

        async def change() -> None:
            async with gate.alone():
                order.append("change")

        tasks = [asyncio.create_task(pass_through(name, 9)) for name in "ab"]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(change()))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(pass_through("c", 1)))
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["a", "b", "change", "c"]


def test_prompts_that_begin_alike_are_read_one_first():
    async def run() -> list[str]:
        readers, order = Readers(), []

        async def work(name: str, keys: list[int], fails: bool = False) -> None:
            async with readers.read(keys) as done:
                order.append(name)
                await asyncio.sleep(0.01)
                if fails:
                    raise OSError
                done.set()
                order.append(name + "!")
                await asyncio.sleep(0.05)  # writes on

        alike = list(range(40))
        works = [
            work("a", [*alike, 1]),
            work("b", [*alike, 2]),
            work("c", [9, *alike]),
            work("d", alike),
        ]
        await asyncio.gather(*works)
        await asyncio.gather(work("e", alike, True), work("f", alike), return_exceptions=True)
        assert not readers._reading
        return order

    order = asyncio.run(run())
    assert order[:2] == ["a", "c"] and set(order[2:4]) == {"a!", "c!"}
    assert set(order[4:6]) == {"b", "d"} and order[-3:] == ["e", "f", "f!"]


def test_what_is_wanted_at_once_is_loaded_at_once():
    async def run(source: Source) -> list[Any]:
        loader = Loader()
        wanted = [(source, name) for name in (1, 2, 1, 3)]
        return await asyncio.gather(*map(loader.load, wanted), return_exceptions=True)

    source = Source({1: [10], 2: [20]}, bad={3})
    found = asyncio.run(run(source))
    assert found[:3] == [[10], [20], [10]] and isinstance(found[3], OSError)
    assert source.calls == [[1, 2, 3], [1], [2], [3]], "together, then each for itself"


# Where SGLang is.


def test_without_sglang_the_mend_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "MADE", tmp_path / "nowhere")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EngineMissing, match="make sglang-cpu"):
        process.find_python()
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "version.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert process.find_python() == Path(sys.executable)


def test_arguments_become_words():
    asked = {
        "tp_size": 2,
        "enable_metrics": True,
        "disable_radix_cache": False,
        "x": None,
        "y": [1, 2],
    }
    assert process._flags(asked) == ["--tp-size", "2", "--enable-metrics", "--y", "1", "2"]
    assert "cpu" in server.defaults(cuda=False) and "cpu" not in server.defaults(cuda=True)


LAUNCHES = {
    "parallel": "--tp 2 --dp 4 --mem-fraction-static 0.8 --attention-backend flashinfer",
    "8-bit cache": "--kv-cache-dtype fp8_e4m3 --attention-backend triton",
    "hopper": "--attention-backend fa3 --mm-attention-backend fa3",
}


@pytest.mark.parametrize("asked", LAUNCHES.values(), ids=LAUNCHES)
def test_launches_on_gpus_are_read(asked):
    """No evidence that they run: SGLang's parser takes them, and prefixes stay shared."""
    words = [sglang_python(), "-m", "retrv_engine.sglang.worker.server", server.DRY]
    words += ["--model-path", "checkpoint", *asked.split()]
    done = subprocess.run(words, env=process._environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["disable_radix_cache"] is False and read["skip_tokenizer_init"] is True
    for name, value in zip(asked.split()[::2], asked.split()[1::2], strict=True):
        name = {"--tp": "tp_size", "--dp": "dp_size"}.get(name, name[2:].replace("-", "_"))
        assert str(read.get(name, value)) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(url="localhost:3"), "must begin with http"),
        (dict(url="http://x", arguments={"tp_size": 2}), "started here"),
        (dict(max_requests=0), "max_requests must be positive"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        SGLangConfig(**values)


def test_a_server_that_is_not_there(checkpoint):
    model, processor, _ = checkpoint
    with pytest.raises(EngineDied, match=r"no server answers at http://127\.0\.0\.1:9"):
        SGLangEngine(model, names_of(processor), SGLangConfig(url="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match="name the checkpoint"):
        SGLangEngine(model, names_of(processor))


# With a server.


@pytest.fixture(scope="module")
def engine(checkpoint, sglang_server) -> Iterator[SGLangEngine]:
    model, processor, _ = checkpoint
    config = SGLangConfig(url=sglang_server.url, silent_seconds=30)
    with SGLangEngine(model, names_of(processor), config) as made:
        yield made


@pytest.fixture
def pictures(checkpoint, picture) -> Callable[[], list[tuple[Picture, FeatureRows]]]:
    """Pictures as patches, and the rows that the model here makes of them now."""
    model, processor, _ = checkpoint

    def encode() -> list[tuple[Picture, FeatureRows]]:
        pairs = []
        for k, size in enumerate([(48, 48), (64, 32), (32, 64)]):
            patches, grid, (_, width) = processor.encode_picture(picture(k, *size))
            with torch.inference_mode():
                rows = model.encode_pictures(patches, torch.tensor([grid]))
            seen = FeatureRows(rows, 0, len(rows), 500 + k, width)
            pairs.append((Picture(patches, grid, 2, 900 + k), seen))
        return pairs

    return encode


def ask(*pieces: Any) -> Request:
    return Request([40, *pieces, 41], range(300, 320), reason=False)


def logits_of(outputs: list[Output]) -> torch.Tensor:
    return torch.stack([output.label_logits.log_softmax(-1) for output in outputs])


def test_pictures_that_the_server_encodes(engine, pictures, checkpoint):
    """Alone, together, beside rows that are ready, as a whole of a chain of thought."""
    model, processor, _ = checkpoint
    plain = PlainEngine(model, names_of(processor))
    (a, a_rows), (b, b_rows), (c, c_rows) = pictures()
    raw = [ask(a), ask(b), ask(a, 42, b_rows, 43, c)]
    ready = [ask(a_rows), ask(b_rows), ask(a_rows, 42, b_rows, 43, c_rows)]
    engine.flush()
    found = engine.generate(raw)
    torch.testing.assert_close(
        logits_of(found), logits_of(plain.generate(ready)), atol=1e-4, rtol=0
    )
    assert engine.generate(raw)[2].cached_rows == found[2].prompt_rows

    one = real_requests(processor.tokens.labels)[3]
    (prompt,) = one.prompt
    prompt.table[:, :3] = torch.tensor(LEANING)
    outputs = []
    for generate, piece in ((engine.generate, a), (plain.generate, a_rows)):
        source = Source({k: [piece] for k in range(3)})
        outputs += generate([replace(one, source=source)])
    assert outputs[0].tokens == outputs[1].tokens and outputs[0].inspected


def test_rows_of_old_weights_are_never_used(engine, pictures, checkpoint):
    """SGLang forgets cached keys and values with the weights, but not what its tower made."""
    model, processor, _ = checkpoint
    old = {name: one.detach().clone() for name, one in model.named_parameters() if "visual" in name}
    generator = torch.Generator().manual_seed(1)
    new = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in old.items()}
    plain = PlainEngine(model, names_of(processor))
    raw = [ask(one) for one, _ in pictures()]
    before = logits_of(engine.generate(raw))
    try:
        engine.load_weights(new)
        expected = logits_of(plain.generate([ask(rows) for _, rows in pictures()]))
        assert (expected - before).abs().max() > 0.01, "the tower matters"
        found = logits_of(engine.generate(raw))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    finally:
        engine.load_weights(old)
    torch.testing.assert_close(logits_of(engine.generate(raw)), before, atol=1e-4, rtol=0)


def test_a_server_refuses_in_words_and_goes_on(engine, sglang_server):
    items = [{"first": 5, "length": 9, "width": 0, "key": 1, "rows": pack(torch.zeros(9, 64))}]
    asked = {"input_ids": [1, 2], "image_data": items, "sampling_params": {"max_new_tokens": 1}}
    answer = httpx.post(f"{sglang_server.url}/generate", json=asked)
    assert answer.status_code == 400 and "an item at rows 5 to 14" in answer.text
    assert engine.generate([ask(7)])[0].answer >= 0


def test_a_server_that_says_nothing(checkpoint, sglang_server):
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
        assert impatient.generate([ask(7)])[0].answer >= 0, "it is found again"


def test_weights_that_somebody_else_loads(engine, checkpoint, sglang_server):
    model, processor, _ = checkpoint
    config = SGLangConfig(url=sglang_server.url)
    name, value = next(iter(model.named_parameters()))
    with SGLangEngine(model, names_of(processor), config) as other:
        other.load_weights({name: value.detach().clone()})
        with pytest.raises(EngineDied, match="somebody else loaded others"):
            engine.generate([ask(7)])
        assert engine.generate([ask(7)])[0].answer >= 0, "asked again it gets the right ones"


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


# A server of our own.


def test_a_server_that_dies_is_reported_and_started_again():
    """With the weights it had; the shipped checkpoint has a head tied to its embeddings."""
    reranker = Reranker.from_pretrained(
        "tiny", engine="sglang", config=SGLangConfig(python=sglang_python())
    )
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
    own = psutil.Process(engine._link._process._process.pid)
    log = engine._link._process.log
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
    assert log.exists(), "for whoever wants to know more"
    log.unlink()
    again = reranker.rank("a fire engine", demo)
    assert again.reasoning == expected.reasoning, "the weights were loaded again"

    own = psutil.Process(engine._link._process._process.pid)
    started = [own, *own.children(recursive=True)]
    reranker.close()
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert len(gone) == len(started) and not alive
    with pytest.raises(RuntimeError, match="closed"):
        reranker.rank("a fire engine", demo)


def test_a_checkpoint_that_cannot_be_served(tmp_path, checkpoint):
    model, processor, _ = checkpoint
    (tmp_path / "config.json").write_text("{}")
    config = SGLangConfig(python=sglang_python())
    with pytest.raises(EngineDied, match=r"(?s)did not start, exit status.*log"):
        SGLangEngine(model, names_of(processor), config, checkpoint=tmp_path)
