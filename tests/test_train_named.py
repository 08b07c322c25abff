"""Named pictures: which are drawn together, in which words, and what stays unseen."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retrv_r1.train.config import ConfigError
from retrv_r1.train.corpus import Corpus, Entry
from retrv_r1.train.named import NamedPictures, named_pictures
from retrv_r1.train.pictures import PictureBank

pytest_plugins = ["training_fixtures"]


def corpus_of(*roots: Path) -> Corpus:
    return Corpus(roots, "train", PictureBank.load(*roots))


def small(**changes) -> NamedPictures:
    """A cat by three hands, one in colour; a dog by two glyphs of one hand; an owl alone."""
    values = {
        "pictures": [7, 3, 9, 1, 2, 5],
        "things": ["cat", "dog", "cat", "dog", "cat", "owl"],
        "texts": ["cat", "dog", "kitty cat", "hound", "cat", "owl"],
        "hands": ["noto", "mdi", "tabler", "mdi", "ph", "mdi"],
        "glyphs": np.array([False, True, True, True, True, True]),
        "terms": {},
        "aliases": {},
    }
    return NamedPictures(**{**values, **changes})


def test_two_hands_of_a_thing_are_drawn_together():
    named, rng = small(), np.random.default_rng(0)
    hand = dict(zip([7, 3, 9, 1, 2, 5], ["noto", "mdi", "tabler", "mdi", "ph", "mdi"], strict=True))
    singles: Counter[str] = Counter()
    for _ in range(200):
        drawn = named.draw(rng, 6)
        assert len(drawn.pictures) == len(drawn.things) == len(drawn.texts) == 6
        at = 0
        while at < 6:
            thing = named.names[drawn.things[at]]
            for picture in drawn.pictures[at : at + 2]:
                assert named.name(picture) is not None
            if thing == "cat" and at < 5:
                one, other = drawn.pictures[at : at + 2]
                assert drawn.things[at] == drawn.things[at + 1] and hand[one] != hand[other]
                at += 2
            else:  # one hand drew it, or the step is full
                singles[thing] += 1
                at += 1
    assert singles["dog"] > 50 and singles["owl"] > 50
    assert named.draw(rng, 1).texts


def test_things_of_many_pictures_and_things_in_colour_are_drawn_more_often():
    rng = np.random.default_rng(0)

    def shares(named: NamedPictures) -> dict[str, float]:
        drawn = [named.names[named.draw(rng, 1).things[0]] for _ in range(6000)]
        return {name: count / len(drawn) for name, count in Counter(drawn).items()}

    weights = {"cat": 3 * 3**0.5, "dog": 2**0.5, "owl": 1.0}
    total = sum(weights.values())
    for name, share in shares(small()).items():
        assert share == pytest.approx(weights[name] / total, abs=0.03)
    plain = shares(small(glyphs=np.ones(6, bool)))
    assert plain["cat"] / plain["owl"] == pytest.approx(3**0.5, rel=0.15)


def test_texts_are_names_as_people_type_them_terms_and_other_names():
    terms = {"cat": ["pet", "purr", "paw"], "unknown": ["x"]}
    named, rng = small(terms=terms, aliases={"dog": ["mutt"]}), np.random.default_rng(0)
    said = {
        name: [named.any_text(n, rng) for _ in range(600)] for n, name in enumerate(named.names)
    }
    found = Counter(tuple(text.split()) for text in said["cat"])
    by_terms = [words for words in found if set(words) <= set(terms["cat"])]
    assert {len(words) for words in by_terms} == {1, 2, 3}
    assert all(len(set(words)) == len(words) for words in by_terms)
    assert sum(found[words] for words in by_terms) / 600 == pytest.approx(0.3, abs=0.07)
    others = sum("mutt" in text.lower() for text in said["dog"])
    assert others / 600 == pytest.approx(0.4, abs=0.08), "a thing without terms: 0.3 + 0.1"
    assert not any("mutt" in text or "purr" in text for text in said["owl"])
    assert len(set(said["owl"])) > 20 and "owl" in said["owl"]


def test_entries_mean_the_thing_of_their_picture_or_of_their_text():
    named = small()
    assert [named.names[named.thing(Entry(None, p, {}))] for p in (7, 1, 5)] == [
        "cat",
        "dog",
        "owl",
    ]
    assert named.thing(Entry("Dog", None, {})) == named.names.index("dog")
    assert named.thing(Entry("cat", 4, {})) == named.thing(Entry("a cow", None, {})) == -1
    assert named.name(9) == "cat" and named.name(4) is None
    vocabulary = set(named.vocabulary())
    assert {"kitty cat", " kitty cat", "hound"} <= vocabulary


def test_data_that_name_nothing_are_refused():
    with pytest.raises(ConfigError, match="name no training picture"):
        small(pictures=[], things=[], texts=[], hands=[], glyphs=np.zeros(0, bool))


# Data sets.


def test_icons_give_their_training_pictures_by_concept_and_skin_tone(icons):
    named = named_pictures(corpus_of(icons))
    toned = "waving hand dark skin tone"
    assert named.names == ["bell", "house", "user plus", "violin", "waving hand", toned]
    lines = [json.loads(line) for line in (icons / "pictures.jsonl").read_text().splitlines()]
    assert {line["row"] for line in lines if line["split"] == "train"} == set(named.pictures)
    assert len(set(named.hands)) == 3
    terms = {named.names[n]: found for n, found in named.terms.items()}
    assert terms == {"bell": ("alarm", "ring")}, "those of validation are not asked"
    assert {named.names[n]: found for n, found in named.aliases.items()} == {"house": ("home",)}


def test_two_data_sets_share_one_bank_and_their_names(pictographs, icons):
    both = corpus_of(pictographs, icons)
    assert both.bank.parts == [(pictographs, 0), (icons, 20)]
    named = named_pictures(both)
    alone = named_pictures(corpus_of(icons))
    assert set(alone.names) < set(named.names)
    assert "large red apple" in named.names and named.name(0) == "large red apple"
    assert {named.name(int(p) + 20) for p in alone.pictures} == set(alone.names)


@pytest.mark.parametrize("split", ["unseen", "composition"])
def test_what_one_data_set_holds_out_another_does_not_show(pictographs, icons, tmp_path, split):
    held = tmp_path / "held"
    shutil.copytree(pictographs, held)
    path = held / "pictures.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = {3: "Violin", 4: "waving hand dark skin tone"}
    for line in lines:
        name = names.get(line["row"])
        line |= {"name": name or "a thing", "split": split if name else "train"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = named_pictures(corpus_of(held, icons))
    assert "violin" not in named.names and "waving hand dark skin tone" not in named.names
    assert {"bell", "waving hand"} <= set(named.names)
