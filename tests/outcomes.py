"""A pytest plugin, ``-p outcomes``: a line of JSON for each test as it ends.

What has been written stays when the process is killed. The file is named by GPU_CHECK_OUTCOMES.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_WEIGHT = {"passed": 0, "skipped": 1, "failed": 2}


class Outcomes:
    """Adds up what setup, call and teardown of a test report."""

    def __init__(self, path: Path) -> None:
        self.path, self._seen = path, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        one = self._seen.setdefault(report.nodeid, {"seconds": 0.0, "outcome": "passed"})
        one["seconds"] = round(one["seconds"] + report.duration, 3)
        if _WEIGHT[report.outcome] > _WEIGHT[one["outcome"]]:
            one |= {"outcome": report.outcome, "why": _why(report)}
        if report.when == "teardown" or "crashed" in one.get("why", ""):
            line = {"test": report.nodeid, **one, **dict(report.user_properties)}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is a failure of its own."""
        if report.failed:
            line = {"test": report.nodeid, "outcome": "failed", "why": _why(report)}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of xdist: its controller hears of all tests
        config.pluginmanager.register(Outcomes(Path(os.environ["GPU_CHECK_OUTCOMES"])))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The line that says what went wrong, or why a test was left out."""
    told = report.longrepr
    if isinstance(told, tuple):
        return str(told[2])
    crash = getattr(told, "reprcrash", None)
    lines = (crash.message if crash else str(told)).strip().splitlines() or ["no message"]
    if crash:
        return lines[0]
    said = [line[2:].strip() for line in lines if line.startswith("E ")]
    return (said or lines)[-1]
