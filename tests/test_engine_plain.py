"""The reference engine under a scripted model: what it may write, and which rows it computes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_doubles import (
    ANSWER,
    END,
    END_ANSWER,
    END_LOOK,
    END_THINK,
    GOOD,
    LABELS,
    LOOK,
    NAMES,
    NONE,
    PROMPT,
    SPAN,
    STRANGE,
    THINK,
    WORD,
    Scripted,
    request,
)

from retrv_engine import FeatureRows, Output, PlainEngine, Sampling


def run(plan: list[int], **values) -> tuple[Output, list[tuple[int, tuple[int, ...]]]]:
    model = Scripted({PROMPT: plan})
    (output,) = PlainEngine(model, NAMES).generate([request(**values)])
    return output, model.seen[PROMPT]


def test_a_request_writes_its_protocol_and_splices_what_it_inspects():
    output, rows = run(GOOD)
    assert list(output.tokens) == GOOD
    assert (output.answer, output.inspected, output.inspected_rows) == (2, (1,), 4)
    assert output.well_formed
    assert output.label_logits.tolist() == [0.0, 0.0, 10.0]
    at = {"prompt": 0, "tokens": 3, "span": 8, "after": 10}
    assert rows == [
        (PROMPT, (0, 0, 0)),
        (PROMPT + 900, (1, 1, 1)),
        (PROMPT + 900, (2, 2, 2)),
        *((t, (at["tokens"] + i,) * 3) for i, t in enumerate(GOOD[:5])),
        # Grid positions, from where the span stands.
        *((SPAN + 1, (at["span"], at["span"] + y, at["span"] + x)) for y in (0, 1) for x in (0, 1)),
        # The span advances by two, not by its four rows.
        *((t, (at["after"] + i,) * 3) for i, t in enumerate(GOOD[5:8])),
    ]


def test_the_rows_of_a_span_are_fed_in_one_step():
    model = Scripted({PROMPT: GOOD})
    PlainEngine(model, NAMES).generate([request()])
    # prompt and <think>; word; look; label, end of look and span; word; </think> and <answer>
    assert model.calls == [(1, 4), (1, 1), (1, 1), (1, 6), (1, 1), (1, 2)]


def test_fast_mode_answers_at_once():
    output, rows = run([ANSWER, LABELS[1], END_ANSWER], reason=False)
    assert list(output.tokens) == [ANSWER, LABELS[1], END_ANSWER]
    assert output.answer == 1 and output.well_formed and output.inspected == ()
    assert [i for i, _ in rows] == [PROMPT, PROMPT + 900, PROMPT + 900, ANSWER]


def test_a_model_that_wants_no_candidate_answers_with_one_and_is_well_formed():
    plan = [*GOOD[:-2], NONE, END_ANSWER]
    output, _ = run(plan, none_label=NONE)
    assert output.well_formed and output.tokens[-2] in LABELS[:3]
    assert (output.label_logits.tolist(), output.none_logit) == ([0.0, 0.0, 0.0], 10.0)
    output, _ = run(plan)
    assert not output.well_formed and output.none_logit is None


def test_the_label_for_no_candidate_is_nothing_to_inspect():
    output, _ = run([THINK, LOOK, NONE, END_LOOK, END_THINK], none_label=NONE)
    assert not output.well_formed and NONE not in output.tokens
    assert output.inspected == (0,)


def test_biases_of_labels_change_the_answer_and_nothing_else():
    plain, rows = run(GOOD)
    output, seen = run(GOOD, label_bias=[0.0, 11.0, 0.5])
    assert (output.answer, output.label_logits.tolist()) == (1, [0.0, 11.0, 10.5])
    assert output.well_formed and output.inspected == plain.inspected and seen == rows[: len(seen)]
    assert output.tokens[:-2] == plain.tokens[:-2] and output.tokens[-2] == LABELS[1]
    assert output.logprobs[-2] == pytest.approx(float(output.label_logits.log_softmax(-1)[1]))
    output, _ = run(GOOD, label_bias=[0.0, 11.0, 0.5], none_label=NONE)
    assert (output.answer, output.none_logit) == (1, 0.0)


def test_answers_are_drawn_with_their_biases():
    drawn = Sampling(temperature=1.0)
    plan = [ANSWER, LABELS[0], END_ANSWER]
    bias = [-10.0, 1.0, 0.0]  # the scripted label has a logit of 10
    said = [
        run(plan, reason=False, label_bias=bias, sampling=replace(drawn, seed=seed))[0].answer
        for seed in range(200)
    ]
    assert 0.45 < said.count(1) / 200 < 0.7 and said.count(0) and said.count(2)


@pytest.mark.parametrize(
    "bias, message", [([1.0], "1 biases for 3"), ([1.0, 2.0, math.nan], "finite")]
)
def test_biases_that_cannot_be_are_refused(bias, message):
    with pytest.raises(ValueError, match=message):
        request(label_bias=bias)


def test_refused_inspections_are_counted_and_cost_nothing():
    # In the place of the second wish stands END_THINK, the next best.
    plan = [THINK, LOOK, LABELS[0], END_LOOK, LOOK, ANSWER, LABELS[0], END_ANSWER]
    output, _ = run(plan, sampling=Sampling(max_inspections=1))
    assert (output.inspected, output.refused, output.well_formed) == ((0,), 1, True)
    output, _ = run(plan, sampling=Sampling(max_inspections=2))
    assert (output.refused, len(output.inspected)) == (0, 2)


def test_the_label_for_no_candidate_must_be_its_own():
    with pytest.raises(ValueError, match="label of a candidate"):
        request(none_label=LABELS[1])


PLANS = {
    "answer without closing": ([THINK, WORD, ANSWER], False),
    "no answer tag": ([THINK, WORD, END_THINK, WORD, LABELS[0]], False),
    "no label as answer": ([THINK, WORD, END_THINK, ANSWER, WORD], False),
    "a label that is no candidate": ([THINK, WORD, END_THINK, ANSWER, LABELS[3]], False),
    "an inspection of nothing": ([THINK, LOOK, WORD, 0, END_THINK, ANSWER, LABELS[0]], False),
    "the end of the text": ([THINK, END, END_THINK, ANSWER, LABELS[0]], False),
    "a stray closing tag": ([THINK, END_LOOK, END_THINK, ANSWER, LABELS[0]], False),
    "a token that is banned": ([THINK, STRANGE, END_THINK, ANSWER, LABELS[0]], False),
    "no thought at all": ([THINK, END_THINK, ANSWER, LABELS[0]], True),
    "a label in a sentence": ([THINK, LABELS[1], END_THINK, ANSWER, LABELS[0]], True),
}


@pytest.mark.parametrize("plan, well_formed", PLANS.values(), ids=PLANS)
def test_whatever_the_model_wants_the_output_is_valid(plan, well_formed):
    output, _ = run(plan, banned=(STRANGE,))
    tokens = list(output.tokens)
    assert tokens[0] == THINK and tokens.count(THINK) == tokens.count(END_THINK) == 1
    assert tokens[-4:-2] == [END_THINK, ANSWER] and tokens[-1] == END_ANSWER
    assert tokens[-2] == LABELS[output.answer] and output.answer < 3
    assert {END, STRANGE}.isdisjoint(tokens)
    assert output.well_formed is well_formed
    assert len(output.logprobs) == len(tokens)


def test_a_candidate_is_inspected_at_most_once():
    look = [LOOK, LABELS[0], END_LOOK]
    output, rows = run([THINK, *look, *look, END_THINK, ANSWER, LABELS[0]])
    assert sorted(output.inspected) == [0, 1] and output.inspected[0] == 0
    assert not output.well_formed, "it asked for the same candidate again"
    assert [i for i, _ in rows].count(SPAN) == 2, "candidate 0 has two rows, spliced in once"
    assert output.inspected_rows == 2 + 4


@pytest.mark.parametrize("limit, candidates, looks", [(0, 3, 0), (1, 3, 1), (4, 2, 2), (4, 3, 3)])
def test_inspections_end_at_the_limit_or_with_the_candidates(limit, candidates, looks):
    plan = [THINK, *[t for k in (0, 1, 2, 0) for t in (LOOK, LABELS[k], END_LOOK)]]
    sampling = Sampling(max_inspections=limit)
    output, _ = run([*plan, END_THINK], candidates=candidates, sampling=sampling)
    assert output.inspected == tuple(range(looks))


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_endless_thought_is_closed(limit):
    output, _ = run([THINK, *[WORD] * 500], sampling=Sampling(max_reasoning_tokens=limit))
    assert list(output.tokens[:-3]) == [THINK, *[WORD] * (limit - 1), END_THINK]
    assert not output.well_formed
    assert output.logprobs[-4] == 0.0


def test_requests_of_a_batch_do_not_touch_each_other():
    """Lengths, plans and inspections differ; sequences end and leave at different steps."""
    look = [LOOK, LABELS[2], END_LOOK, LOOK, LABELS[0], END_LOOK]
    plans = {
        PROMPT: GOOD,
        PROMPT + 1: [THINK, END_THINK, ANSWER, LABELS[0]],
        PROMPT + 2: [THINK, *look, *[WORD] * 6, END_THINK, ANSWER, LABELS[1]],
        PROMPT + 3: [ANSWER, LABELS[1]],
        PROMPT + 4: [THINK, WORD, LOOK, LABELS[0], END_LOOK, END_THINK, ANSWER, LABELS[0]],
    }
    requests = [request(n, length=2 + 5 * n % 7, reason=n != 3) for n in range(5)]
    alone: dict[int, Any] = {}
    for number, one in enumerate(requests):
        model = Scripted(plans)
        (alone[number],) = PlainEngine(model, NAMES).generate([one])
        alone[number] = alone[number], model.seen[PROMPT + number]
    for size in (2, 5, 16):
        model = Scripted(plans)
        outputs = PlainEngine(model, NAMES, batch_size=size).generate(requests)
        for number, output in enumerate(outputs):
            expected, rows = alone[number]
            assert model.seen[PROMPT + number] == rows
            assert output.tokens == expected.tokens
            assert output.logprobs == expected.logprobs
            assert output.well_formed == expected.well_formed
            assert torch.equal(output.label_logits, expected.label_logits)


def test_no_requests_and_bad_ones():
    engine = PlainEngine(Scripted({}), NAMES)
    assert engine.generate([]) == []
    with pytest.raises(ValueError, match="batch_size"):
        PlainEngine(Scripted({}), NAMES, batch_size=0)
    with pytest.raises(ValueError, match="at least one candidate"):
        replace(request(), labels=())
    with pytest.raises(ValueError, match="full rows of every candidate"):
        replace(request(), inspections=())
    with pytest.raises(ValueError, match="full rows of every candidate"):
        replace(request(), source=None)
    assert not replace(request(), inspections=(), source=None, reason=False).reason


def test_what_a_feature_source_raises_is_raised():
    one = request()
    one.source.bad.add(1)
    with pytest.raises(OSError, match="cannot read"):
        PlainEngine(Scripted({PROMPT: GOOD}), NAMES).generate([one])


def test_candidates_that_are_wanted_together_are_loaded_together():
    shared = request().source
    requests = [replace(request(n), source=shared) for n in range(3)]
    look = [THINK, LOOK, LABELS[1], END_LOOK, END_THINK, ANSWER, LABELS[0]]
    plans = {PROMPT: look, PROMPT + 1: look, PROMPT + 2: [THINK, LOOK, LABELS[2], *look[3:]]}
    PlainEngine(Scripted(plans), NAMES).generate(requests)
    assert shared.calls == [[1, 2]]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"length": 5}, "a table of 4"),
        ({"length": 0}, "a table of 4"),
        ({"first": -1}, "a table of 4"),
        ({"width": 3}, "do not fill a grid of width 3"),
        ({"key": 2**63}, "key must be in"),
    ],
)
def test_feature_rows_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FeatureRows(torch.zeros(4, 2), **{"first": 0, "length": 4, "key": 1} | values)
