"""A chain of thought as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrv_r1.model.processing import RetrvR1Processor


def reasoning_text(
    processor: RetrvR1Processor, written: Sequence[int], numbers: Sequence[int]
) -> str:
    """The text between the think tags, where ``[index + 1]`` stands for a label.

    Args:
        written: tokens of an output.
        numbers: index in the caller's list, for each label of the prompt.
    """
    tokens = processor.tokens
    if tokens.think_end not in written:
        return ""
    number = dict(zip(tokens.labels, numbers, strict=False))
    silent = {tokens.inspect_start, tokens.inspect_end}
    parts: list[str] = []
    plain: list[int] = []
    for token in (*written[1 : list(written).index(tokens.think_end)], None):
        if token is not None and token not in number and token not in silent:
            plain.append(token)
            continue
        parts.append(processor.tokenizer.decode(plain))
        plain = []
        if token in number:
            parts.append(f" [{number[token] + 1}]")
        elif token == tokens.inspect_start:
            parts.append(" inspect")
    return re.sub(r" {2,}", " ", "".join(parts)).strip()
