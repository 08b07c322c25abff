"""Cells of the icon corpus: what is asked, what is relevant, and what training never sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from icons_fixtures import EMOJI, HELD, icon_corpus, icon_terms
from PIL import Image

from retrv_r1.data import mbeir
from retrv_r1.data.icons.cells import Plan
from retrv_r1.data.icons.corpus import IconRow
from retrv_r1.data.icons.drafts import CellData, did
from retrv_r1.data.icons.index import Index, Pool, bag
from retrv_r1.data.icons.pools import Sizes
from retrv_r1.data.icons.publish import glyph_colour, publish
from retrv_r1.eval.cells import choose, part_of

SIZES = Sizes(names=200, terms=50, detail=300, i2i=50, i2t=50, it2i=100, evaluation=80, pool=60)


@cache
def cells() -> Sequence[CellData]:
    return tuple(Plan(icon_corpus(), icon_terms(), 0, SIZES).cells())


def cell(name: str, split: str) -> CellData:
    return next(c for c in cells() if c.dataset.name == name and c.split == split)


def row_of(name: str) -> IconRow:
    return icon_corpus().rows[int(name.split(":")[1])]


def test_every_part_has_cells_and_every_positive_is_in_its_pool() -> None:
    parts = {part_of(mbeir.Cell(c.dataset.name, c.split, Path(), {})) for c in cells()}
    assert parts == {"train", "val", "hands", "concepts", "terms", "detail"}
    for one in cells():
        pool = {did(row) for row in one.pictures} | set(one.texts)
        for draft in one.drafts:
            assert draft.positives and set(draft.positives) <= pool
            assert not set(draft.positives) & set(draft.negatives)
            assert len(set(draft.positives)) == len(draft.positives)


def test_cells_depend_on_the_seed_alone() -> None:
    again = tuple(Plan(icon_corpus(), icon_terms(), 0, SIZES).cells())
    assert [c.drafts for c in again] == [c.drafts for c in cells()]
    other = tuple(Plan(icon_corpus(), icon_terms(), 1, SIZES).cells())
    assert [c.drafts for c in other] != [c.drafts for c in cells()]


def test_training_shows_no_held_out_hand_and_no_held_out_concept() -> None:
    for one in cells():
        if one.split == "train":
            shown = [*one.pictures, *(d.image for d in one.drafts if d.image)]
            assert all(row.split == "train" for row in shown)
            texts = {text for text, _ in one.texts.values()}
            texts |= {draft.text for draft in one.drafts if draft.text}
            assert not any(held in text.split() for text in texts for held in HELD)


def test_training_uses_no_terms_of_the_test_and_no_term_that_names_what_is_held_out() -> None:
    said = {w for d in cell("icons_terms_t2i", "train").drafts for w in d.details["keywords"]}
    assert "pet" in said and said & {"rain", "weather", "shelter", "parasol"}
    assert not said & {"violin", "fiddle", "music"}  # names a held-out thing, or means it
    assert not said & {"protection", "bark", "document"}  # only lucide says so
    assert not said & {"building"}  # validates


def test_a_term_is_relevant_for_everything_that_carries_it() -> None:
    drafts = cell("icons_terms_t2i", "train").drafts
    pets = [d for d in drafts if d.details["keywords"] == ["pet"]]
    assert pets
    for draft in pets:
        assert {row_of(p).code for p in draft.positives} == {"dog", "cat"}


def test_test_terms_are_lucides_and_count_twins_in_other_sets() -> None:
    drafts = cell("icons_terms_t2i_mixed", "test").drafts
    said = {word for draft in drafts for word in draft.details["keywords"]}
    assert said <= {"rain", "protection", "bark", "pet", "document", "paper"}
    rain = next(draft for draft in drafts if draft.target["code"] == "umbrella")
    assert {row_of(p).set for p in rain.positives} == {"lucide", "carbon", "emojione"}
    own = cell("icons_terms_t2i_lucide", "test")
    assert {row.set for row in own.pictures} == {"lucide"}


def test_a_hand_is_searched_alone_and_all_its_pictures_of_a_name_are_relevant() -> None:
    one = cell("icons_hands_t2i_lucide", "test")
    assert {row.set for row in one.pictures} == {"lucide"}
    for draft in one.drafts:
        wanted = bag(draft.target["code"])
        shown = {did(row) for row in one.pictures if bag(row.code) == wanted}
        assert set(draft.positives) == shown
        assert draft.target["code"] not in HELD
    wordings = {draft.details["wording"] for draft in one.drafts}
    assert wordings == {"bare", "train", "test"}


def test_training_queries_are_bare_names() -> None:
    for draft in cell("icons_names_t2i", "train").drafts:
        assert draft.text == draft.details["query_name"] == draft.target["name"]


def test_unseen_concepts_are_drawn_by_known_hands_among_known_things() -> None:
    one = cell("icons_concepts_t2i", "test")
    assert {draft.target["code"] for draft in one.drafts} == {"anchor", "violin"}
    assert all(row.hand_split == "train" for row in one.pictures)
    assert {"dog", "cat"} <= {row.code for row in one.pictures}


def test_a_picture_is_not_its_own_answer() -> None:
    for one in cells():
        for draft in one.drafts:
            if draft.image is not None:
                assert did(draft.image) not in draft.positives
    across = cell("icons_hands_i2i", "test")
    asking = {draft.image.family for draft in across.drafts if draft.image}
    assert not asking & {row.family for row in across.pictures}


def test_other_names_of_a_thing_are_relevant_too() -> None:
    index = Index(icon_corpus())
    assert index.same("home") == {"home", "house"}
    pool = Pool(index, [row for row in icon_corpus().rows if row.set == "lucide"])
    assert {row.code for row in pool.showing("home")} == {"house"}
    assert bag("plus user") == bag("user plus")
    assert bag("arrow left to right") != bag("arrow right to left")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("icons")
    corpus = icon_corpus()
    colours = sum(row.colour for row in corpus.rows)
    np.save(out / "pictures.npy", np.full((colours, 8, 8, 4), 200, np.uint8))
    np.save(out / "glyphs.npy", np.full((len(corpus.rows) - colours, 8, 8), 255, np.uint8))
    publish(out, corpus, icon_terms(), cells(), seed=0)
    return out


def test_written_cells_are_read_as_mbeir(published: Path) -> None:
    for one in cells():
        task = mbeir.load(published, one.dataset.name, one.split)
        assert len(task.queries) == len(one.drafts)
        assert len(task.pool) == len({row.row for row in one.pictures}) + len(one.texts)
        assert all(mbeir.instruction(query) for query in task.queries)
        assert not any(query.disputed for query in task.queries)


def test_parts_of_the_test_are_found_by_name(published: Path) -> None:
    for part in ("hands", "concepts", "terms", "detail"):
        found = choose(published, part)
        assert found and all(c.dataset.startswith(f"icons_{part}_") for c in found)
    assert {c.split for c in choose(published, "val")} == {"val"}


def test_pictures_of_tests_are_files_and_those_of_training_are_not(published: Path) -> None:
    for one in cells():
        for row in one.pictures:
            path = published / row.img_path
            if one.split != "train":
                with Image.open(path) as image:
                    assert image.size == (8, 8)
    dog = next(r for r in icon_corpus().rows if r.set == "ph" and r.code == "dog")
    assert not (published / dog.img_path).exists() or any(
        dog in c.pictures for c in cells() if c.split != "train"
    )
    colours = {glyph_colour(row, 0) for row in icon_corpus().rows}
    assert (0, 0, 0) in colours and len(colours) > 2


def test_metadata_names_rows_and_details(published: Path) -> None:
    lines = (published / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["did"]: row for row in map(json.loads, lines)}
    for name, row in rows.items():
        if row["kind"] == "picture":
            assert row["code"] == row_of(name).code and row["style"] == row_of(name).set
    badge = next(r for r in rows.values() if r["code"] == "bell plus")
    assert badge["details"]["badge"] == "plus"
    toned = next(r for r in rows.values() if r.get("skin_tone") == "medium dark")
    assert toned["details"]["skin"] == "medium-dark" and toned["style"] in EMOJI
    queries = (published / "query_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    known = {row["qid"]: row for row in map(json.loads, queries)}
    assert len(known) == sum(len(c.drafts) for c in cells())
    run = published / "candidates" / "icons_detail_badge_test.trec"
    first = run.read_text(encoding="utf-8").splitlines()[0].split()
    assert known[first[0]]["detail"]["kind"] == "badge" and first[2] in rows
