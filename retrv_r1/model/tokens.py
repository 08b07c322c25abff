"""Special tokens and tokenizers.

Candidate labels are single tokens, so that one forward pass gives a distribution over
candidates. Text that comes from outside is always encoded by :func:`encode_text`, which cannot
produce a special token, whatever the text looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retrv_engine import Vocabulary

MAX_CANDIDATES = 128
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
RETRV_TOKENS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<inspection-index-start>",
    "<inspection-index-end>",
    "<|content|>",
    "<|relation|>",
)
LABELS = tuple(f"<|cand_{k}|>" for k in range(1, MAX_CANDIDATES + 1))
NONE_OF_THESE = "<|none_of_these|>"
"""Label for "no candidate of the list"; never written, and unknown to older checkpoints."""
_SPECIAL = (*QWEN_TOKENS, *RETRV_TOKENS, *LABELS, NONE_OF_THESE)
MARGIN = 64
"""Tokens before a cut that may be others than those of the whole text."""
# Contractions, words with their leading space, single digits, punctuation, line ends, blanks.
_PRE_TOKENS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


@dataclass(frozen=True)
class TokenIds(Vocabulary):
    """Ids of all special tokens that prompts and answers are made of.

    Those that steer generation are the engines' :class:`Vocabulary`.

    Attributes:
        none: label for "no candidate of the list"; None if the tokenizer lacks it.
    """

    im_start: int
    vision_start: int
    vision_end: int
    image_pad: int
    content: int
    relation: int
    labels: tuple[int, ...]
    pad: int
    none: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenIds:
        """Looks up the ids.

        Raises:
            ValueError: the tokenizer lacks a special token.
        """
        vocabulary = tokenizer.get_vocab()
        missing = [t for t in (*QWEN_TOKENS, *RETRV_TOKENS, *LABELS) if t not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer lacks {missing[:3]}…: call add_retrv_tokens first")
        names = {
            "im_start": "<|im_start|>",
            "end": "<|im_end|>",
            "vision_start": "<|vision_start|>",
            "vision_end": "<|vision_end|>",
            "image_pad": "<|image_pad|>",
            "think_start": "<think>",
            "think_end": "</think>",
            "answer_start": "<answer>",
            "answer_end": "</answer>",
            "inspect_start": "<inspection-index-start>",
            "inspect_end": "<inspection-index-end>",
            "content": "<|content|>",
            "relation": "<|relation|>",
            "pad": "<|endoftext|>",
        }
        assert set(names) | {"labels", "none"} == {f.name for f in fields(cls)}
        ids = {field: vocabulary[token] for field, token in names.items()}
        labels = tuple(vocabulary[label] for label in LABELS)
        return cls(**ids, labels=labels, none=vocabulary.get(NONE_OF_THESE))


def add_retrv_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Adds our special tokens to a backbone's tokenizer; returns the number of new ones.

    Ordinary added tokens of the same name, such as Qwen3's ``<think>``, become special ones:
    otherwise text from outside could contain them.
    """
    known = len(tokenizer)
    added = [AddedToken(token, special=True) for token in _SPECIAL]
    tokenizer.add_tokens(added, special_tokens=True)
    return len(tokenizer) - known


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int, *, capitals: bool = True
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of ``vocab_size`` entries, all special tokens included.

    Args:
        capitals: tell capitals from small letters, for which a small vocabulary has no room.
    """
    tokenizer = Tokenizer(models.BPE())
    if not capitals:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*_SPECIAL],
        clean_up_tokenization_spaces=False,
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of untrusted text, in which names of special tokens are ordinary characters.

    Halves of surrogate pairs, which JSON can contain and UTF-8 cannot, become U+FFFD.
    """
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts, as :func:`encode_text` gives them, in a fraction of its time for each."""
    whole = [_whole(text) for text in texts]
    if not whole:
        return []
    return tokenizer(whole, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def encode_start(
    tokenizer: PreTrainedTokenizerBase, text: str, most: int
) -> tuple[list[int], bool]:
    """The first ``most`` ids of untrusted text, and whether it has more.

    Only as much of a long text is encoded as they need, or a few long texts would hold up the items
    of all other rankings. A cut changes the tokens of the word that it cuts, so the ids end
    ``MARGIN`` tokens before one.
    """
    size = 4 * most
    while size < len(text):
        ids = encode_text(tokenizer, text[:size])
        if len(ids) >= most + MARGIN:
            return ids[:most], True
        size *= 2
    ids = encode_text(tokenizer, text)
    return ids[:most], len(ids) > most


def encode_template(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of our own template text, in which special tokens may occur."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
