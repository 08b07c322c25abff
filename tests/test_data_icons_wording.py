"""Wordings of names: frames, articles, plurals, slips, and what is kept for tests."""

from __future__ import annotations

import time

import numpy as np
import pytest

from retrv_r1.data.icons import typos
from retrv_r1.data.icons.english import article, indefinite, plural
from retrv_r1.data.icons.wording import SIX, WORDINGS, Forms, action, six, slip, turned, word


def drawn(name: str, count: int, *, forms: Forms = "train", seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [word(name, rng, forms=forms) for _ in range(count)]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("umbrella", "an"), ("unicorn", "a"), ("uninstall", "an"), ("hourglass", "an"),
        ("house", "a"), ("x-ray", "an"), ("svg file", "an"), ("usb cable", "a"), ("8 ball", "an"),
        ("11 o'clock", "an"), ("2 arrows", "a"), ("one-way sign", "a"), ("onion", "an"),
        ("css file", "a"), ("euro", "a"), ("sms", "an"), ("sky", "a"), ("b button", "a"),
    ],
)  # fmt: skip
def test_an_article_follows_the_sound(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("violin", "violins"), ("flag of france", "flags of france"), ("leaf", "leaves"),
        ("cat with tears of joy", "cats with tears of joy"), ("hourglass", "hourglasses"),
        ("fireman", "firemen"), ("berry", "berries"), ("key", "keys"), ("scissors", "scissors"),
        ("arrow left", "arrow left"), ("rain", "rain"), ("battery 50", "battery 50"),
        ("bus", "buses"), ("cactus", "cactuses"),
    ],
)  # fmt: skip
def test_a_plural_is_of_the_head_noun(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_what_cannot_be_counted_has_no_a() -> None:
    assert indefinite("scissors") == "some scissors"
    assert indefinite("rain") == "some rain"
    assert indefinite("bus") == "a bus"


def test_words_are_put_in_another_order_where_that_makes_sense() -> None:
    assert turned("dog face") == "face of a dog"
    assert turned("arrow left") == "left arrow"
    assert turned("flag of france") == "france flag"
    assert turned("sad face") == "sad face"
    assert turned("add user") == "add user"


def test_an_action_is_something_to_do() -> None:
    assert action("delete") == "to delete something"
    assert action("add user") == "to add a user"
    assert action("violin") == "violin"


def test_the_six_wordings_of_the_demo_measure_are_exact() -> None:
    assert six("violin") == (
        "violin", "a violin", "a picture of a violin", "VIOLIN icon", "show me a violin", "viloin",
    )  # fmt: skip
    assert six("dog")[-1] == "dog!"
    assert len(six("apple")) == len(SIX) == len(set(six("apple")))
    assert slip("woman's hat") != "woman's hat"


def test_the_same_seed_draws_the_same_wordings_and_another_draws_others() -> None:
    assert drawn("dog face", 50, seed=3) == drawn("dog face", 50, seed=3)
    assert drawn("dog face", 50, seed=3) != drawn("dog face", 50, seed=4)


def test_training_draws_many_wordings_and_the_bare_name_most_often() -> None:
    found = drawn("umbrella", 4000)
    counts = {text: found.count(text) for text in set(found)}
    assert max(counts, key=lambda text: counts[text]) == "umbrella"
    assert 0.15 < counts["umbrella"] / 4000 < 0.5
    for text in ("an umbrella", "umbrellas", "UMBRELLA", "a picture of an umbrella"):
        assert text in counts
    assert len(counts) > 150


def test_training_never_draws_a_wording_that_is_kept_for_tests() -> None:
    assert not (WORDINGS["train"].keys() - {"{x}"}) & WORDINGS["test"].keys()
    for name in ("dog face", "violin", "add user", "arrow left", "flag of france"):
        train, test = set(drawn(name, 20000)), set(drawn(name, 2000, forms="test", seed=1))
        shared = train & test
        # One letter typed wrongly may be another vowel by chance.
        assert all(typos_apart(name, text) for text in shared), shared


def typos_apart(name: str, text: str) -> bool:
    return len(text) == len(name) and sum(a != b for a, b in zip(name, text, strict=True)) == 1


def test_a_test_wording_of_a_short_name_is_not_the_bare_name() -> None:
    assert "dog" not in drawn("dog", 500, forms="test")


def test_a_slip_changes_one_word_of_five_letters_and_keeps_its_first() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = typos.typo("red umbrella", rng, typos.TRAIN)
        first, second = text.split()
        assert first == "red" and second != "umbrella" and second[0] == "u"
        assert abs(len(second) - len("umbrella")) <= 1
    assert typos.typo("dog", rng, typos.TRAIN) == "dog"
    assert "h" in typos.NEIGHBOURS["g"] and "p" not in typos.NEIGHBOURS["g"]


def test_names_in_other_languages_and_lists_of_terms_get_no_english_frame() -> None:
    rng = np.random.default_rng(0)
    german = {word("regenschirm", rng, language="de") for _ in range(300)}
    assert all("a " not in text and "icon" not in text for text in german)
    assert {"regenschirm", "Regenschirm", "REGENSCHIRM"} <= german
    several = {word("rain, weather", rng) for _ in range(300)}
    assert "rain, weather" in several
    assert all("icon" not in text.lower() for text in several)


def test_bad_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="empty name"):
        word(" ", rng)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        word("dog", rng, forms="val")


def test_ten_thousand_wordings_take_a_fraction_of_a_second() -> None:
    names = [f"{a} {b}" for a in ("red", "big", "old") for b in ("dog", "violin", "user plus")]
    rng = np.random.default_rng(0)
    start = time.process_time()
    for place in range(10_000):
        word(names[place % len(names)], rng)
    assert time.process_time() - start < 1.0  # measured: 0.05 s
