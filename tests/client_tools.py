"""Libraries that only the tests of integrations and clients need, and what clients must be told."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest


def client_library(name: str) -> Any:
    """A module of ``requirements/clients.txt``.

    Skips the calling test, or module of tests, without it; with RETRV_CLIENTS, which
    ``make test-clients`` sets, a missing one fails.
    """
    if os.environ.get("RETRV_CLIENTS"):
        return importlib.import_module(name)
    reason = f"needs {name}, of requirements/clients.txt: make test-clients"
    return pytest.importorskip(name, reason=reason)


KEY = "a-key-of-the-tests"
QUERY = "a red apple"
TEXTS = ("a green pear", "a red apple", "a blue whale", "the moon at night", "red cherries")


@dataclass(frozen=True)
class Served:
    """A running server.

    Args:
        url: its address, without a path.
        expected: index and score of each of ``TEXTS`` for ``QUERY``, best first, as a reranker in
            this process ranks them.
    """

    url: str
    expected: list[tuple[int, float]]

    def agrees(self, found: Iterable[tuple[int, float]], top: int | None = None) -> bool:
        """Whether a client was told these indices, in this order and with these scores."""
        given, wanted = list(found), self.expected[:top]
        assert [index for index, _ in given] == [index for index, _ in wanted]
        assert [score for _, score in given] == pytest.approx([s for _, s in wanted], abs=1e-5)
        return True
