"""Names of icons: the thing, its styles, its number, skin and gender; concepts and their splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from retrv_r1.data.icons.concepts import Words, brands, hold_out, is_brand, merge_plurals
from retrv_r1.data.icons.names import IconName, group_key, read_names, singular
from retrv_r1.data.icons.sets import icon_set, reason_against


def names_of(names: str, **more: Any) -> Mapping[str, IconName]:
    """What the names of a set say, given names divided by blanks."""
    data = {
        "prefix": more.pop("prefix", "demo"),
        "info": {"license": {"spdx": "MIT"}, **more.pop("info", {})},
        "icons": {
            name: {"body": f'<path d="M0 0h{i}v9"/>'} for i, name in enumerate(names.split())
        },
        **more,
    }
    return read_names(icon_set(data))


def thing(name: IconName) -> tuple[str, tuple[str, ...]]:
    return " ".join(name.words), name.styles


def test_style_words_come_from_the_sets_own_table() -> None:
    table = {"": "Regular", "bold-duotone": "Bold Duotone", "16-filled": "16 Filled"}
    found = names_of("traffic-light apple-bold-duotone apple-16-filled dot-circle", suffixes=table)
    assert thing(found["apple-bold-duotone"]) == ("apple", ("bold", "duotone"))
    assert thing(found["apple-16-filled"]) == ("apple", ("filled",))
    assert found["apple-16-filled"].size == 16
    assert thing(found["traffic-light"]) == ("traffic light", ())
    prefixed = names_of("twotone-dining dining", prefixes={"twotone": "Two-Tone"})
    assert thing(prefixed["twotone-dining"]) == ("dining", ("duotone",))


def test_an_ambiguous_style_word_counts_only_where_its_set_uses_it_as_one() -> None:
    plain = names_of("traffic-light paint-fill moon sun star dog")
    assert thing(plain["traffic-light"]) == ("traffic light", ())
    assert thing(plain["paint-fill"]) == ("paint fill", ())
    both = " ".join(f"{word} {word}-fill" for word in ("moon", "sun", "star", "dog"))
    assert thing(names_of(both)["moon-fill"]) == ("moon", ("filled",))


@pytest.mark.parametrize(
    ("names", "name", "words", "number"),
    [
        ("user-01 user-02", "user-02", "user", "02"),
        ("share share-2", "share-2", "share", "2"),
        ("dice-5", "dice-5", "dice 5", ""),
        (" ".join(f"clockface-{i}" for i in range(1, 13)), "clockface-7", "clockface 7", ""),
        ("route-66", "route-66", "route 66", ""),
        ("ruler ruler4", "ruler4", "ruler", "4"),
        ("pie-one pie-two", "pie-two", "pie", "2"),
        ("mp3", "mp3", "mp3", ""),
    ],
)
def test_a_number_that_only_counts_drawings_is_no_part_of_the_thing(
    names: str, name: str, words: str, number: str
) -> None:
    read = names_of(names)[name]
    assert (" ".join(read.words), read.number) == (words, number)


@pytest.mark.parametrize(
    ("name", "words", "shown", "skin", "gender"),
    [
        (
            "woman-golfing-medium-light-skin-tone",
            "person golfing",
            "woman golfing medium light skin tone",
            "medium light",
            "woman",
        ),
        ("man-firefighter", "firefighter", "man firefighter", "", "man"),
        ("man-in-tuxedo", "person in tuxedo", "man in tuxedo", "", "man"),
        ("woman", "woman", "woman", "", "woman"),
        ("man-and-dog", "man and dog", "man and dog", "", ""),
        ("dog-face", "dog face", "dog face", "", ""),
    ],
)
def test_skin_and_gender_are_attributes(
    name: str, words: str, shown: str, skin: str, gender: str
) -> None:
    read = names_of(name, info={"category": "Emoji"})[name]
    assert (" ".join(read.words), " ".join(read.shown)) == (words, shown)
    assert (read.skin, read.gender) == (skin, gender)


def test_bare_skin_tones_belong_to_the_sets_that_write_them_so() -> None:
    found = names_of("waving-hand waving-hand-dark moon-dark", prefix="fluent-emoji")
    assert (found["waving-hand-dark"].skin, found["moon-dark"].skin) == ("dark", "")
    assert names_of("waving-hand waving-hand-dark")["waving-hand-dark"].skin == ""


def test_names_without_words_say_nothing() -> None:
    assert names_of("500 u1f600 dog a-b-c-d-e-f-g-h-i").keys() == {"dog"}


def test_hidden_icons_go_and_aliases_are_names_or_turned_drawings() -> None:
    icons = icon_set(
        {
            "prefix": "demo",
            "info": {},
            "icons": {
                "left": {"body": '<path d="M1 2h3"/>', "width": 24},
                "old": {"body": "<path/>", "hidden": True},
                "busy": {"body": '<path><animate attributeName="d"/></path>'},
            },
            "aliases": {
                "back": {"parent": "left"},
                "right": {"parent": "left", "hFlip": True},
                "forth": {"parent": "right"},
                "again": {"parent": "right", "hFlip": True},
                "gone": {"parent": "nothing"},
            },
            "categories": {"Arrows": ["left"]},
        }
    )
    assert icons.drawings.keys() == {"left", "right", "forth"}
    assert icons.aliases == {"back": "left", "again": "left"}
    assert icons.drawings["right"].group == "Arrows"
    assert 'transform="translate(24 0) scale(-1 1)"' in icons.drawings["right"].svg
    assert 'viewBox="0 0 24 16"' in icons.drawings["left"].svg
    assert icons.dropped == 3


@pytest.mark.parametrize(
    ("prefix", "info", "reason"),
    [
        ("tabler", {"license": {"spdx": "MIT"}}, ""),
        ("openmoji", {"license": {"spdx": "CC-BY-SA-4.0"}}, "licence CC-BY-SA-4.0"),
        ("odd", {}, "licence unknown"),
        ("brandy", {"license": {"spdx": "CC0-1.0"}, "category": "Logos"}, "brands"),
        ("codicon", {"license": {"spdx": "MIT"}, "category": "Programming"}, ""),
        ("cif", {"license": {"spdx": "CC0-1.0"}}, "names are country codes"),
    ],
)
def test_sets_are_left_out_for_a_reason(prefix: str, info: dict[str, Any], reason: str) -> None:
    assert reason_against(prefix, info) == reason


def test_a_plural_is_merged_unless_sets_tell_it_from_the_singular() -> None:
    sets = {
        "one": {"user", "users", "violin", "dogs"},
        "two": {"user", "users", "violins", "glasses"},
    }
    assert merge_plurals(sets) == {"violins": "violin"}
    forms = {"berries": "berry", "boxes": "box", "glasses": "glasses", "bus": "bus", "ids": "ids"}
    assert {word: singular(word) for word in forms} == forms


def test_a_concept_is_held_out_with_all_its_forms() -> None:
    families = {f"thing{i}": {"a", "b", "c"} for i in range(2000)}
    held = hold_out(families, seed=0)
    shares = [sum(split == part for split in held.values()) / 2000 for part in ("test", "val")]
    assert shares == pytest.approx([0.03, 0.02], abs=0.01)
    name = next(iter(held))
    forms = {name: {"a"}, f"{name}s": {"b"}, f"{name}s with": {"c"}, f"{name} player": {"a", "b"}}
    assert hold_out(forms, seed=0) == dict.fromkeys([name, f"{name}s", f"{name}s with"], held[name])
    assert hold_out({name: {"a", "b"}}, seed=0) == {}
    assert group_key(["add", "users"]) == group_key(["user", "add"])


def test_brands_are_what_several_sets_of_brands_name_and_no_word_for_a_thing() -> None:
    named = {"apple", "github", "image", "twitter"}
    sets = {name: named if name != "d" else {"rare"} for name in "abcd"}
    many = [("image", f"word{i}") for i in range(60)]
    assert brands(sets, {"apple", "twitter"}, many) == {"github", "twitter"}
    assert brands({"a": {"github"}}, (), ()) == set()
    known = {"github", "figma"}
    assert all(is_brand(code, known) for code in ("github", "figma circle", "fhir logo"))
    assert not any(is_brand(code, known) for code in ("circle", "git branch", "logo", "apple"))


def test_words_of_a_name_without_gaps_are_found() -> None:
    words = Words([("broken", "heart")] * 5 + [("cat", "face")] * 5)
    assert words.split("brokenheart") == ("broken", "heart")
    assert words.split("heart") == ("heart",)
    assert words.split("heartxyz") == ("heartxyz",)
