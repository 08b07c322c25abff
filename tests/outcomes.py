"""A pytest plugin, ``-p outcomes``, that writes a line of JSON when a test ends.

Lines stay when the process is killed. The environment variable GPU_CHECK_OUTCOMES names the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_WEIGHT = {"passed": 0, "skipped": 1, "failed": 2}


class Outcomes:
    """Combines the reports of a test's setup, call and teardown."""

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
        """Records a test file that cannot be collected as a failure."""
        if report.failed:
            line = {"test": report.nodeid, "outcome": "failed", "why": _why(report)}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's controller receives the reports of all workers
        config.pluginmanager.register(Outcomes(Path(os.environ["GPU_CHECK_OUTCOMES"])))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The line that tells the error, or the reason of a skip."""
    told = report.longrepr
    if isinstance(told, tuple):
        return str(told[2])
    crash = getattr(told, "reprcrash", None)
    lines = (crash.message if crash else str(told)).strip().splitlines() or ["no message"]
    if crash:
        return lines[0]
    said = [line[2:].strip() for line in lines if line.startswith("E ")]
    return (said or lines)[-1]
