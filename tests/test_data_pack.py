"""A built data set as one file: complete, the same bytes always, and never half read."""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrv_r1.data import mbeir
from retrv_r1.data.pack import PackError, data_folder, pack, unpack
from retrv_r1.eval.names import Names
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.named import named_pictures
from retrv_r1.train.pictures import PictureBank
from retrv_r1.types import RetrvError

pytest_plugins = ["training_fixtures"]

ASKED = ("violin", "bell", "house", "user plus")
"""What the icons' cells show."""


def pixels_of(bank: PictureBank) -> list[bytes]:
    return [picture.tobytes() for array in bank.arrays for picture in array]


@pytest.fixture
def packed(pictographs, tmp_path):
    assert pack(pictographs, tmp_path / "set.pack") == (tmp_path / "set.pack").stat().st_size
    return tmp_path / "set.pack"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corpus_from_a_pack_is_that_of_the_folder(pictographs, packed, tmp_path, split):
    folder = unpack(packed, tmp_path / "set")
    ours, theirs = (Corpus(root, split, PictureBank.load(root)) for root in (folder, pictographs))
    assert ours.cells.keys() == theirs.cells.keys()
    for name, cell in theirs.cells.items():
        mine = ours.cells[name]
        assert (mine.queries, mine.pool) == (cell.queries, cell.pool)
        assert mine.instructions == cell.instructions
        for a, b in zip(mine.positives, cell.positives, strict=True):
            assert np.array_equal(a, b)
    assert pixels_of(ours.bank) == pixels_of(theirs.bank)
    assert (folder / "manifest.json").read_bytes() == (pictographs / "manifest.json").read_bytes()


def test_pictures_that_no_cell_shows_stay_behind(pictographs, tmp_path):
    less = tmp_path / "less"
    for split in ("train", "val"):
        (less / "query" / split).mkdir(parents=True)
        (less / "cand_pool/local").mkdir(parents=True, exist_ok=True)
        for path in pictographs.glob(f"query/{split}/*_t2i_*"):
            (less / "query" / split / path.name).write_bytes(path.read_bytes())
            pool = f"{path.stem}_cand_pool.jsonl"
            rows = (pictographs / "cand_pool/local" / pool).read_text().splitlines(True)
            (less / "cand_pool/local" / pool).write_text("".join(rows[3:]))
    for name in ("manifest.json", "metadata.jsonl", "pictures.npy", "pictures.jsonl"):
        (less / name).write_bytes((pictographs / name).read_bytes())
    pack(less, tmp_path / "less.pack")
    bank = PictureBank.load(unpack(tmp_path / "less.pack", tmp_path / "back"))
    whole = PictureBank.load(pictographs)
    assert bank.paths == whole.paths[3:]
    assert pixels_of(bank) == pixels_of(whole)[3:]


def test_fewer_levels_take_fewer_bytes(pictographs, packed, tmp_path):
    pack(pictographs, tmp_path / "few.pack", levels=8)
    assert (tmp_path / "few.pack").stat().st_size < 0.7 * packed.stat().st_size
    ours, theirs = (
        np.concatenate(PictureBank.load(root).arrays)
        for root in (unpack(tmp_path / "few.pack", tmp_path / "few"), pictographs)
    )
    assert len(np.unique(ours)) == 8 and {0, 255} <= set(np.unique(ours))
    assert np.abs(ours.astype(int) - theirs).max() <= 255 / 7 / 2 + 1
    with pytest.raises(PackError, match="levels must be 2 to 256"):
        pack(pictographs, tmp_path / "none.pack", levels=1)


def test_pictures_of_validation_are_files_with_the_same_pixels(pictographs, packed, tmp_path):
    folder = unpack(packed, tmp_path / "set")
    task = mbeir.load(folder, "made_i2i", "val")
    for candidate in task.pool:
        ours, theirs = (
            np.asarray(Image.open(root / str(candidate.image))) for root in (folder, pictographs)
        )
        assert np.array_equal(ours, theirs)


def test_the_same_set_gives_the_same_bytes(pictographs, packed, tmp_path):
    pack(pictographs, tmp_path / "again" / "other-name.pack")
    assert (tmp_path / "again" / "other-name.pack").read_bytes() == packed.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_pack_is_unpacked_once_and_again_if_it_changed(packed, tmp_path):
    folder = data_folder(packed, tmp_path / "set")
    assert data_folder(folder, tmp_path / "unused") == folder
    metadata = folder / "metadata.jsonl"
    metadata.unlink()
    unpack(packed, folder)
    assert not metadata.exists(), "nothing was done"
    unpack(packed, folder, queries=2)
    assert metadata.exists()
    (folder / ".pack").unlink()
    with pytest.raises(PackError, match="was not made from a pack"):
        unpack(packed, folder)


def test_a_thin_set_has_few_queries_and_all_they_name(packed, tmp_path):
    folder = unpack(packed, tmp_path / "thin", queries=3)
    for cell in mbeir.cells(folder):
        task = mbeir.load(folder, cell.dataset, cell.split)
        assert len(task.queries) == 3 and len(task.pool) >= 3


def test_a_thin_set_has_no_judgements_of_candidates_that_are_gone(pictographs, tmp_path):
    whole = shutil.copytree(pictographs, tmp_path / "whole")
    for path in whole.glob("query/*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [f"{q['qid']} 0 {did} 1 0" for q in rows for did in q["pos_cand_list"]]
        judged = whole / "qrels" / path.parent.name / f"{path.stem}_qrels.txt"
        judged.parent.mkdir(parents=True, exist_ok=True)
        judged.write_text("".join(f"{line}\n" for line in lines))
    pack(whole, tmp_path / "set.pack")
    folder = unpack(tmp_path / "set.pack", tmp_path / "thin", queries=1)
    assert Corpus(folder, "train", PictureBank.load(folder)).cells


def with_test_names(icons, folder):
    """The icons with what their tests ask for, and a detail that a query asks for."""
    root = shutil.copytree(icons, folder)
    terms = root / "terms.jsonl"
    terms.write_text(terms.read_text() + '{"code": "bell", "terms": ["gong"], "split": "test"}\n')
    rows = [("300:1", "train", {"kind": "fill", "value": "filled"}), ("300:2", "train", None)]
    rows += [("300:3", "test", {"kind": "fill", "value": "outline"}), ("300:4", "val", None)]
    about = {"target": {"name": "user with a plus"}}
    lines = (json.dumps({"qid": q, "split": s, "detail": d, **about}) + "\n" for q, s, d in rows)
    (root / "query_metadata.jsonl").write_text("".join(lines))
    return root


def test_glyphs_names_terms_and_details_are_carried(icons, tmp_path):
    root = with_test_names(icons, tmp_path / "icons")
    pack(root, tmp_path / "icons.pack")
    folder = unpack(tmp_path / "icons.pack", tmp_path / "set")
    ours, theirs = (PictureBank.load(one) for one in (folder, root))
    listed = [json.loads(line) for line in (root / "pictures.jsonl").open()]
    asked = [Path(path).stem in ASKED for path in theirs.paths]
    kept = [n for n, row in enumerate(listed) if row["split"] == "train" or asked[n]]
    assert ours.paths == [theirs.paths[row] for row in kept], "what only tests show stays behind"
    assert sum(asked) < len(kept) < len(listed)
    assert ours.rgba(range(len(kept))).equal(theirs.rgba(kept))
    corpus = Corpus(folder, "train", ours)
    details = [query.meta.get("detail") for query in corpus.cells["icons_t2i"].queries]
    assert details == [{"kind": "fill", "value": "filled"}, None, None, None]
    whole = Corpus(root, "train", theirs).cells["icons_t2i"].queries[:2]
    assert [query.meta for query in whole] == [{"detail": details[0]}, {}]
    names = named_pictures(corpus)
    bell, house = (names.names.index(name) for name in ("bell", "house"))
    assert names.names == named_pictures(Corpus(root, "train", theirs)).names
    assert set(ASKED) < set(names.names)
    assert (names.terms, names.aliases) == ({bell: ("alarm", "ring")}, {house: ("home",)})
    assert "gong" not in (folder / "terms.jsonl").read_text()
    rows = [json.loads(line) for line in (folder / "query_metadata.jsonl").open()]
    assert [row["qid"] for row in rows] == ["300:1", "300:4"], "test rows stay behind"
    task = mbeir.load(folder, "icons_t2i", "val")
    assert Names(folder).wanted(task.queries[3]) == "user with a plus"
    for candidate in task.pool:  # glyphs are black
        row = theirs.row_of[str(candidate.image)]
        pixels = (theirs.rgba([row])[0].permute(1, 2, 0) * 255).round().byte().numpy()
        assert np.array_equal(np.asarray(Image.open(folder / str(candidate.image))), pixels)


def test_a_small_pack_has_whole_sets_and_what_is_asked_of_them(icons, tmp_path):
    root = with_test_names(icons, tmp_path / "icons")
    for split in ("query/val", "cand_pool/local"):
        for path in (root / split).glob("*val*"):
            path.unlink()
    sets = {}
    for limit in (0, 4, 9, 99):
        pack(root, tmp_path / "icons.pack", limit)
        folder = unpack(tmp_path / "icons.pack", tmp_path / f"set-{limit}")
        bank = PictureBank.load(folder)
        assert len(bank.paths) <= limit
        sets[limit] = {path.split("/")[1] for path in bank.paths}
        if not sets[limit]:
            assert not list(folder.glob("query/*/*"))
            continue
        (cell,) = Corpus(folder, "train", bank).cells.values()
        shown = [Path(bank.paths[entry.picture]) for entry in cell.pool]
        assert sorted((path.parts[1], path.stem) for path in shown) == sorted(
            (name, code) for name in sets[limit] for code in ASKED
        )
        assert all(len(known) for known in cell.positives)
        named = [json.loads(x)["did"] for x in (folder / "metadata.jsonl").open()]
        assert len(named) == len(cell.pool)
    assert sets[0] == set() and sets[4] < sets[9] < sets[99] and len(sets[99]) == 3


def test_names_that_are_held_out_are_not_taught_by_another_set(pictographs, icons, tmp_path):
    """What the pictographs hold out the icons may not name, though a pack leaves it behind."""
    root = shutil.copytree(pictographs, tmp_path / "pictographs")
    rows = [json.loads(line) for line in (root / "pictures.jsonl").read_text().splitlines()]
    new = rows[0] | {"img_path": "mbeir_images/new.png", "name": "Violin", "split": "unseen"}
    pixels = np.load(root / "pictures.npy")
    np.save(root / "pictures.npy", np.concatenate([pixels, pixels[:1]]))
    rows.append(new | {"row": len(rows)})
    (root / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pack(root, tmp_path / "set.pack")
    folder = unpack(tmp_path / "set.pack", tmp_path / "set")
    bank = PictureBank.load(folder, icons)
    assert len(bank.paths) == len(PictureBank.load(root, icons).paths) - 1
    names = named_pictures(Corpus([folder, icons], "train", bank)).names
    assert "violin" not in names and "bell" in names


def test_damaged_packs_are_refused(packed, tmp_path):
    whole = packed.read_bytes()
    for where in (len(whole) // 3, len(whole) - 40):
        changed = bytearray(whole)
        changed[where] ^= 1
        for content in (whole[:where], bytes(changed)):
            packed.write_bytes(content)
            with pytest.raises(PackError, match=r"set\.pack is no pack .* damaged or cut off"):
                unpack(packed, tmp_path / "set")
            assert not (tmp_path / "set").exists()


def test_other_files_are_refused(pictographs, tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(PackError, match="is no pack"):
        unpack(file, tmp_path / "set")
    with lzma.open(file, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.add(pictographs / "manifest.json", "manifest.json")
    with pytest.raises(PackError, match=r"its first entry is not pack\.json"):
        unpack(file, tmp_path / "set")
    (tmp_path / "pack.json").write_text(json.dumps({"format": 9}))
    with lzma.open(file, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.add(tmp_path / "pack.json", "pack.json")
    with pytest.raises(PackError, match="has format 9; this version reads 1"):
        unpack(file, tmp_path / "set")
    with pytest.raises(PackError, match="cannot read"):
        unpack(tmp_path / "nowhere", tmp_path / "set")
    with pytest.raises(PackError, match=r"no manifest\.json: build it with `retrv-r1 data pict"):
        pack(tmp_path, tmp_path / "y")


@pytest.mark.parametrize("name", ["pictures.npy", "manifest.json", "pictures.jsonl"])
def test_a_damaged_data_set_is_not_packed(pictographs, tmp_path, name):
    copy = shutil.copytree(pictographs, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:9])
    with pytest.raises(RetrvError, match=rf"{name}.*build it again"):
        pack(copy, tmp_path / "set.pack")
    assert not list(tmp_path.glob("*.pack*"))
