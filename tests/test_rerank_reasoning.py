"""The reasoning of a result: candidates by their place in the list, and no prompt structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rerank_doubles import Record

from retrv_engine import Output, Request, Sampling
from retrv_r1 import Reranker


class Fixed:
    """An engine that always says the same."""

    def __init__(self, **output) -> None:
        values = {
            "tokens": (0, 0, 0),
            "answer": 0,
            "inspected": (),
            "inspected_rows": 0,
            "well_formed": True,
            "logprobs": (),
        }
        self.output = Output(**values | output)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [self.output for _ in requests]


def test_reasoning_names_candidates_by_their_place_in_the_callers_list(model, processor):
    reranker = Reranker(model, processor, window=4)
    tokens = processor.tokens

    def words(text: str) -> list[int]:
        return processor.tokenizer(text)["input_ids"]

    written = [
        *(tokens.think_start, *words("close:"), tokens.labels[2], tokens.labels[0], *words(".")),
        *(tokens.inspect_start, tokens.labels[2], tokens.inspect_end, *words(" ü 😀, yes. so")),
        *(tokens.labels[2], tokens.think_end, tokens.answer_start, tokens.labels[2]),
        tokens.answer_end,
    ]
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0])
    reranker.engine = Fixed(
        tokens=tuple(written), answer=2, inspected=(2,), inspected_rows=4, label_logits=logits
    )
    result = reranker.rank("q", ["a", "b", "c", "d", "e", "f"])
    # The first window, of the last four, comes back as 4, 5, 3, 2; then 0, 1, 4, 5 are ranked.
    assert result.answer == 4 and result.inspected == (4,)
    assert result.reasoning == "close: [5] [1]. inspect [5] ü 😀, yes. so [5]"
    assert [line.index for line in result] == [4, 5, 1, 0, 3, 2]
    assert [line.inspected for line in result] == [True, *[False] * 5]
    assert result.tokens.inspected == 4


def test_reasoning_is_built_of_words_and_the_lists_own_labels(model, processor, tokenizer):
    """Prompt structure, text ends and labels beyond the list cannot be written by the model."""
    reranker = Reranker(model, processor)
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert len(special) == 143
    tokens = reranker.processor.tokens
    known = {tokens.think_start, tokens.think_end, tokens.answer_start, tokens.answer_end}
    known |= {tokens.inspect_start, tokens.inspect_end, *tokens.labels[:3]}
    record = Record(reranker)
    for seed in range(6):
        hot = Sampling(temperature=5.0, max_reasoning_tokens=60, seed=seed)
        result = reranker.rank("q", ["find", "a red apple", "a blue bird"], sampling=hot)
        assert not {name for name in tokenizer.all_special_tokens if name in result.reasoning}
    used = {token for output in record.outputs for token in output.tokens} & special
    assert used <= known and len(record.outputs) == 6
