"""The feature cache: each distinct item once, the same rows whatever is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from retrv_r1.rerank.feature_encoder import FeatureEncoder, pack_features
from retrv_r1.types import Item, ItemError


@pytest.fixture
def encoded(processor, monkeypatch) -> list[Item]:
    """The items that were encoded, in order."""
    seen: list[Item] = []
    encode = processor.encode
    monkeypatch.setattr(processor, "encode", lambda item: (seen.append(item), encode(item))[1])
    return seen


@pytest.fixture
def items(picture) -> Callable[[int], list[Item]]:
    return lambda count: [
        Item(text=f"item {n}", image=picture(n, 64, 32) if n % 2 else None) for n in range(count)
    ]


def rows_of(features) -> list[torch.Tensor]:
    return [f.rows for f in features]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_rows_are_the_models_features_in_order(model, processor, items):
    found = FeatureEncoder(model, processor).encode(items(5))
    expected = [
        model.features(processor.pack([processor.encode(item)])).detach() for item in items(5)
    ]
    assert_same(rows_of(found), expected)
    assert all(f.item.patches is None and len(f.item) == len(f.rows) for f in found)
    packed, offsets = pack_features(found)
    assert len(packed) == offsets[-1] and offsets[0] == 0
    assert not packed.requires_grad


def test_each_distinct_item_is_encoded_once(model, processor, items, encoded):
    encoder = FeatureEncoder(model, processor)
    four = items(4)
    named = Item(four[1].text, four[1].image, id="another name")
    first = encoder.encode([four[1], four[0], named, four[0], four[1]])
    assert len(encoded) == 2
    assert first[0] is first[2] is first[4]
    assert_same(
        rows_of(encoder.encode(four)), rows_of(FeatureEncoder(model, processor).encode(four))
    )
    assert len(encoded) == 2 + 2 + 4


@pytest.mark.parametrize("name", ["text", "picture", "picture and text", "shape of the picture"])
def test_items_that_differ_are_not_mixed_up(model, processor, picture, name):
    one = Item(text="a", image=picture(1, 64, 32))
    other = {
        "text": Item(text="b", image=one.image),
        "picture": Item(text="a", image=picture(2, 64, 32)),
        "picture and text": Item(text="a"),
        "shape of the picture": Item("a", Image.frombytes("RGB", (32, 64), one.image.tobytes())),
    }[name]
    rows = rows_of(FeatureEncoder(model, processor).encode([one, other]))
    assert rows[0].shape != rows[1].shape or not torch.allclose(rows[0], rows[1], atol=1e-2)


def test_the_least_recently_used_go_first(model, processor, items, encoded):
    size = FeatureEncoder(model, processor).encode(items(1))[0].rows.nbytes
    encoder = FeatureEncoder(model, processor, capacity_bytes=3 * size)
    texts = [Item(text=f"item {n}") for n in range(5)]
    assert {f.rows.nbytes for f in FeatureEncoder(model, processor).encode(texts)} == {size}
    encoder.encode(texts[:3])
    encoder.encode(texts[:1])  # 0 is now the youngest
    encoder.encode([texts[3]])  # pushes out 1
    encoded.clear()
    encoder.encode([texts[0], texts[2], texts[3]])
    assert encoded == []
    encoder.encode([texts[1]])
    assert encoded == [texts[1]]


@pytest.mark.parametrize("capacity", [0, 1, 5000, 2**20])
@pytest.mark.parametrize("batch_rows", [1, 12, 2**14])
def test_room_and_batches_change_nothing_but_work(model, processor, items, capacity, batch_rows):
    expected = rows_of(FeatureEncoder(model, processor).encode(items(6)))
    encoder = FeatureEncoder(model, processor, capacity, batch_rows)
    for order in ([0, 1, 2, 3, 4, 5], [5, 5, 0, 3], [2, 4, 1]):
        found = encoder.encode([items(6)[i] for i in order])
        assert_same(rows_of(found), [expected[i] for i in order])


def test_the_tower_never_sees_much_more_than_a_batch(model, processor, items, monkeypatch):
    sizes: list[int] = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda p: (sizes.append(len(p.ids)), features(p))[1])
    encoder = FeatureEncoder(model, processor, batch_rows=30)
    longest = max(len(f.rows) for f in encoder.encode(items(12)))
    assert len(sizes) > 2 and max(sizes) < 30 + longest


def test_an_unusable_item_is_named_by_its_first_place_or_its_id(model, processor, picture):
    encoder, broken = FeatureEncoder(model, processor), Item(image=b"nonsense")
    good = Item(text="q")
    with pytest.raises(ItemError, match=r"^candidate 1: "):
        encoder.encode([good, good, broken, broken])
    with pytest.raises(ItemError, match=r"^the query: "):
        encoder.encode([broken, good])
    with pytest.raises(ItemError, match=r"^a\.png: "):
        encoder.encode([good, Item(image=b"nonsense", id="a.png")])
    assert len(encoder.encode([good, Item(image=picture(0))])) == 2, "the encoder goes on working"


@pytest.fixture
def photos(picture) -> list[Item]:
    """Pictures that are worth a thread, with texts and icons between them."""
    large = [Item(image=picture(n, 256, 300)) for n in range(12)]
    return [Item(text="a red apple"), *large[:6], Item(image=picture(99)), *large[6:]]


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_threads_read_pictures_in_order_and_not_far_ahead(
    model, processor, photos, monkeypatch, workers
):
    expected = rows_of([FeatureEncoder(model, processor).encode([item])[0] for item in photos])
    readers, started, read = set(), [], processor.encode

    def encode(item):
        readers.add(threading.current_thread())
        started.append(item)
        time.sleep(0.001 * (len(started) % 3))
        return read(item)

    monkeypatch.setattr(processor, "encode", encode)
    encoder = FeatureEncoder(model, processor, workers=workers)
    first = next(encoder._read(list(enumerate(photos))))
    assert len(started) <= 2 * workers + 1 and len(first) == len(expected[0])
    assert threading.main_thread() not in readers and len(readers) <= workers
    assert_same(rows_of(encoder.encode(photos)), expected)


def test_small_pictures_are_read_where_they_are_wanted(model, processor, picture, monkeypatch):
    readers, read = set(), processor.encode
    monkeypatch.setattr(
        processor, "encode", lambda x: (readers.add(threading.current_thread()), read(x))[1]
    )
    small = [Item(image=picture(n)) for n in range(5)]
    FeatureEncoder(model, processor).encode([*small, Item(image=picture(9, 300, 300))])
    assert readers == {threading.current_thread()}


def test_an_unusable_picture_is_named_whatever_thread_has_read_it(model, processor, photos):
    encoder = FeatureEncoder(model, processor, workers=3)
    broken = Item(image=b"nonsense" * 3000)
    with pytest.raises(ItemError, match=r"^candidate 6: "):
        encoder.encode([*photos[:7], broken, *photos[7:], broken])
    assert len(encoder.encode(photos)) == len(photos), "the encoder goes on working"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patches_are_made_in_the_towers_dtype(make_model, processor, photos, monkeypatch, dtype):
    model = make_model().to(dtype)
    encoder, seen, features = FeatureEncoder(model, processor), [], model.features
    monkeypatch.setattr(model, "features", lambda x: (seen.append(x), features(x))[1])
    found = encoder.encode(photos)
    assert [packed.pixel_values.dtype for packed in seen] == [dtype]
    packed = processor.pack([processor.encode(item) for item in photos])
    assert packed.pixel_values.dtype == torch.float32
    assert torch.equal(torch.cat(rows_of(found)), model.features(packed))


def test_a_gpu_gets_patches_in_pinned_memory(processor, photos, monkeypatch):
    """As far as a CPU can: pinned memory is asked for, and copied from without waiting."""
    made, empty = [], torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *x, pin_memory=False, **y: (made.append(pin_memory), empty(*x, **y))[1],
    )
    encoded = [processor.encode(item) for item in photos[:3]]
    packed = processor.pack(encoded, pin=True)
    assert made[-1] is True and packed.picture_rows == sum(e.picture_rows for e in encoded)
    assert torch.equal(packed.pixel_values, processor.pack(encoded).pixel_values)
