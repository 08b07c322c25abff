"""Reasoning is told while it is written, as the text that it is in the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retrv_r1.rerank.events import Inspection, Reasoning
from retrv_r1.rerank.narration import Narrator
from retrv_r1.rerank.ordering import reasoning_text


def test_text_is_told_as_it_comes_whole_characters_and_single_spaces(processor):
    """However the tokens are split, the pieces make the text of the whole."""
    ids, decode = processor.tokens, processor.tokenizer.decode
    words = processor.tokenizer.encode("  a  red é😀 ", add_special_tokens=False)
    label = ids.labels[1]
    inner = [*words, ids.inspect_start, label, ids.inspect_end, *words, *words[:-1], label]
    written = [ids.think_start, *inner, ids.think_end, ids.answer_start, label, ids.answer_end]
    assert len(words) > len("a red é😀") - 2, "characters of several tokens"
    for size in (1, 2, 3, len(written)):
        narrator, events = Narrator(processor, [5, 7]), []
        for start in range(0, len(written), size):
            events += narrator.read(written[start : start + size])
        text = "".join(event.text for event in events if isinstance(event, Reasoning))
        assert text == "a red é😀 inspect [8] a red é😀 a red é😀 [8]"
        assert [event.index for event in events if isinstance(event, Inspection)] == [7]
        assert not any("\ufffd" in e.text for e in events if isinstance(e, Reasoning))
    assert reasoning_text(processor, written, [5, 7]) == text
    assert decode(words).split() == ["a", "red", "é😀"]


def test_every_text_is_told_as_it_is_decoded(processor):
    """Also bytes that are no characters, wherever the narrator forgets what it has told."""
    vocabulary = processor.tokenizer.get_vocab()
    special = set(processor.tokenizer.all_special_ids)
    ordinary = sorted(number for number in vocabulary.values() if number not in special)

    @given(st.lists(st.sampled_from(ordinary), max_size=80))
    def check(tokens: list[int]) -> None:
        narrator = Narrator(processor, [])
        written = [processor.tokens.think_start, *tokens, processor.tokens.think_end]
        events = [event for token in written for event in narrator.read([token])]
        whole = processor.tokenizer.decode(tokens)
        assert "".join(event.text for event in events).split() == whole.split()

    check()


def test_a_token_costs_the_same_wherever_it_is_in_the_text(processor, monkeypatch):
    decode, lengths = processor.tokenizer.decode, []

    def counting(tokens: Sequence[int], **options: Any) -> str:
        lengths.append(len(tokens))
        return decode(tokens, **options)

    monkeypatch.setattr(processor.tokenizer, "decode", counting)
    (word,) = processor.tokenizer.encode("a", add_special_tokens=False)[:1]
    narrator = Narrator(processor, [])
    for token in [processor.tokens.think_start, *[word] * 1000]:
        narrator.read([token])
    assert sum(lengths) < 20 * 1000
