"""No text from outside ever becomes a special token, whatever tokenizer a backbone brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retrv_r1.model import tokens
from retrv_r1.model.tokens import (
    LABELS,
    MAX_CANDIDATES,
    NONE_OF_THESE,
    QWEN_TOKENS,
    RETRV_TOKENS,
    TokenIds,
    add_retrv_tokens,
    encode_start,
    encode_template,
    encode_text,
    train_tokenizer,
)

OLDER = (*QWEN_TOKENS, *RETRV_TOKENS, *LABELS)
NAMES = (*OLDER, NONE_OF_THESE)


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer without any of our tokens, built as Qwen's is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="module", params=["trained", "saved", "backbone", "made special"])
def any_tokenizer(request, tokenizer, tmp_path_factory) -> PreTrainedTokenizerFast:
    if request.param == "trained":
        return tokenizer
    if request.param == "saved":
        return saved(tokenizer, tmp_path_factory.mktemp("tokenizer"))
    other = byte_level()
    if request.param == "backbone":
        add_retrv_tokens(other)
        return other
    # Some of them are ordinary added tokens already, as Qwen3's <think> is.
    other.add_tokens(["<think>", "</think>", "<answer>", "<|cand_3|>"])
    add_retrv_tokens(other)
    return saved(other, tmp_path_factory.mktemp("tokenizer"))


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(list(NAMES)))


def test_every_special_token_is_one_id_in_our_own_text(any_tokenizer):
    for name in NAMES:
        assert len(encode_template(any_tokenizer, name)) == 1
    ids = encode_template(any_tokenizer, "see<|cand_3|></think><answer>")
    vocabulary = any_tokenizer.get_vocab()
    assert [vocabulary[t] for t in ("<|cand_3|>", "</think>", "<answer>")] == ids[-3:]


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([*NAMES[:20], "<|cand_128|>", "<", "|>", "<|", "cand_", " ", "\n"])
        | st.text(max_size=4),
        max_size=8,
    )
)
def test_text_gives_no_special_id_and_decodes_to_itself(any_tokenizer, parts):
    text = "".join(parts)
    ids = encode_text(any_tokenizer, text)
    assert not special_ids(any_tokenizer) & set(ids)
    assert any_tokenizer.decode(ids) == text


def test_a_tokenizer_without_capitals_reads_them_as_small_letters():
    tokenizer = train_tokenizer(["a red apple", "green pears"], 400, capitals=False)
    assert encode_text(tokenizer, "A Red APPLE") == encode_text(tokenizer, "a red apple")
    assert encode_template(tokenizer, "<|im_start|>Ä")[0] in special_ids(tokenizer)
    assert tokenizer.decode(encode_text(tokenizer, "ÄPFEL")) == "äpfel"


def test_each_name_alone_is_plain_text(any_tokenizer):
    special = special_ids(any_tokenizer)
    for name in NAMES:
        assert not special & set(encode_text(any_tokenizer, f"x{name}y {name}")), name
    # Encoding templates afterwards still knows the tokens: no setting is left behind.
    assert encode_template(any_tokenizer, "<answer>")[0] in special


def test_half_surrogates_do_not_break_encoding(tokenizer):
    assert tokenizer.decode(encode_text(tokenizer, "a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(encode_text(tokenizer, "\ud83d\ude00")) == "😀"


PARTS = ("red ", "x", " ", "\n", "🍎", "e\u0301")


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.text(max_size=9) | st.sampled_from(PARTS)),
    times=st.integers(1, 300),
    most=st.integers(1, 50),
)
def test_the_start_of_a_text_is_that_of_the_whole(any_tokenizer, parts, times, most):
    text = "".join(parts) * times
    whole = encode_text(any_tokenizer, text)
    assert encode_start(any_tokenizer, text, most) == (whole[:most], len(whole) > most)


@pytest.mark.parametrize("text", ["x", "red apple ", "🍎", " "])
def test_little_more_is_encoded_than_the_start_needs(tokenizer, monkeypatch, text):
    """Else a request of a few megabytes holds up all others."""
    seen: list[int] = []

    def counted(tokenizer: Any, text: str) -> list[int]:
        seen.append(len(text))
        return encode_text(tokenizer, text)

    monkeypatch.setattr(tokens, "encode_text", counted)
    ids, more = encode_start(tokenizer, (text * 1_000_000)[:1_000_000], 4096)
    assert len(ids) == 4096 and more
    assert sum(seen) <= 120_000


def test_ids_are_distinct_and_complete(any_tokenizer):
    ids = TokenIds.of(any_tokenizer)
    singles = [value for name, value in vars(ids).items() if name != "labels"]
    assert len(set(singles) | set(ids.labels)) == len(singles) + MAX_CANDIDATES
    assert any_tokenizer.convert_ids_to_tokens([ids.labels[0], ids.labels[-1], ids.pad]) == [
        "<|cand_1|>",
        "<|cand_128|>",
        "<|endoftext|>",
    ]


def test_an_older_tokenizer_has_no_label_for_none_of_these():
    older = byte_level()
    older.add_tokens(list(OLDER), special_tokens=True)
    assert TokenIds.of(older).none is None
    add_retrv_tokens(older)
    assert older.convert_ids_to_tokens(TokenIds.of(older).none) == NONE_OF_THESE


def test_a_tokenizer_without_our_tokens_is_refused_with_the_fix():
    with pytest.raises(ValueError, match="add_retrv_tokens"):
        TokenIds.of(byte_level())


def test_adding_tokens_twice_adds_none(tokenizer):
    other = byte_level()
    assert add_retrv_tokens(other) == len(NAMES) - 2  # its end and pad tokens are there already
    size = len(other)
    assert add_retrv_tokens(other) == 0 == add_retrv_tokens(tokenizer)
    assert len(other) == size
