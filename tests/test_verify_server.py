"""A running server gives the golden scores in every dialect, with many requests at once."""

from __future__ import annotations

import pytest
from client_tools import KEY

from retrv_r1.verify.comparing import all_passed
from retrv_r1.verify.dialects import FORMS
from retrv_r1.verify.golden import cases, read_golden
from retrv_r1.verify.server import ServerRefuses, compare_server

pytest_plugins = "client_fixtures"


def test_every_dialect_gives_the_golden_scores(served):
    golden = read_golden("tiny")
    few = [case for case in cases() if case.name.startswith(("both", "text → texts, 5"))]
    few = [case for case in few if len(case.asked.candidates) in (5, 60)]
    assert len(few) == 6 and {case.mode for case in few} == {"fast", "reason"}
    found = list(compare_server(served.url, golden, few, batches=(1, 8), bound=1e-5, key=KEY))
    assert [one.what.split()[-1] for one in found] == ["superset", *(one.name for one in FORMS)]
    assert [one.batch for one in found] == [1] + [8] * len(FORMS)
    for one in found:
        assert all_passed([one]), one


def test_a_server_that_refuses_is_named(served):
    golden = read_golden("tiny")
    with pytest.raises(ServerRefuses, match="answered 401"):
        list(compare_server(served.url, golden, cases()[:1], batches=(1,), bound=1, key="wrong"))
