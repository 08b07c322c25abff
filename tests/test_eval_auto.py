"""The threshold of mode auto: chosen by hand-made lists, written to the config, drawn."""

from __future__ import annotations

import json

import pytest
from eval_fixtures import write_cell

from retrv_r1.eval import EvalError, fit_auto_threshold
from retrv_r1.eval.auto import AutoFit, AutoList, draw, fit
from retrv_r1.rerank.steps import confidence
from retrv_r1.types import RetrvError

pytest_plugins = ("eval_fixtures",)

FAST, REASON = 3, 100


def lists(*rows: tuple[float, bool, bool], times: int = 1) -> list[AutoList]:
    """Lists of a fast score and whether fast and reasoned answers are right."""
    return [AutoList(*row, fast_tokens=FAST, reason_tokens=REASON) for row in rows] * times


# Reasoning mends three lists of ten, the two with the least scores and one that seemed sure, and
# spoils one that was sure.
SURE = [(0.3 + n / 20, True, True) for n in range(5)]
MENDED = [(0.1, False, True), (0.2, False, True), *SURE, (0.8, False, True), (0.9, True, True)]
TEN = lists(*MENDED, (0.95, True, False))


def test_the_smallest_threshold_that_keeps_the_gain_is_chosen():
    found = fit(TEN)
    assert found.threshold == pytest.approx(0.25) and found.meets
    assert (found.fast, found.reason, found.lists) == (0.7, 0.9, 10)
    assert found.gain == pytest.approx(0.2) and found.gain_error == pytest.approx(0.2)
    assert found.accuracy == 0.9 and found.share == pytest.approx(1)
    assert found.tokens == pytest.approx((10 * FAST + 2 * REASON) / (10 * REASON))
    assert [p.threshold for p in found.points] == sorted({p.threshold for p in found.points})
    assert (found.points[0].threshold, found.points[-1].threshold) == (0.0, 1.0)
    assert found.points[0].accuracy == 0.7 and found.points[-1].accuracy == 0.9
    half = fit(TEN, gain=0.5)
    assert half.threshold == pytest.approx(0.15) and half.accuracy == 0.8
    assert "100% of the gain at 23% of the tokens" in str(found)


def test_without_such_a_threshold_it_is_the_best_trade_off():
    """Of two mended lists one seemed sure: nearly all must be reasoned about to get it."""
    late = lists(*((n / 10, n not in (2, 8), True) for n in range(1, 10)))
    found = fit(late)
    assert not found.meets and found.threshold == pytest.approx(0.25)
    assert found.share == pytest.approx(0.5) and "best trade-off" in str(found)


def test_where_reasoning_gains_nothing_it_is_never_done():
    found = fit(lists((0.1, True, False), (0.2, False, False), (0.9, True, True)))
    assert (found.threshold, found.share, found.meets) == (0.0, 0.0, False)
    assert found.tokens == pytest.approx(FAST / REASON)
    assert "reasoning gains nothing: the threshold is 0" in str(found)
    with pytest.raises(EvalError, match="at least one list"):
        fit([])


def test_a_fast_answer_is_as_sure_as_its_best_score_or_that_nothing_fits(
    tmp_path, model_files, ranker
):
    root = tmp_path / "set"
    write_cell(root, split="val")
    ranker.none = 0.75
    ranker.reverses, ranker.scores = False, [0.2, 0.04, 0.01]
    found = fit_auto_threshold(model_files, root, k=3)
    assert [point.threshold for point in found.points] == [0.0, 1.0], "all lists are at 0.75"
    ranker.none = 0.1
    assert fit_auto_threshold(model_files, root, k=3).points == found.points
    assert (confidence(0.2, 0.75), confidence(0.2, 0.1), confidence(0.2, None)) == (0.75, 0.2, 0.2)


def test_it_is_fitted_on_validation_lists_and_written(tmp_path, model_files, ranker):
    """The stand-in is right in two of three lists, and where it reasons, in one."""
    pytest.importorskip("matplotlib")
    root = tmp_path / "set"
    write_cell(root, split="val")
    found = fit_auto_threshold(model_files, root, k=6, plot=tmp_path / "auto.png")
    assert isinstance(found, AutoFit)
    assert (found.lists, found.threshold) == (3, 0.0)
    assert (found.fast, found.reason) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    written = json.loads((model_files / "config.json").read_text())
    assert written == {"model_type": "x", "score_temperature": 2.0, "auto_threshold": 0.0}
    draw(fit(TEN), tmp_path / "ten.png")
    for name in ("auto", "ten"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_lists_of_several_data_sets_count_alike(tmp_path, model_files, ranker):
    roots = [tmp_path / name for name in ("one", "two")]
    for root in roots:
        write_cell(root, split="val")
    alone, together = (fit_auto_threshold(model_files, r, k=6) for r in (roots[:1], roots))
    assert (alone.lists, together.lists) == (3, 6)
    assert together.points == alone.points
    assert fit_auto_threshold(model_files, roots, k=6, limit=2).lists == 4
    (roots[1] / "query").rename(tmp_path / "away")
    with pytest.raises(RetrvError, match="two has no `query` folder"):
        fit_auto_threshold(model_files, roots, k=6)
