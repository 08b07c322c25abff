"""Token ids of training texts, computed once."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from retrv_r1.model.tokens import encode_texts


class KnownTexts:
    """Token ids by text, cut to ``most`` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int | None = None) -> None:
        self.tokenizer, self.most = tokenizer, most
        self._ids: dict[str, list[int]] = {}

    def learn(self, texts: Iterable[str]) -> None:
        """Encodes the texts that are not known yet, all at once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        for text, ids in zip(new, encode_texts(self.tokenizer, new), strict=True):
            self._ids[text] = ids[: self.most]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        if text not in self._ids:
            self.learn([text])
        return self._ids[text]
