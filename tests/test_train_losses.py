"""Losses on the answers of lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from retrv_r1.train.corpus import Entry, ListExample
from retrv_r1.train.lists import ListBatch, ListCollator
from retrv_r1.train.losses import ListOutput, run_lists


@pytest.fixture(scope="module")
def batch(processor) -> ListBatch:
    """Lists of 3, 1 and 5 candidates; the last has no answer."""
    words = iter("abcdefghijklmnopqrst")
    lists = [
        ListExample(
            "cell",
            "",
            Entry(f"red {next(words)}", None, {}),
            [Entry(f"old {next(words)}", None, {}) for _ in range(size)],
            answer,
            list(range(size)),
        )
        for size, answer in ((3, 1), (1, 0), (5, None))
    ]
    return ListCollator(processor).collate(lists, np.random.default_rng(0), reason=0.0)


@pytest.fixture(scope="module")
def out(model, batch) -> ListOutput:
    with torch.no_grad():
        return run_lists(model, batch, None)


def by_hand(out: ListOutput, scale: float) -> float:
    """The mean over lists with an answer, list by list."""
    found, candidates = [], out.batch.candidates
    for b in candidates.answered.tolist():
        own = (candidates.owner == b).nonzero()[:, 0]
        query = out.content[candidates.queries[b]]
        shown = out.content[candidates.items[own]]
        goal = (scale * nn.functional.cosine_similarity(query[None], shown)).softmax(-1)
        logits = out.answer_logits()[b, out.batch.candidate_labels[own]]
        given = logits.float().log_softmax(-1)
        found.append(float((goal * (goal.log() - given)).sum()))
    return sum(found) / len(found)


@pytest.mark.parametrize("scale", [1.0, 20.0])
@torch.no_grad()
def test_likeness_compares_answers_with_content_tokens_within_each_list(out, scale):
    assert float(out.likeness_loss(scale)) == pytest.approx(by_hand(out, scale), abs=1e-5)
    assert by_hand(out, scale) > 0.01, "the distributions must differ for the test to see anything"


def test_likeness_teaches_the_answers_and_not_the_content_tokens(model, batch):
    out = run_lists(model, batch, None)
    content = out.content.detach().requires_grad_(True)
    hidden = out.hidden.detach().requires_grad_(True)
    replace(out, content=content, hidden=hidden).likeness_loss().backward()
    assert hidden.grad is not None and hidden.grad.any()
    assert content.grad is None


@torch.no_grad()
def test_likeness_of_lists_without_answers_is_nothing(out):
    candidates = replace(out.batch.candidates, answered=torch.zeros(0, dtype=torch.long))
    none = replace(out, batch=replace(out.batch, candidates=candidates))
    assert float(none.likeness_loss()) == 0


@torch.no_grad()
def test_label_hits_leave_none_of_these_out(out, processor):
    """The answer's label counts if it is the first of the labels, whatever else is higher."""
    labels = list(processor.tokens.labels)
    goal = out.batch.labels[torch.arange(3), out.batch.answer_rows + 1]

    class Head(nn.Module):
        """Logits that prefer "none of these", and then the answers of the first two lists."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(rows), len(processor.tokenizer))
            logits[torch.arange(2), goal[:2]] = 1.0
            logits[:, processor.tokens.none] = 2.0
            return logits

    told = replace(out, head=Head())
    assert told.label_hits(labels) == 2
    assert told.answer_loss()[1] == pytest.approx(1 / 3), "the list without an answer"
