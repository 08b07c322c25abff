"""Statements on candidates: close ones are told apart by what they say, within few words."""

from __future__ import annotations

import pytest

from retrv_r1.model.details import (
    Shown,
    are_close,
    asked_for,
    asked_words,
    details_of,
    statement,
    states,
    with_detail,
)

FILLED = Shown("star", {"fill": "filled"})
OUTLINE = Shown("star", {"fill": "outline"})
HALF = Shown("star half", {"fill": "filled"})
CAR = Shown("car", {"fill": "outline"})
OFF = Shown("user slash", {"badge": "off"})
FOUR = Shown("four oclock", {"clock": "4:00"})
FIVE = Shown("five oclock", {"clock": "5:00"})
LONG = Shown(
    "person in manual wheelchair facing right medium dark skin tone", {"skin": "medium-dark"}
)


@pytest.mark.parametrize(
    ("one", "other", "close"),
    [
        (FILLED, OUTLINE, True),
        (FILLED, HALF, True),
        (OUTLINE, CAR, False),  # a detail of one kind alone makes nothing alike
        (OFF, Shown("user"), True),
        (FOUR, FIVE, True),
        (Shown("die two", {"dice": "two"}), Shown("die six", {"dice": "six"}), True),
        (Shown("die two"), Shown("die six"), False),
        (Shown("arrow up", {"direction": "up"}), Shown("pin up", {"direction": "up"}), False),
        (Shown("hand dark skin tone"), Shown("ear dark skin tone"), False),
    ],
)
def test_what_shares_a_word_is_close(one, other, close):
    assert are_close(one, other) is are_close(other, one) is close


@pytest.mark.parametrize(
    ("one", "others", "said"),
    [
        (FILLED, [], "star"),
        (FILLED, [CAR], "star"),
        (FILLED, [CAR, OUTLINE], "star filled"),
        (OUTLINE, [Shown("star")], "star outline"),
        (Shown("star"), [OUTLINE], "star"),
        (HALF, [OUTLINE], "star half filled"),
        (OFF, [Shown("user")], "user slash"),  # which says it in its own way
        (FOUR, [FIVE], "four oclock"),
        (Shown("user", {"badge": "off"}), [Shown("user", {"badge": "lock"})], "user off"),
        (LONG, [Shown("wheelchair")], "person in manual wheelchair facing right medium dark"),
        (
            Shown("a b c d e f g h same", {"fill": "filled", "skin": "medium-dark"}),
            [Shown("a b c d e f g h same")],
            "a b c d e filled medium dark",
        ),
    ],
)
def test_a_statement_says_the_details_that_decide(one, others, said):
    assert statement(one, others) == said
    assert states(said, one, others)
    for other in others:
        told = statement(other, [one])
        assert told != said
        assert not states(told, one, [other])


def test_other_details_may_be_said_and_nothing_else():
    assert states("star filled", FILLED, []) and states("filled star", FILLED, [CAR])
    assert not states("star outline", FILLED, []) and not states("star", FILLED, [OUTLINE])
    assert not states("a star filled", FILLED, []) and not states("filled", FILLED, [OUTLINE])
    # Words of a long name give way to details that need not be said.
    assert states("person in manual wheelchair facing right medium dark", LONG, [])
    assert states("person in manual wheelchair facing right medium", LONG, []) is False


def test_details_are_read_from_metadata():
    assert details_of({}) == details_of({"details": None}) == {}
    assert details_of({"details": {"fill": "filled", "level": 3, "badge": ""}}) == {
        "fill": "filled",
        "level": "3",
    }
    for nothing in ({}, {"detail": None}, {"detail": {"value": ""}}, {"detail": {"value": None}}):
        assert asked_for(nothing) == ""
    asked = asked_for({"detail": {"kind": "skin", "value": "medium-dark"}})
    assert asked == "medium-dark"
    assert with_detail("star", {"detail": {"kind": "fill", "value": "filled"}}) == "star filled"
    assert with_detail("star xmark", {"detail": {"kind": "badge", "value": "cross"}}) == (
        "star xmark"
    )
    assert with_detail("star", {}) == "star"
    query = "person in a manual wheelchair facing right with medium-dark skin tone"
    assert asked_words(query, asked) == "person in manual wheelchair facing right medium dark"
    assert asked_words(query, "") == "person in manual wheelchair facing right with medium"
