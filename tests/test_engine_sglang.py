"""The SGLang engine without a server: calls, concurrency, the server's process."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_doubles import NAMES, SIZE, Source, names_of, request

from retrv_engine import (
    EngineDied,
    EngineMissing,
    Sampling,
    SGLangConfig,
    SGLangEngine,
)
from retrv_engine.generation import Generation
from retrv_engine.sampler import pick
from retrv_engine.sglang import calls, process, worker
from retrv_engine.sglang.calls import Chunk
from retrv_engine.sglang.concurrency import (
    CandidateLoader,
    PrefillQueue,
    PrioritySemaphore,
    SharedLock,
)
from retrv_engine.sglang.wire_format import (
    LIKELIEST,
    WirePrompt,
)
from retrv_engine.sglang.worker import server


def test_the_processes_share_the_wire_format_alone():
    root = Path(process.__file__).parent
    shared = root / "wire_format.py"
    for path in set(root.rglob("*.py")) - {shared}:
        imported = re.findall(r"^ *(?:from|import) (retrv_engine[\w.]*)", path.read_text(), re.M)
        of_worker = [name for name in imported if name.startswith(worker.__name__)]
        if path.parent == root:
            assert not of_worker, path
        else:
            assert {*imported} <= {*of_worker, "retrv_engine.sglang.wire_format"}, path


# Calls.


def chunk(tokens: list[int], likeliest: list[int] | None = None, **values: Any) -> Chunk:
    empty: dict[str, Any] = dict(labels={}, prompt_logprobs=[], prompt_likeliest=[])
    likeliest = tokens if likeliest is None else likeliest
    given = dict(logprobs=[-1.0] * len(tokens), prompt_rows=0, cached_rows=0, version="")
    return Chunk(tokens=tokens, likeliest=likeliest, **empty | given | values)


def test_banned_tokens_of_a_server_are_refused():
    written = Generation(request(), NAMES)
    calls.take_reasoning(written, chunk([30, 31]))
    with pytest.raises(RuntimeError, match="is banned"):
        calls.take_reasoning(written, chunk([NAMES.answer_start]))
    with pytest.raises(RuntimeError, match="is banned"):  # a label is due, not reasoning
        calls.take_reasoning(written, chunk([NAMES.inspect_start, 30]))
    with pytest.raises(RuntimeError, match="does not use our sampler"):
        calls.take_reasoning(written, chunk([30], []))


def test_nan_of_a_server_is_an_error():
    null = {"prompt_tokens": 3, "cached_tokens": 0, "weight_version": ""}
    null |= {"output_token_logprobs": [[None, 30, None]], LIKELIEST: [30]}
    null["output_token_ids_logprobs"] = [[[None, 20, None], [-1.0, 21, None]]]
    given = Chunk.from_answer({"output_ids": [30], "meta_info": null})
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        calls.take_reasoning(Generation(request(), NAMES), given)
    answers = Generation(replace(request(candidates=2), labels=[20, 21], reason=False), NAMES)
    with pytest.raises(FloatingPointError, match="logits are NaN"):
        calls.take_label(answers, given)


@pytest.mark.parametrize("sampling", [{}, dict(temperature=0.8), dict(temperature=2.0, top_p=0.6)])
@pytest.mark.parametrize("inspects", [True, False])
def test_labels_are_chosen_as_from_all_logits(sampling, inspects):
    """As ``pick`` chooses from a row of the whole vocabulary, likeliest token included."""
    labels = [23, 20, 22, 21]
    for seed in range(20):
        logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
        logprobs = (3 * logits).log_softmax(-1)
        values = Sampling(seed=seed, **sampling)
        none = 24 if seed % 2 else None
        asked = replace(request(candidates=4), labels=labels, sampling=values, none_label=none)
        found, expected = Generation(asked, NAMES), Generation(asked, NAMES)
        for one in (found, expected):
            one.think(NAMES.inspect_start if inspects else NAMES.think_end, -1.0, 30)
        due = found.due
        rows = torch.stack([torch.eye(SIZE)[30], logprobs])[2 - due :]
        expected.advance(pick(rows, [expected.choice(number) for number in range(due)]))
        best = int(logprobs.argmax())
        told = {label: float(logprobs[label]) for label in (*labels, *([none] if none else []))}
        calls.take_label(found, chunk([best], labels=told, prompt_likeliest=[30]))
        assert found.tokens == expected.tokens and found.well_formed == expected.well_formed
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-6)
        if not inspects:
            torch.testing.assert_close(found.label_logits, expected.label_logits)
            assert found.none_logit == expected.none_logit
            assert (found.none_logit is None) is (none is None)


def test_any_number_is_a_seed_of_32_bits_for_the_server():
    def sent(seed: int) -> int:
        asked = replace(request(), sampling=Sampling(temperature=1.0, seed=seed))
        call = calls.reasoning_call(Generation(asked, NAMES), WirePrompt([30]), 16, 100)
        return call["sampling_params"]["sampling_seed"]

    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 7 << 32, 2**63, 10**30]
    found = [sent(seed) for seed in seeds]
    assert len(set(found)) == len(seeds) and found == [sent(seed) for seed in seeds]
    assert all(0 <= one < 2**32 for one in [*found, sent(-5)])


def test_an_abort_is_raised_with_the_reason():
    meta = {"finish_reason": {"type": "abort", "message": "no room"}}
    with pytest.raises(ValueError, match="no room"):
        Chunk.from_answer({"output_ids": [], "meta_info": meta})


# Concurrency.


def test_the_highest_priority_comes_first_and_a_cancelled_one_never():
    async def run() -> list[int]:
        semaphore, order, held = PrioritySemaphore(1), [], asyncio.Event()

        async def work(number: int, priority: int) -> None:
            async with semaphore.hold(priority):
                order.append(number)
                await held.wait()

        tasks = [asyncio.create_task(work(*one)) for one in enumerate([0, 0, 5, 1, 1])]
        await asyncio.sleep(0)
        tasks[3].cancel()
        held.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with semaphore.hold(0):  # it is free again
            return order

    assert asyncio.run(run()) == [0, 2, 4, 1]


def test_an_exclusive_holder_waits_for_all_and_holds_the_others_back():
    async def run() -> list[str]:
        lock, order = SharedLock(), []

        async def pass_through(name: str, steps: int) -> None:
            async with lock.shared():
                for _ in range(steps):
                    await asyncio.sleep(0)
                order.append(name)

        async def change() -> None:
            async with lock.exclusive():
                order.append("change")

        tasks = [asyncio.create_task(pass_through(name, 9)) for name in "ab"]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(change()))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(pass_through("c", 1)))
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == ["a", "b", "change", "c"]


def test_one_of_several_prompts_with_a_shared_prefix_is_prefilled_first():
    async def run() -> list[str]:
        prefills, order = PrefillQueue(), []

        async def work(name: str, keys: list[int], fails: bool = False) -> None:
            async with prefills.wait(keys) as done:
                order.append(name)
                await asyncio.sleep(0.01)
                if fails:
                    raise OSError
                done.set()
                order.append(name + "!")
                await asyncio.sleep(0.05)  # decodes

        shared = list(range(40))
        works = [
            work("a", [*shared, 1]),
            work("b", [*shared, 2]),
            work("c", [9, *shared]),
            work("d", shared),
        ]
        await asyncio.gather(*works)
        await asyncio.gather(work("e", shared, True), work("f", shared), return_exceptions=True)
        assert not prefills._prefilling
        return order

    order = asyncio.run(run())
    assert order[:2] == ["a", "c"] and set(order[2:4]) == {"a!", "c!"}
    assert set(order[4:6]) == {"b", "d"} and order[-3:] == ["e", "f", "f!"]


def test_candidates_requested_together_are_loaded_together():
    async def run(source: Source) -> list[Any]:
        loader = CandidateLoader()
        wanted = [(source, name) for name in (1, 2, 1, 3)]
        return await asyncio.gather(*map(loader.load, wanted), return_exceptions=True)

    source = Source({1: [10], 2: [20]}, bad={3})
    found = asyncio.run(run(source))
    assert found[:3] == [[10], [20], [10]] and isinstance(found[3], OSError)
    assert source.calls == [[1, 2, 3], [1], [2], [3]], "together, then each for itself"


# The server's process and arguments.


def test_without_sglang_the_fix_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "CPU_PYTHON", tmp_path / "nowhere")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EngineMissing, match="make sglang-cpu"):
        process.find_python()
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "version.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert process.find_python() == Path(sys.executable)


def test_arguments_become_a_command_line():
    asked = {
        "tp_size": 2,
        "enable_metrics": True,
        "disable_radix_cache": False,
        "x": None,
        "y": [1, 2],
    }
    assert process._words(asked) == ["--tp-size", "2", "--enable-metrics", "--y", "1", "2"]
    assert "cpu" in server.default_arguments(cuda=False) and "cpu" not in server.default_arguments(
        cuda=True
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(url="localhost:3"), "must begin with http"),
        (dict(url="http://x", arguments={"tp_size": 2}), "for a server to start"),
        (dict(max_requests=0), "max_requests must be positive"),
    ],
)
def test_bad_configs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SGLangConfig(**values)


def test_a_server_that_is_not_there(checkpoint):
    model, processor, _ = checkpoint
    with pytest.raises(EngineDied, match=r"no server answers at http://127\.0\.0\.1:9"):
        SGLangEngine(model, names_of(processor), SGLangConfig(url="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match="name the checkpoint"):
        SGLangEngine(model, names_of(processor))
