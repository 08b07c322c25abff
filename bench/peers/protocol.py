"""The loop of a peer's process: reads requests, writes answers. Needs only numpy."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

Generate: TypeAlias = Callable[[Sequence[np.ndarray], int], list[list[int]]]
"""(rows ``[n, d]`` of each prompt, tokens to write) → greedy tokens of each prompt.

Prompts that are the same array are copies of one prompt."""


def serve(start: Callable[[str, str, int], Generate]) -> None:
    """Starts an engine with the command line's arguments and answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    folder, weights, threads = sys.argv[1:]
    generate = start(folder, weights, int(threads))
    read = functools.cache(np.load)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens = generate([read(path) for path in asked["prompts"]], asked["tokens"])
        print(json.dumps({"tokens": tokens}), file=answers, flush=True)
