"""A pytest plugin: libraries that only the tests of integrations and clients need."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def client_library(name: str) -> ModuleType:
    """A module of ``requirements/clients.txt``.

    Skips the calling test, or module of tests, without it; with RETRV_CLIENTS, which
    ``make test-clients`` sets, a missing one fails.
    """
    if os.environ.get("RETRV_CLIENTS"):
        return importlib.import_module(name)
    reason = f"needs {name}, of requirements/clients.txt: make test-clients"
    module: ModuleType = pytest.importorskip(name, reason=reason)
    return module
