"""What a ranking says that it has cost: items, rows, pictures and seconds."""

from __future__ import annotations

from rerank_doubles import SHORT, distinct_texts

from retrv_r1 import Item, RankRequest

pytest_plugins = ["rerank_fixtures"]


def test_the_bill_counts_all_windows_items_and_pictures(reranker, mixed, picture, tmp_path):
    path = tmp_path / "one.png"
    picture(3).save(path)
    listed = [*mixed, path, path.read_bytes(), mixed[0]]
    request = RankRequest("q", listed)
    first = reranker.submit(request, sampling=SHORT).result().bill
    distinct = 2 + len(mixed)  # with the query and the file, which is there twice
    assert (first.encoded, first.remembered, first.stored) == (distinct, 0, 0)
    assert first.pictures == 7
    pixels = 3 * 48 * (48 + 64 + 48 + 64) + 3 * 32 * 64
    assert first.picture_bytes == pixels + 2 * path.stat().st_size
    again = reranker.submit(request, sampling=SHORT).result()
    assert (again.bill.encoded, again.bill.remembered) == (0, distinct)
    assert again.bill.tokens == again.tokens and again.bill.tokens.cached == again.tokens.prompt
    assert again.bill.inspections == len(again.inspected) and again.bill.prompts == 1
    phases = {"queue", "features", "compression", "prefill", "decode", "answer", "total"}
    assert phases <= set(again.bill.seconds) <= phases | {"inspection"}
    parts = sum(s for phase, s in again.bill.seconds.items() if phase != "total")
    assert 0 < parts <= again.bill.seconds["total"] * 1.05
    many = reranker.submit(RankRequest("q", distinct_texts(100)), mode="fast").result()
    assert many.bill.prompts == 3 and many.bill.tokens.candidates == 3 * many.tokens.candidates


def test_rows_of_pictures_are_those_that_were_read_in_full(reranker, mixed, picture):
    query = Item(text="q", image=picture(20))
    first, *rest = reranker.encoder.encode([query, *mixed])
    rows = [one.item.picture_rows for one in rest]
    own = first.item.picture_rows
    assert own > 0 and sorted(map(bool, rows)) == [False] * 4 + [True] * 5
    fast = reranker.rank(query, mixed, mode="fast")
    assert fast.tokens.pictures == fast.bill.tokens.pictures == own
    full = reranker.rank(query, mixed, mode="fast", reading="full")
    assert full.tokens.pictures == own + sum(rows)
    pairs = reranker.rank(query, mixed, mode="fast", reading="pointwise")
    assert pairs.tokens.pictures == len(mixed) * own + sum(rows)
    looked = reranker.rank(query, mixed[::-1], sampling=SHORT)
    seen = sum(rows[::-1][number] for number in looked.inspected)
    assert seen > 0 and looked.tokens.pictures == own + seen
    assert looked.tokens.pictures < looked.tokens.prompt + looked.tokens.inspected
