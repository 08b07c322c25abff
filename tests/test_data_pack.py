"""A built data set as one file: complete, the same bytes always, and never half read."""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from retrv_r1.data import mbeir
from retrv_r1.data.pack import PackError, data_folder, pack, unpack
from retrv_r1.train.corpus import Corpus
from retrv_r1.train.pictures import PictureBank
from retrv_r1.types import RetrvError

pytest_plugins = ["training_fixtures"]


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
    assert ours.bank.concepts == theirs.bank.concepts
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
