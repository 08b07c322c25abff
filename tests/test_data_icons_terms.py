"""Search terms: what is kept of a package's tags, whose they are, and which split they are in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from icons_fixtures import icon_corpus

from retrv_r1.data.icons.index import Index
from retrv_r1.data.icons.packages import tarball
from retrv_r1.data.icons.terms import Judgements, Terms, clean, read_terms
from retrv_r1.types import RetrvError


def pack(path: Path, files: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Small packages in the formats of the real ones."""
    emoji = [
        {"hexcode": "1F415", "label": "dog", "unicode": "🐕", "tags": ["pet", "dog"]},
        {"hexcode": "1F3E0", "label": "house", "unicode": "🏠", "tags": ["home"]},
    ]
    german = [{"hexcode": "1F415", "label": "Hund", "unicode": "🐕", "tags": ["Haustier"]}]
    others = ("fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko")
    languages = {"en": emoji, "de": german, **{language: [] for language in others}}
    pack(
        tarball("emojibase-data", tmp_path),
        {f"{k}/compact.json": json.dumps(v) for k, v in languages.items()},
    )
    yml = "bell:\n  search:\n    terms: [alarm, 'a very long search term of seven words']\n"
    for package, files in (
        ("@tabler/icons", {"icons.json": json.dumps({"dog": {"tags": ["pet", "animal", "dog"]}})}),
        ("@mdi/svg", {"meta.json": json.dumps([{"name": "house", "aliases": ["family-home"]}])}),
        ("@fortawesome/fontawesome-free", {"metadata/icons.yml": yml}),
        ("lucide-static", {"tags.json": json.dumps({"dog": ["bark", "unknown_thing"]})}),
        ("emojilib", {"dist/emoji-en-US.json": json.dumps({"🐕": ["dog", "doge", ":3"]})}),
    ):
        pack(tarball(package, tmp_path), files)
    return tmp_path


def test_a_term_is_cleaned_as_people_type_it() -> None:
    assert clean("Waste-Basket") == "waste basket"
    assert clean("grinning_face") == "grinning face"
    assert clean("parapluie d'été") == "parapluie d'été"
    assert clean("傘") == "傘"
    for bad in (":D", "1", "x", "a b c d e f", "<tag>", "what?", "  "):
        assert clean(bad) == ""


def test_terms_are_found_for_the_icons_of_the_corpus(packages: Path) -> None:
    found = {(t.source, t.language): t for t in read_terms(icon_corpus(), packages)}
    assert found["tabler", "en"].terms == ("pet", "animal")  # "dog" is the name
    assert found["mdi", "en"].terms == ("family home",)
    assert found["lucide", "en"].terms == ("bark", "unknown thing")
    assert found["emojilib", "en"].terms == ("doge",)
    assert found["emojibase", "de"].terms == ("haustier", "hund")
    assert set(found["emojibase", "en"].sets) == {"emojione", "fxemoji", "noto", "twemoji"}
    assert ("fontawesome", "en") not in found  # none of its sets is in the corpus
    assert all(one.code in ("dog", "house") for one in found.values())


def test_a_name_that_a_set_gives_is_no_term(packages: Path) -> None:
    english = [t for t in read_terms(icon_corpus(), packages) if t.language == "en"]
    assert "home" not in {term for one in english for term in one.terms}


def test_lucides_terms_test_and_all_terms_of_a_thing_are_in_one_split(packages: Path) -> None:
    for seed in range(5):
        found = read_terms(icon_corpus(), packages, seed=seed)
        assert {t.split for t in found if t.source == "lucide"} == {"test"}
        dogs = {t.split for t in found if t.source != "lucide" and t.code == "dog"}
        assert len(dogs) == 1 and dogs <= {"train", "val"}


def test_a_missing_package_says_how_to_get_it(packages: Path) -> None:
    tarball("emojilib", packages).unlink()
    with pytest.raises(RetrvError, match="retrv-r1 data icons"):
        read_terms(icon_corpus(), packages)
    tarball("emojilib", packages).write_bytes(b"no archive")
    with pytest.raises(RetrvError, match="damaged"):
        read_terms(icon_corpus(), packages)


def test_things_carry_judged_terms_and_the_words_of_their_names() -> None:
    terms = [
        Terms("tabler", ("tabler",), "dog", "dog", "", ("pet", "animal")),
        Terms("tabler", ("tabler",), "cat", "cat", "", ("pet",)),
    ]
    judged = Judgements(Index(icon_corpus()), terms)
    assert judged.bags(["pet"]) == {"dog", "cat"}
    assert judged.bags(["pet", "animal"]) == {"dog"}
    # Keys of concepts have their words sorted.
    assert "bell plus" in judged.bags(["plus"]) and "plus user" in judged.bags(["plus"])
    assert judged.bags(["nothing"]) == frozenset()
