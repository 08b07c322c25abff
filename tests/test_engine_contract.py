"""The contract of :mod:`retrv_engine.base`, kept by every backend: one file, two engines.

Both run a checkpoint that was saved by us. Where SGLang is not installed its half is skipped, but
not in CI.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from engine_doubles import LEANING, Source, names_of, real_requests
from engine_doubles import same as same_logits

from retrv_engine import (
    DeadlineExceeded,
    EngineConfig,
    FeatureRows,
    LocalEngine,
    Output,
    PlainEngine,
    Request,
    RequestTooLarge,
    Sampling,
    SGLangConfig,
    SGLangEngine,
)
from retrv_engine.generation import Generation

pytest_plugins = ["sglang_fixtures"]

CONTEXT = 2048


@pytest.fixture(scope="module", params=["local", "sglang"])
def engine(request, checkpoint) -> Iterator[Any]:
    model, processor, _ = checkpoint
    names = names_of(processor)
    if request.param == "local":
        made: Any = LocalEngine(model, names, EngineConfig(cache_bytes=2**23, page_size=1))
    else:
        server = request.getfixturevalue("sglang_server")
        made = SGLangEngine(model, names, SGLangConfig(url=server.url))
    with made:
        yield made


@pytest.fixture(autouse=True)
def cold(engine) -> None:
    engine.flush()


@pytest.fixture(scope="module")
def requests(checkpoint) -> list[Request]:
    """Prompts of many rows in a line, and some with a picture's grid before it."""
    _, processor, _ = checkpoint
    labels = processor.tokens.labels
    made = [leaning(one, k) for k, one in enumerate(real_requests(labels))]
    made[::2] = [replace(one, none_label=processor.tokens.none) for one in made[::2]]
    made[1::3] = [replace(one, label_bias=biases(one)) for one in made[1::3]]
    for k, one in enumerate(real_requests(labels, seed=5)):
        picture = leaning(one, 5 + k).source.pieces[0][0]
        made.append(replace(leaning(one, k), prompt=[12, picture, 13, *one.prompt]))
    return made


def biases(request: Request) -> list[float]:
    return [float(7 * k % 5) - 2 for k in range(len(request.labels))]


def leaning(request: Request, inspections: int) -> Request:
    """A request whose rows lean as the checkpoint's embeddings do."""
    pieces = [*request.prompt, *(one for some in request.source.pieces.values() for one in some)]
    for piece in pieces:
        if not isinstance(piece, int):
            piece.table[:, :3] = torch.tensor(LEANING)
    sampling = replace(request.sampling, max_inspections=inspections % 4)
    return replace(request, sampling=sampling)


@pytest.fixture(scope="module")
def plain(checkpoint) -> Callable[..., list[Output]]:
    model, processor, _ = checkpoint

    def generate(requests: list[Request], sequence: Any = Generation) -> list[Output]:
        engine = PlainEngine(model, names_of(processor), generation_type=sequence)
        return [engine.generate([one])[0] for one in requests]

    return generate


same = partial(same_logits, constant=True)  # SGLang gives log-probabilities


# What is written.


def test_greedy_tokens_are_those_of_the_plain_engine(engine, requests, plain):
    expected = plain(requests)
    assert sum(len(output.inspected) for output in expected) >= 8
    assert any(output.well_formed for output in expected)
    assert not all(output.well_formed for output in expected)
    for one, output in zip(requests, expected, strict=True):  # alone
        same(engine.generate([one]), [output])
    same(engine.generate(requests), expected)  # with other requests, warm
    engine.flush()
    same(engine.generate(requests[::-1]), expected[::-1])


def test_an_answer_at_once(engine, requests, plain):
    fast = [replace(one, reason=False) for one in requests]
    same(engine.generate(fast), plain(fast))


def test_a_label_for_no_candidate_is_read_and_changes_nothing_else(engine, requests, plain):
    for reason in (True, False):
        made = [replace(one, reason=reason, none_label=None) for one in requests]
        without = engine.generate(made)
        made = [replace(one, none_label=labels_of_none(one)) for one in made]
        found = engine.generate(made)
        same(found, plain(made))
        assert all(output.none_logit is not None for output in found)
        same([replace(output, none_logit=None) for output in found], without)


def labels_of_none(request: Request) -> int:
    """A token that is no candidate's label, another for each number of candidates."""
    return 400 + len(request.labels)


@pytest.mark.parametrize(
    "values", [dict(temperature=1.2), dict(temperature=0.8, top_p=0.7)], ids=str
)
def test_sampled_tokens_follow_their_seed_and_have_their_chances(engine, requests, plain, values):
    made = [replace(one, sampling=replace(one.sampling, **values)) for one in requests]
    together = engine.generate(made)
    for one, output in zip(made[:4], together, strict=False):
        (alone,) = engine.generate([one])
        assert alone.tokens == output.tokens
    other = replace(made[0], sampling=replace(made[0].sampling, seed=99))
    assert engine.generate([other])[0].tokens != together[0].tokens

    for one, output in zip(made, together, strict=True):
        same([output], plain([one], recited(output)))


def recited(output: Output) -> type[Generation]:
    """Writes what an output has, and finds out how likely each token was."""
    tokens = iter(output.tokens)

    class Recited(Generation):
        def _take(self, token: int, logprob: float) -> None:
            assert next(tokens) == token
            super()._take(token, logprob)

        def _choose(self, permitted, labels=()):
            choice = super()._choose(permitted, labels)
            return choice._replace(target=output.tokens[len(self.tokens)])

    return Recited


def test_log_probabilities_of_given_tokens(engine, checkpoint, requests):
    model, _, _ = checkpoint
    prompt, tokens = [11, 12, *requests[0].prompt], [40, 41, 42, 43, 44]
    rows = requests[0].prompt[0].rows
    embeds = [model.get_input_embeddings()(torch.tensor(ids)) for ids in ([11, 12], tokens)]
    with torch.inference_mode():
        inputs = torch.cat([embeds[0], rows, embeds[1]])[None]
        logprobs = model(inputs_embeds=inputs).logits[0, len(rows) + 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    for _ in range(2):  # cold and warm
        assert engine.score(prompt, tokens) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="at least one token"):
        engine.score(prompt, [])


# What is computed.


def listing(changed: int | None = None, tokens: int = 6) -> Request:
    """Fifty candidates of two rows, one of which may be another."""
    generator = torch.Generator().manual_seed(7)
    table = 0.15 * torch.randn(2 * 51, 64, generator=generator)
    prompt: list[Any] = list(range(100, 110))
    for k in range(50):
        row = 50 if k == changed else k
        prompt += [300 + k, FeatureRows(table, 2 * row, 2, 1000 + row)]
    full = {k: [20, FeatureRows(table, 0, 12, 5000 + k, 4), 21] for k in range(50)}
    sampling = Sampling(max_reasoning_tokens=tokens)
    return Request([*prompt, 110, 111], range(300, 350), range(50), Source(full), sampling=sampling)


ROWS = 10 + 50 * 3 + 2


def test_what_was_computed_before_is_found(engine, plain):
    first, again = (engine.generate([listing()])[0] for _ in range(2))
    assert (first.cached_rows, first.prompt_rows) == (0, ROWS)
    assert again.cached_rows == ROWS and again.tokens == first.tokens
    assert first.computed_rows - again.computed_rows >= ROWS
    changed = engine.generate([listing(changed=37)])[0]
    assert changed.cached_rows == 10 + 37 * 3 + 1, "up to the label of the one that changed"
    same([changed], plain([listing(changed=37)]))


def test_an_inspection_computes_its_own_rows_alone(engine, requests, plain):
    index, expected = next(
        (i, output) for i, output in enumerate(plain(requests)) if len(output.inspected) > 1
    )
    output = engine.generate([requests[index]])[0]
    same([output], [expected])
    written = len(output.tokens) - 2  # nothing is read off the answer's label and tag
    assert output.computed_rows == output.prompt_rows + output.inspected_rows + written


def test_a_cold_group_reads_its_prompt_once(engine):
    sampled = replace(listing(), sampling=Sampling(temperature=1.0, max_reasoning_tokens=4))
    group = [replace(sampled, sampling=replace(sampled.sampling, seed=seed)) for seed in range(8)]
    outputs = engine.generate(group)
    assert sorted(output.cached_rows for output in outputs) == [0, *[ROWS] * 7]


def test_pointwise_prompts_share_their_query(engine):
    query = FeatureRows(torch.full((60, 64), 0.1), 0, 60, 77)
    prompts = [[100, query, *range(101, 105), 200 + k, 106] for k in range(50)]
    made = [Request(prompt, [30, 31], reason=False) for prompt in prompts]
    outputs = engine.generate(made)
    assert sorted(output.cached_rows for output in outputs) == [0, *[65] * 49]


# What goes wrong.


def test_what_cannot_be_run_is_refused_by_name(engine, requests):
    narrow = FeatureRows(torch.zeros(3, 7), 0, 3, 5)
    for pieces, message in (
        ([10**6], "token 1000000 is not in a vocabulary"),
        ([5, narrow], r"width 64, not \[3, 7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.submit(replace(requests[0], prompt=pieces))
    with pytest.raises(ValueError, match="token -1"):
        engine.score([5, 6], [-1])
    with pytest.raises(RequestTooLarge):
        engine.submit(replace(requests[0], prompt=[5] * 10**5))


def test_a_source_that_fails_touches_no_other_request(engine, requests, plain):
    looking = [one for one, out in zip(requests, plain(requests), strict=True) if out.inspected]
    broken, fine = looking[:2]
    bad = Source(broken.source.pieces, bad=set(broken.source.pieces))
    handle = engine.submit(replace(broken, source=bad))
    same(engine.generate([fine]), plain([fine]))
    with pytest.raises(OSError, match="cannot read"):
        handle.result(timeout=60)
    narrow = {k: [FeatureRows(torch.zeros(3, 7), 0, 3, 5)] for k in range(6)}
    with pytest.raises(ValueError, match="width 64"):
        engine.generate([replace(broken, source=Source(narrow))])


@pytest.fixture
def long(checkpoint, requests) -> Request:
    _, processor, _ = checkpoint
    one = replace(requests[0], banned=[processor.tokens.think_end])
    return replace(one, sampling=Sampling(max_reasoning_tokens=1500, max_inspections=0))


def test_a_cancelled_request_ends_at_once(engine, long, requests, plain):
    before = engine.stats().cancelled
    handle = engine.submit(long)
    tokens = handle.tokens()
    assert next(tokens) == engine.vocabulary.think_start
    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result()
    same(engine.generate(requests[:1]), plain(requests[:1]))
    assert engine.stats().cancelled == before + 1 and engine.stats().running == 0


def test_a_deadline_that_passes(engine, long):
    before = engine.stats().failed
    with pytest.raises(DeadlineExceeded, match=r"not done in 0\.2 s"):
        engine.submit(long, deadline=0.2).result()
    assert engine.stats().failed == before + 1
    handle = engine.submit(long)
    with pytest.raises(TimeoutError, match="it goes on"):
        handle.result(timeout=0.05)
    handle.cancel()


def test_awaiting_and_streaming(engine, requests, plain):
    async def run() -> tuple[list[Output], list[int]]:
        outputs = await asyncio.gather(*(engine.submit(one) for one in requests[:3]))
        return outputs, [token async for token in engine.submit(requests[3])]

    outputs, tokens = asyncio.run(run())
    same(outputs, plain(requests[:3]))
    assert tuple(tokens) == tuple(plain(requests[3:4])[0].tokens)


def test_a_client_that_hangs_up_ends_its_request(engine, long):
    async def listen() -> None:
        async for _ in engine.submit(long):
            pass

    before = engine.stats().cancelled
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(listen(), 0.3))
    end = time.time() + 10
    while engine.stats().cancelled == before and time.time() < end:
        time.sleep(0.01)
    assert engine.stats().cancelled == before + 1


# New weights.


def test_new_weights_take_effect(engine, checkpoint, requests, plain):
    model, _, _ = checkpoint
    old = {name: one.detach().clone() for name, one in model.named_parameters()}
    generator = torch.Generator().manual_seed(3)
    new = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in old.items()
        if "layers.1" in name or "icm" in name
    }
    before = plain(requests)
    engine.generate(requests[:3])
    try:
        engine.load_weights(new)
        after = plain(requests)
        assert [one.tokens for one in after] != [one.tokens for one in before]
        outputs = engine.generate(requests[:3])
        same(outputs, after[:3])
        assert sum(output.cached_rows for output in outputs) == 0
        with pytest.raises(ValueError, match="no parameter 'nonsense'"):
            engine.load_weights({"nonsense": torch.zeros(1)})
        with pytest.raises(ValueError, match="is of shape"):
            engine.load_weights({next(iter(new)): torch.zeros(1)})
        same(engine.generate(requests[:3]), after[:3])
    finally:
        engine.load_weights(old)
    same(engine.generate(requests[:3]), before[:3])


def test_requests_that_run_go_on_under_new_weights(engine, checkpoint, long):
    model, _, _ = checkpoint
    short = replace(long, sampling=replace(long.sampling, max_reasoning_tokens=40))
    handles = [engine.submit(replace(short, prompt=[60 + k])) for k in range(3)]
    name, value = next(iter(model.named_parameters()))
    engine.load_weights({name: value.detach().clone()})
    assert all(len(handle.result().tokens) == 44 for handle in handles)
