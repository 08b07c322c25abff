"""Near twins: the details that names state, and the queries that ask for one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from icons_fixtures import icon_corpus

from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.detail import Twins, detail_queries
from retrv_r1.data.icons.detail_words import Detail, details, words_of
from retrv_r1.data.icons.queries import change_phrases, changed


def picture(code: str, **more: str) -> IconRow:
    return replace(icon_corpus().rows[0], code=code, name=code, skin=more.get("skin", ""))


def found(code: str, kind: str) -> tuple[str, str] | None:
    """Value and frame of a detail of a name."""
    return next(((d.value, d.frame) for d in details(picture(code)) if d.kind == kind), None)


@pytest.mark.parametrize(
    ("code", "kind", "value", "frame"),
    [
        ("arrow left", "direction", "left", "arrow"),
        ("arrow left up", "direction", "up left", "arrow"),
        ("arrow up left", "direction", "up left", "arrow"),
        ("arrow left right", "direction", "left right", "arrow"),
        ("chevron double left", "count", "double", "chevron left"),
        ("chevrons left", "count", "double", "chevron left"),
        ("chevron left", "count", "single", "chevron left"),
        ("user plus", "badge", "plus", "user"),
        ("add user", "badge", "plus", "user"),
        ("bell off", "badge", "off", "bell"),
        ("user", "badge", "", "user"),
        ("four oclock", "clock", "4:00", "clock"),
        ("four thirty", "clock", "4:30", "clock"),
        ("clock 4", "clock", "4:00", "clock"),
        ("dice 3", "dice", "three", "die"),
        ("card ace spades", "card", "ace of spades", "card"),
        ("battery low", "level", "low", "battery"),
        ("circle number 5", "character", "5", "circle"),
        ("alpha b box", "character", "b", "square"),
        ("circle arrow left", "frame", "circle", "arrow left"),
    ],
)
def test_a_name_states_its_details(code: str, kind: str, value: str, frame: str) -> None:
    assert found(code, kind) == (value, frame)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("lock screen", "badge"), ("circle plus", "badge"), ("user remove", "badge"),
        ("message circle", "frame"), ("arrows left right", "count"), ("dice 7", "dice"),
        ("clock 13", "clock"), ("circle x", "character"),
    ],
)  # fmt: skip
def test_a_name_states_no_detail_that_it_does_not_mean(code: str, kind: str) -> None:
    detail = found(code, kind)
    assert detail is None or detail[0] == ""


def test_the_skin_of_one_person_is_a_detail_and_that_of_two_is_none() -> None:
    assert any(d.value == "medium-dark" for d in details(picture("baby", skin="medium dark")))
    assert not any(d.kind == "skin" for d in details(picture("kiss", skin="light and dark")))


def test_queries_say_details_in_words() -> None:
    def said(kind: str, value: str, named: str) -> str:
        return words_of(Detail(kind, value, named, named), named, 0)

    assert said("direction", "up left", "arrow") == "arrow pointing up and to the left"
    assert said("clock", "4:30", "clock") == "clock at half past four"
    assert said("badge", "plus", "user") == "user with a plus"
    assert said("badge", "off", "bell") == "crossed out bell"
    assert said("character", "5", "circle") == "number 5 in a circle"
    assert said("skin", "dark", "baby") == "baby with dark skin tone"


def test_twins_share_a_set_and_a_frame_and_differ_in_the_value() -> None:
    twins = Twins(icon_corpus().rows)
    for (prefix, kind, frame), members in twins.groups.items():
        assert {t.row.set for t in members} == {prefix}
        assert {(t.detail.kind, t.detail.frame) for t in members} == {(kind, frame)}
        assert len({t.detail.value for t in members}) > 1
    filled = next(r for r in twins.rows if r.set == "tabler" and r.code == "dog" and r.styles)
    plain = next(r for r in twins.rows if r.set == "tabler" and r.code == "dog" and not r.styles)
    assert twins.details_of(filled)["fill"] == "filled"
    assert twins.details_of(plain)["fill"] == "outline"


def test_everything_with_the_thing_and_its_detail_is_relevant_and_no_twin_is() -> None:
    rows = [r for r in icon_corpus().rows if r.set in ("lucide", "carbon")]
    twins = Twins(rows, ("badge",))
    drafts = detail_queries(twins, 100, np.random.default_rng(0), "test", listed=True)
    assert {draft.details["detail"]["value"] for draft in drafts} >= {"plus", "off"}
    by_did = {f"200:{row.row}": row for row in rows}
    for draft in drafts:
        wanted = draft.target["code"]
        assert {by_did[p].code for p in draft.positives} == {wanted}
        assert {by_did[p].set for p in draft.positives} == {"lucide", "carbon"}
        assert all(by_did[n].code != wanted for n in draft.negatives)


def test_a_list_holds_the_answer_and_siblings_of_one_set() -> None:
    rows = [r for r in icon_corpus().rows if r.set in ("lucide", "carbon")]
    twins = Twins(rows, ("badge",))
    by_did = {f"200:{row.row}": row for row in rows}
    for draft in detail_queries(twins, 30, np.random.default_rng(0), "test", listed=True):
        assert len(set(draft.listed)) == len(draft.listed) <= 50
        assert len({by_did[name].set for name in draft.listed}) == 1
        assert draft.positives[0] in draft.listed
        thing = draft.target["code"].split()[0]
        siblings = [n for n in draft.listed[:16] if by_did[n].code.split()[0] == thing]
        assert len(siblings) >= 10


def test_a_change_leads_to_the_twin_of_the_pictures_own_hand_first() -> None:
    twins = Twins([r for r in icon_corpus().rows if r.set in ("emojione", "lucide")])
    drafts = changed(twins, 200, np.random.default_rng(0), "test")
    by_did = {f"200:{row.row}": row for row in twins.rows}
    kinds = {draft.kind for draft in drafts}
    assert {"skin", "fill", "badge", "direction"} <= kinds
    for draft in drafts:
        assert draft.image is not None
        answer = by_did[draft.positives[0]]
        assert answer.set == draft.image.set
        assert draft.details["was"] != draft.details["detail"]["value"]
        if draft.kind != "fill":
            assert answer.styles == draft.image.styles


def test_what_points_is_asked_to_point_and_what_does_not_is_not() -> None:
    twins = Twins(icon_corpus().rows, ("direction",))
    target = next(t for t in twins.askable() if t.detail.value == "left")
    assert change_phrases(target)[0] == "pointing left"
    other = replace(target, detail=Detail("direction", "left", "align", "align"))
    assert change_phrases(other)[0] == "left instead"
