"""The parts of the pictograph build: sequences, joins, changes, styles, rendering, sources."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("emoji", reason="needs the data extra: pip install -e '.[data]'")

from retrv_kernels.extras import install_command
from retrv_r1.data.pictographs import lexicon, npm
from retrv_r1.data.pictographs.catalog import spread
from retrv_r1.data.pictographs.changes import changes
from retrv_r1.data.pictographs.concepts import Concept, clean_name, code_of, concept_table, parse
from retrv_r1.data.pictographs.join import Joiner, normalise, split_tone
from retrv_r1.data.pictographs.render import render
from retrv_r1.data.pictographs.splits import make_splits
from retrv_r1.data.pictographs.store import write_pixels
from retrv_r1.data.pictographs.styles import STYLES, roles_of, styles_to_build
from retrv_r1.types import RetrvError


@pytest.fixture(scope="module")
def table() -> dict[str, Concept]:
    return concept_table({}, {}, {})


@pytest.mark.parametrize(
    ("text", "base", "tones", "gender", "facing"),
    [
        ("🐕", "1F415", (), "", ""),
        ("👍🏿", "1F44D", ("dark",), "", ""),
        ("👩🏽‍🚒", "1F9D1-200D-1F692", ("medium",), "woman", ""),
        ("🏃🏻‍♂️", "1F3C3", ("light",), "man", ""),
        ("🏃‍♀️‍➡️", "1F3C3", (), "woman", "right"),
        ("👨‍👩‍👧", "1F46A", (), "", ""),
        ("👩🏻‍❤️‍💋‍👨🏿", "1F48F", ("light", "dark"), "", ""),
        ("🫱🏻‍🫲🏿", "1F91D", ("light", "dark"), "", ""),
        ("🏿", "1F3FF", (), "", ""),
    ],
)
def test_a_sequence_is_taken_apart(
    text: str, base: str, tones: tuple[str, ...], gender: str, facing: str
) -> None:
    parts = parse(code_of(text))
    assert (parts.base, parts.tones, parts.gender, parts.facing) == (base, tones, gender, facing)


def test_names_are_unique_and_every_base_is_a_concept(table: dict[str, Concept]) -> None:
    assert len({c.name for c in table.values()}) == len(table)
    assert all(c.base in table for c in table.values())
    assert table["1F1EB-1F1F7"].name == "flag of france"
    assert table["1F46E"].gender == "person"
    assert table["1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF"].tone == "mixed"
    assert clean_name(":A_button_(blood_type):") == "a button"


def test_slugs_are_joined_by_table_then_by_name(table: dict[str, Concept]) -> None:
    assert normalise("Piñata & Co") == "pinataandco"
    assert split_tone("waving-hand-medium-dark") == ("waving-hand", "medium-dark")
    assert split_tone("waving-hand-tone5") == ("waving-hand", "dark")
    slugs = ["odd", "cat-face", "waving-hand-dark-skin-tone", "flag-for-france", "nonsense"]
    pack = {"icons": {"icons": {s: {} for s in slugs}}, "chars": {"1f415": "odd"}}
    joined, unjoined = Joiner(table, {"demo": pack}).join("demo")
    assert joined == {
        "1F415": "odd",
        "1F431": "cat-face",
        "1F44B-1F3FF": "waving-hand-dark-skin-tone",
        "1F1EB-1F1F7": "flag-for-france",
    }
    assert unjoined == ["nonsense"]


def test_a_name_that_two_codes_claim_is_not_used(table: dict[str, Concept]) -> None:
    """`keycap #` and `keycap *` are the same once signs are dropped."""
    pack = {"icons": {"icons": {"keycap": {}}}}
    assert Joiner(table, {"demo": pack}).join("demo") == ({}, ["keycap"])


def test_changes_lead_from_one_variant_to_another(table: dict[str, Concept]) -> None:
    found = {(c.source, c.target): c for c in changes(table)}
    assert found["1F44D", "1F44D-1F3FF"].kind == "tone"
    assert "as a woman" in found["1F3C3", "1F3C3-200D-2640"].phrases
    assert "as a girl" in found["1F9D2", "1F467"].phrases
    assert found["1F408", "1F431"].kind == "face"
    assert "half an hour later" in found["1F550", "1F55C"].phrases
    assert "in blue" in found["2764", "1F499"].phrases
    assert all(c.source != c.target for c in found.values())
    assert not any("mixed" in (table[a].tone, table[b].tone) for a, b in found)


def test_splits_depend_on_the_seed_alone(table: dict[str, Concept]) -> None:
    one, same, other = (make_splits(table, table, seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.unseen != other.unseen
    assert 0.06 < len(one.unseen) / len({c.base for c in table.values()}) < 0.1
    by_name = {c.name: c for c in table.values()}
    for concept in table.values():  # an animal and its face lie on one side
        face = by_name.get(f"{concept.name} face")
        if concept.group == "animals" and face and face.group == "animals":
            assert (concept.base in one.unseen) == (face.base in one.unseen)


def test_style_roles_with_everything_and_with_less() -> None:
    everything = [s.name for s in STYLES if s.role != "spare"]
    roles = roles_of(everything)
    assert (roles.val, roles.test) == (("fxemoji",), ("emojione", "emojione-v1"))
    assert (len(roles.train), roles.note) == (8, "")
    small = roles_of(["openmoji", "openmoji-line", "noto-mono"])
    assert (small.train, small.test) == (("openmoji", "openmoji-line"), ("noto-mono",))
    assert "noto-mono" in small.note
    assert "shows known pictures" in roles_of(["openmoji"]).note
    with pytest.raises(ValueError, match="no picture style"):
        roles_of([])
    assert "openmoji-line" not in styles_to_build([s.name for s in STYLES], ["twemoji"])
    assert "openmoji-line" in styles_to_build([s.name for s in STYLES], [])


def test_render_crops_pads_and_keeps_colours_clean() -> None:
    pytest.importorskip("resvg_py", reason="needs the data extra")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="100" height="100">'
        '<rect x="60" y="10" width="30" height="60" fill="#ff0000"/></svg>'
    )
    pixels = np.asarray(render(svg, 32))
    assert pixels.shape == (32, 32, 4)
    rows, columns = np.nonzero(pixels[..., 3])
    assert rows.max() - rows.min() >= 28  # the longer side fills the picture
    assert abs((columns.min() + columns.max()) / 2 - 15.5) <= 1
    assert (pixels[pixels[..., 3] > 200][:, :3] == [255, 0, 0]).all()
    assert (pixels[pixels[..., 3] == 0] == 0).all()
    with pytest.raises(ValueError, match="nothing is drawn"):
        render(svg.replace("#ff0000", "none"), 32)


def test_a_damaged_picture_of_the_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "1F415.png").write_bytes(b"cut off")
    paths = {"noto": {"1F415": tmp_path / "1F415.png"}}
    with pytest.raises(RetrvError, match=r"1F415\.png is damaged .*delete it, build again"):
        write_pixels(paths, 16, tmp_path / "pictures.npy")


def test_spread_takes_one_of_each_base_at_a_time() -> None:
    chosen = spread(["a1", "a2", "a3", "b1", "c1"], lambda x: x[0], 4, random.Random(0))
    assert sorted(x[0] for x in chosen[:3]) == ["a", "b", "c"]
    assert len(chosen) == 4


def test_without_npm_the_styles_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(npm.shutil, "which", lambda _: None)
    said: list[str] = []
    names = ["twemoji", "noto", "openmoji"]
    found, missing = npm.fetch_sets(names, tmp_path, download=True, say=said.append)
    assert found == {}
    assert missing == dict.fromkeys(["twemoji", "noto"], "npm is not installed")
    assert "without the styles twemoji, noto: npm is not installed" in said


def test_a_damaged_tarball_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.tgz"
    path.write_bytes(b"not a tarball")
    with pytest.raises(RetrvError, match=r"set\.tgz is damaged"):
        npm.read_tarball(path)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(RetrvError, match=re.escape(install_command("data"))):
        concept_table({}, {}, {})


def test_cldr_files_are_read_and_may_be_absent(tmp_path: Path) -> None:
    assert lexicon.cldr_keywords(tmp_path) == {}
    assert lexicon.cldr_subgroups(tmp_path) == {}
    assert lexicon.cldr_version(tmp_path) == ""
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "en.xml").write_text(
        '<?xml version="1.0"?><!-- Copyright © 1991-2022 Unicode -->\n<ldml><annotations>'
        '<annotation cp="🐕">dog | pet</annotation><annotation cp="🐕" type="tts">dog</annotation>'
        "</annotations></ldml>",
        encoding="utf-8",
    )
    (tmp_path / "properties").mkdir()
    labels = "[🐕-🐗{👨‍🚒}] ; Animals ; animal-mammal\n"
    (tmp_path / "properties" / "labels.txt").write_text(labels, encoding="utf-8")
    assert lexicon.cldr_keywords(tmp_path) == {"1F415": ["dog", "pet"]}
    assert lexicon.cldr_version(tmp_path) == "2022"
    assert set(lexicon.cldr_subgroups(tmp_path)) == {"1F415", "1F416", "1F417", "1F468-200D-1F692"}
    (folder / "en.xml").write_text("<ldml>", encoding="utf-8")
    with pytest.raises(RetrvError, match="cannot be parsed"):
        lexicon.cldr_keywords(tmp_path)


def test_wordnet_glosses_are_short_and_fit_the_group(
    table: dict[str, Concept], tmp_path: Path
) -> None:
    assert lexicon.wordnet_glosses(table, tmp_path) == {}
    index = "  1 header\ndolphin n 1 0 1 0 00000001  \nguitar n 1 0 1 0 00000002  \n"
    data = (
        "  1 header\n00000001 05 n 01 dolphin 0 000 | any of various small toothed whales; more  \n"
        "00000002 10 n 01 guitar 0 000 | a word about something else  \n"
    )
    (tmp_path / "index.noun").write_text(index, encoding="utf-8")
    (tmp_path / "data.noun").write_text(data, encoding="utf-8")
    found = lexicon.wordnet_glosses(table, tmp_path)
    assert found == {"1F42C": "any of various small toothed whales"}
    (tmp_path / "index.noun").write_text("dolphin n x\n", encoding="utf-8")
    with pytest.raises(RetrvError, match="not a WordNet database"):
        lexicon.wordnet_glosses(table, tmp_path)
