"""Feature rows in memory and on disk: found, lost, damaged, and never in a request's way."""

from __future__ import annotations

import sqlite3
import threading

import pytest
import torch

from retrv_r1.rerank.feature_encoder import FeatureEncoder
from retrv_r1.rerank.feature_store import FeatureStore, fingerprint
from retrv_r1.types import Item, RetrvError

diskcache = pytest.importorskip("diskcache")


@pytest.fixture
def items(picture) -> list[Item]:
    return [Item("a red apple"), Item(image=picture(0)), Item("a blue bird", picture(1, 64, 32))]


def counts(encoder: FeatureEncoder) -> tuple[int, int, int]:
    stats = encoder.stats()
    return stats.ram_hits, stats.disk_hits, stats.encoded


def same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.item == other.item and one.key == other.key
        assert one.rows.dtype == other.rows.dtype and torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_one_process_encoded_another_finds(make_model, processor, items, tmp_path, dtype):
    model = make_model().to(dtype)
    first = FeatureEncoder(model, processor, directory=tmp_path)
    expected = first.encode([*items, items[0]])
    assert counts(first) == (0, 0, 3)
    second = FeatureEncoder(model, processor, directory=tmp_path)
    same(second.encode([*items, items[0]]), expected)
    assert counts(second) == (0, 3, 0)
    same(second.encode(items[:2]), expected[:2])
    assert counts(second) == (2, 3, 0) and second.stats().hit_rate == 1.0
    assert second.stats().bytes == sum(f.rows.nbytes for f in expected[:3])


def test_rows_of_other_weights_or_settings_are_not_found(
    make_model, processor, items, tmp_path, monkeypatch
):
    FeatureEncoder(make_model(0), processor, directory=tmp_path).encode(items)
    other = FeatureEncoder(make_model(1), processor, directory=tmp_path)
    other.encode(items)
    assert counts(other) == (0, 0, 3)
    before = fingerprint(make_model(0), processor)
    assert before == fingerprint(make_model(0), processor)
    assert before != fingerprint(make_model(0).to(torch.bfloat16), processor)
    monkeypatch.setattr(processor.image_processor, "do_normalize", False)
    assert before != fingerprint(make_model(0), processor)


def test_changed_weights_are_noticed(make_model, processor, items, tmp_path):
    model = make_model()
    encoder = FeatureEncoder(model, processor, directory=tmp_path)
    old = encoder.encode(items)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    encoder.clear()
    new = encoder.encode(items)
    assert encoder.version == 1 and counts(encoder) == (0, 0, 6)
    torch.testing.assert_close(new[0].rows, 2 * old[0].rows)


def test_rows_are_not_kept_if_the_weights_change_meanwhile(
    make_model, processor, items, tmp_path, monkeypatch
):
    model = make_model()
    encoder = FeatureEncoder(model, processor, directory=tmp_path)
    features = model.features

    def interrupted(packed):
        rows = features(packed)
        encoder.clear()
        return rows

    monkeypatch.setattr(model, "features", interrupted)
    assert {one.version for one in encoder.encode(items)} == {0}
    monkeypatch.undo()
    assert encoder.stats().bytes == 0
    assert {one.version for one in encoder.encode(items)} == {1}
    assert counts(encoder) == (0, 0, 6), "neither in memory nor on disk"


def test_a_damaged_entry_is_encoded_again_and_stored(model, processor, items, tmp_path):
    encoder = FeatureEncoder(model, processor, directory=tmp_path)
    expected = encoder.encode(items)
    with diskcache.Cache(str(tmp_path)) as cache:
        for name, damage in zip(list(cache), (b"", b"nonsense" * 9, None), strict=True):
            cache[name] = damage if damage is not None else cache[name][:-5]
    fixed = FeatureEncoder(model, processor, directory=tmp_path)
    with pytest.warns(UserWarning, match="cannot read from the feature cache"):
        same(fixed.encode(items), expected)
    assert counts(fixed) == (0, 0, 3)
    again = FeatureEncoder(model, processor, directory=tmp_path)
    same(again.encode(items), expected)
    assert counts(again) == (0, 3, 0)


def test_a_full_disk_costs_a_warning(model, processor, items, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    encoder = FeatureEncoder(model, processor, directory=tmp_path)
    monkeypatch.setattr(diskcache.Cache, "set", full)
    with pytest.warns(UserWarning, match="disk is full") as caught:
        encoder.encode(items)
    assert len(caught) == 1 and counts(encoder) == (0, 0, 3)


@pytest.mark.parametrize("damage", ["nonsense", "unable to open", "disk I/O error"])
def test_a_cache_that_cannot_be_opened_costs_one_warning(
    model, processor, items, tmp_path, monkeypatch, damage
):
    def refuse(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError(damage)

    if damage == "nonsense":
        (tmp_path / "cache.db").write_bytes(bytes(range(256)) * 16)
    else:
        monkeypatch.setattr(diskcache, "Cache", refuse)
    with pytest.warns(UserWarning, match="goes on without the feature cache") as caught:
        encoder = FeatureEncoder(model, processor, directory=tmp_path)
        encoder.encode(items)
        encoder.encode(items)
    assert len(caught) == 1 and counts(encoder) == (3, 0, 3)


def test_a_folder_that_cannot_be_is_refused(model, processor, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RetrvError, match="it is a file; name a folder"):
        FeatureEncoder(model, processor, directory=tmp_path / "file")


def test_the_directory_stays_within_its_size(model, processor, tmp_path):
    encoder = FeatureEncoder(model, processor, directory=tmp_path, disk_bytes=200_000)
    for n in range(300):
        encoder.encode([Item(f"item {n} of many words and more")])
    assert FeatureStore(tmp_path, 200_000)._cache.volume() < 400_000


def test_threads_get_what_they_asked_for(model, processor, picture):
    encoder = FeatureEncoder(model, processor, capacity_bytes=4000)
    expected = [encoder.encode([Item(f"item {n}")])[0].rows for n in range(12)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(30):
            n = (seed * 7 + i * 5) % 12
            if not torch.equal(encoder.encode([Item(f"item {n}")])[0].rows, expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert encoder.stats().bytes == sum(f.rows.nbytes for f in encoder._kept.values()) <= 4000
