"""The icon corpus on small made-up sets: what is kept, how it is split, and that it repeats."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("resvg_py", reason="needs the data extra: pip install -e '.[data]'")

from retrv_r1.data.icons import IconCorpus, build, load_corpus
from retrv_r1.data.icons.copies import maps_of, nearest
from retrv_r1.data.icons.families import HELD_OUT, SHARED, family_of
from retrv_r1.data.icons.packages import PACKAGES, folder_of
from retrv_r1.data.icons.render import COLOUR, GLYPH, kind_of, render
from retrv_r1.data.icons.sets import PACKAGE
from retrv_r1.data.npm import fetch_package, tarball_name
from retrv_r1.data.pictographs.styles import STYLES
from retrv_r1.train.pictures import PictureBank
from retrv_r1.types import RetrvError

MODULE = importlib.import_module(
    "retrv_r1.data.icons.build"
)  # the package has a function of its name
WORDS = ["".join(p) for p in itertools.product("bdkmt", "aeiou", "lnrvz", "ao")][:150]
BOX = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {0}" width="{0}" height="{0}">'


def polygon(*key: str | int, box: float = 24, fill: str = "currentColor") -> str:
    """A drawing that depends on the key alone."""
    rng = random.Random(repr(key))
    points = " ".join(f"{rng.uniform(1, 23) * box / 24:.2f}" for _ in range(48))
    return f'<path fill="{fill}" d="M{points}z"/>'


def a_set(prefix: str, icons: Mapping[str, str], licence: str = "MIT", **more: Any) -> Any:
    return {
        "prefix": prefix,
        "info": {"license": {"spdx": licence}, "author": {"name": "A"}, **more.pop("info", {})},
        "icons": {name: {"body": body} for name, body in icons.items()},
        "width": 24,
        "height": 24,
        **more,
    }


def made_up_sets() -> list[Any]:
    """A held-out hand, a copy of it under other names, three hands of training, a share-alike."""
    copied = {f"{word}-other": polygon("lucide", word, box=48) for word in WORDS[:60]}
    own = {f"{word}-own": polygon("own", word, box=48) for word in WORDS[:20]}
    few = {f"{word}-few": polygon("lucide", word) for word in WORDS[:5]}
    styled = {
        f"{word}{end}": polygon("c", word, end) for word in WORDS for end in ("", "-bold", "-thin")
    }
    return [
        a_set("lucide", {word: polygon("lucide", word) for word in WORDS}),
        a_set("copycat", copied | own, width=48, height=48),
        a_set(
            "paint",
            {word: polygon("a", word, fill="#c33") for word in WORDS}
            | {"twin": polygon("a", WORDS[1], fill="#c33")},
            aliases={"nickname": {"parent": WORDS[1]}},
        ),
        a_set("second", {word: polygon("b", word) for word in WORDS} | few | {"nothing": "<g/>"}),
        a_set("third", styled, suffixes={"": "Regular", "bold": "Bold", "thin": "Thin"}),
        a_set("shady", {"dog": polygon("dog")}, licence="CC-BY-SA-4.0"),
    ]


def pack(folder: Path, sets: list[Any]) -> None:
    """Writes the packages of a corpus; those of terms are empty."""
    folder.mkdir(parents=True)
    for package, version in PACKAGES.items():
        with tarfile.open(folder / tarball_name(package, version), "w:gz") as tar:
            for data in sets if package == PACKAGE else ():
                content = json.dumps(data).encode()
                info = tarfile.TarInfo(f"package/json/{data['prefix']}.json")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    """Builds here write no cells: those have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "write_cells", lambda corpus, out, seed: {})
        yield patch


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, patched: pytest.MonkeyPatch) -> Path:
    root = tmp_path_factory.mktemp("icons")
    pack(folder_of(root), made_up_sets())
    assert build(root, size=32, processes=1).fresh
    return root


@pytest.fixture(scope="module")
def corpus(root: Path) -> IconCorpus:
    return load_corpus(root)


def test_a_held_out_hand_and_its_copies_leave_training(corpus: IconCorpus) -> None:
    hands = {row.set: row for row in corpus.rows if "hands" in row.why}
    assert hands.keys() == {"lucide", "copycat"}, "a set that mostly copies is held out whole"
    assert corpus.manifest["copies"]["whole"] == {"copycat": "lucide"}
    assert hands["copycat"].family == "lucide" and hands["copycat"].split == "test"
    copies = {row.icon for row in corpus.rows if row.set == "second" and "copies" in row.why}
    assert copies == {f"{word}-few" for word in WORDS[:5]}
    assert all(row.split == "train" for row in corpus.rows if not row.why)


def test_a_held_out_concept_leaves_training_in_every_hand(corpus: IconCorpus) -> None:
    assert set(corpus.splits.values()) == {"val", "test"}
    for row in corpus.rows:
        assert row.concept_split == corpus.splits.get(row.code, "train")
        if row.concept_split != "train":
            assert row.split != "train" and "concepts" in row.why
    assert any(row.split == "val" for row in corpus.rows)


def test_what_is_left_out_is_counted(corpus: IconCorpus) -> None:
    manifest = corpus.manifest
    assert manifest["sets"]["shady"]["left out"] == "licence CC-BY-SA-4.0"
    assert manifest["dropped"]["empty"]["sets"] == {"second": 1}
    assert manifest["dropped"]["same pixels in the set"]["sets"] == {"paint": 1}
    assert manifest["dropped"]["another style or size"]["sets"] == {"third": len(WORDS)}
    styles = [row.styles for row in corpus.rows if row.set == "third" and row.code == WORDS[7]]
    assert len(set(styles)) == 2
    assert {"nickname", "twin"} <= set(corpus.aliases[WORDS[1]])
    assert manifest["pictures"]["all"] == len(corpus.rows)


def test_rows_are_those_of_the_arrays(root: Path, corpus: IconCorpus) -> None:
    colour = sum(row.colour for row in corpus.rows)
    pictures, glyphs = np.load(root / "pictures.npy"), np.load(root / "glyphs.npy")
    assert pictures.shape == (colour, 32, 32, 4)
    assert glyphs.shape == (len(corpus.rows) - colour, 32, 32)
    assert [row.row for row in corpus.rows] == list(range(len(corpus.rows)))
    assert {row.set for row in corpus.rows[:colour]} == {"paint"}
    bank = PictureBank.load(root)
    for row in (corpus.rows[3], corpus.rows[-1]):
        word = row.icon.split("-")[0]
        body = (
            polygon("a", word, fill="#c33")
            if row.colour
            else polygon("c", word, row.icon[len(word) :])
        )
        drawn = torch.from_numpy(render(BOX.format(24) + body + "</svg>", 32)).permute(2, 0, 1)
        shown = bank.rgba([bank.row_of[row.img_path]])[0]
        assert torch.equal(shown, drawn.float() / 255), row


def test_a_killed_build_goes_on_and_gives_the_same_bytes(
    root: Path, tmp_path: Path, patched: pytest.MonkeyPatch
) -> None:
    pack(folder_of(tmp_path), made_up_sets())

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, size=32, processes=1)
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(RetrvError, match=r"manifest.json: `retrv-r1 data icons"):
        load_corpus(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrv_r1.data.icons.render.render", killed)
        assert build(tmp_path, size=32, processes=1).fresh, "nothing is rendered twice"
        assert not build(tmp_path, size=32, processes=1).fresh
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert names == [
        "concepts.json",
        "glyphs.npy",
        "manifest.json",
        "pictures.jsonl",
        "pictures.npy",
    ]
    # The tarballs carry the time at which they were packed.
    for name in names[:2] + names[3:]:
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes(), name


def test_a_damaged_file_of_the_cache_is_named(tmp_path: Path, patched: pytest.MonkeyPatch) -> None:
    pack(folder_of(tmp_path), made_up_sets()[:1])
    build(tmp_path, size=16, limit=5, processes=1)
    assert len(load_corpus(tmp_path).rows) == 5
    shard = next((tmp_path / ".cache" / "pictures").iterdir())
    shard.write_bytes(b"no")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(RetrvError, match=f"{shard.name} is damaged"):
        build(tmp_path, size=16, limit=5, processes=1)
    with pytest.raises(ValueError, match="16 pixels or more"):
        build(tmp_path, size=8)


def test_a_copy_is_recognised_in_another_size_place_and_colour() -> None:
    drawings = [polygon("copy", i) for i in range(20)]
    plain = [render(BOX.format(24) + body + "</svg>", 64) for body in drawings]
    moved = [
        render(BOX.format(64) + f'<g transform="translate(20 9) scale(1.6)">{body}</g></svg>', 64)
        for body in drawings
    ]
    red = [
        render(BOX.format(24) + b.replace("currentColor", "#e33") + "</svg>", 64) for b in drawings
    ]
    assert [kind_of(picture) for picture in (plain[0], red[0])] == [GLYPH, COLOUR]
    shape = np.stack([maps_of(p[..., 3])["shape"] for p in plain])
    found = nearest(shape, np.stack([maps_of(p[..., 3])["shape"] for p in moved]))
    assert found.index.tolist() == list(range(20)) and np.median(found.score) > 0.95
    edges = np.stack([maps_of(p[..., 3])["edges"] for p in plain])
    found = nearest(edges, np.stack([maps_of(p)["edges"] for p in red]))
    assert found.index.tolist() == list(range(20)) and found.score.min() > 0.8
    others = edges.astype(np.float32) @ edges.T.astype(np.float32)
    assert np.median(others[~np.eye(20, dtype=bool)]) < 0.6


def test_a_wide_drawing_keeps_its_shape() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 10" width="40" height="10">'
    alpha = render(svg + '<path d="M0 0h40v10H0z"/></svg>', 32)[..., 3]
    assert (alpha[12:20] == 255).all() and not alpha[:12].any() and not alpha[20:].any()


def test_the_pictographs_styles_are_held_out_or_trained_on_in_both() -> None:
    for style in STYLES:
        split = HELD_OUT.get(family_of(style.name), "train")
        if style.kind == "npm":
            assert split == style.role, style.name
            assert (family_of(style.name) in SHARED) == (style.role == "train")


def test_a_package_in_the_cache_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RetrvError, match="install Node"):
        fetch_package("@a/b", "1.0.0", tmp_path)
    (tmp_path / "a-b-1.0.0.tgz").touch()
    assert fetch_package("@a/b", "1.0.0", tmp_path).name == "a-b-1.0.0.tgz"
