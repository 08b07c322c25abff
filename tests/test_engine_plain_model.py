"""The reference engine under a real model: it attends to the rows that a plain forward sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from engine_doubles import Steered, names_of, real_requests
from torch import Tensor

from retrv_engine import Output, PlainEngine, Request, Vocabulary, plain
from retrv_engine.request import length_of


@pytest.fixture(scope="module")
def names(processor) -> Vocabulary:
    return names_of(processor)


@pytest.fixture(scope="module")
def requests(processor) -> list[Request]:
    return real_requests(processor.tokens.labels)


@torch.inference_mode()
def plain_logits(model, names: Vocabulary, one: Request, output: Output) -> Tensor:
    """Logits after every written token, from one uncached pass over the whole sequence."""
    pieces, ends, looked = list(one.prompt), [], iter(output.inspected)
    for token in output.tokens:
        pieces.append(token)
        if token == names.inspect_end:
            pieces += one.source.pieces[next(looked)]
        ends.append(length_of(pieces) - 1)
    embeds, positions, at = [], [], 0
    for piece in pieces:
        if isinstance(piece, int):
            embeds.append(model.get_input_embeddings()(torch.tensor([piece])))
            positions.append(torch.full((3, 1), at))
            at += 1
            continue
        embeds.append(piece.rows)
        if not piece.width:
            positions.append(torch.arange(piece.length).expand(3, -1) + at)
            at += piece.length
            continue
        height = piece.length // piece.width
        y, x = torch.meshgrid(torch.arange(height), torch.arange(piece.width), indexing="ij")
        grid = torch.stack([torch.zeros_like(x), y, x]).flatten(1)
        positions.append(grid + at)
        at += max(height, piece.width)
    hidden = model.language_model(
        inputs_embeds=torch.cat(embeds)[None], position_ids=torch.cat(positions, 1)[:, None]
    ).last_hidden_state
    return model.get_output_embeddings()(hidden[0, ends])


def permitted(names: Vocabulary, one: Request, written: tuple[int, ...], size: int) -> Tensor:
    """Which tokens may follow what is written."""
    looked = [b for a, b in pairwise(written) if a == names.inspect_start]
    may = torch.zeros(size, dtype=torch.bool)
    if written[-1] in (names.answer_start, names.inspect_start):
        may[list(one.labels)] = True
        if written[-1] == names.inspect_start:
            may[looked] = False
        return may
    barred = {names.answer_start, names.answer_end, names.think_start, names.inspect_end, names.end}
    if len(looked) == min(one.sampling.max_inspections, len(one.labels)):
        barred.add(names.inspect_start)
    may[:] = True
    may[sorted(barred)] = False
    return may


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_cached_steps_equal_one_plain_pass_over_the_final_sequence(
    model, names, requests, temperature
):
    requests = [
        replace(r, sampling=replace(r.sampling, temperature=temperature, seed=seed))
        for seed, r in enumerate(requests, 40)
    ]
    engine = PlainEngine(Steered(model, names), names, batch_size=len(requests))
    outputs = engine.generate(requests)
    assert sum(len(output.inspected) for output in outputs) >= 4, "inspections must happen"
    assert len({len(output.tokens) for output in outputs}) > 2, "lengths must differ"
    for one, output in zip(requests, outputs, strict=True):
        tokens = output.tokens
        logits = Steered(model, names).steer(plain_logits(model, names, one, output))
        due = tokens.index(names.answer_start)
        expected = logits[due, torch.tensor(one.labels)]
        torch.testing.assert_close(output.label_logits, expected, atol=1e-4, rtol=1e-4)
        assert tokens[-2] == one.labels[output.answer]
        for n in range(1, len(tokens)):
            if output.logprobs[n] == 0.0:  # forced
                continue
            may = permitted(names, one, tokens[:n], logits.shape[-1])
            scores = logits[n - 1].masked_fill(~may, -torch.inf) / (temperature or 1.0)
            assert abs(float(scores.log_softmax(-1)[tokens[n]]) - output.logprobs[n]) < 1e-4
            if not temperature:
                assert float(scores.max() - scores[tokens[n]]) < 1e-4


def test_padding_rows_are_never_read(model, names, requests, monkeypatch):
    """Whatever numbers stand in the padding, outputs are the same."""
    pad_left: Callable = plain._pad_left
    padded = 0

    def poisoned(chunks):
        nonlocal padded
        embeds, positions, present = pad_left(chunks)
        padded += int((present == 0).sum())
        embeds[present == 0] = 1e4
        positions[:, present == 0] = 77
        return embeds, positions, present

    eager = Steered(model, names)
    expected = PlainEngine(eager, names).generate(requests)
    monkeypatch.setattr(plain, "_pad_left", poisoned)
    for output, other in zip(expected, PlainEngine(eager, names).generate(requests), strict=True):
        assert output.tokens == other.tokens
        torch.testing.assert_close(output.label_logits, other.label_logits)
    assert padded > 50


def test_sampling_follows_its_seed_alone(model, names, requests):
    eager = Steered(model, names)

    def tokens(seeds: list[int]) -> list[Sequence[int]]:
        chosen = [
            replace(requests[0], sampling=replace(requests[0].sampling, temperature=1.5, seed=s))
            for s in seeds
        ]
        return [o.tokens for o in PlainEngine(eager, names).generate(chosen)]

    first = tokens([1, 2, 3, 4])
    assert len(set(first)) > 1, "seeds must matter"
    assert tokens([4, 1]) == [first[3], first[0]]
