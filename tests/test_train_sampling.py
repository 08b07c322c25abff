"""Which lists are drawn for training: one positive anywhere, neighbours of one style; and which
lists validation ranks: those that the first stage finds."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from training_fixtures import ICONS, unit, write_lines

from retrv_r1.train.corpus import Corpus, ListExample
from retrv_r1.train.entry_vectors import Vectors
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.named import named_pictures
from retrv_r1.train.pictures import PictureBank
from retrv_r1.train.sampling import ListSampler, with_default_instruction, without_answer
from retrv_r1.train.validation import ListValidation

pytest_plugins = ["training_fixtures"]


def row_of(corpus, example: ListExample) -> int:
    queries = corpus.cells[example.cell].queries
    return next(i for i, query in enumerate(queries) if query is example.query)


def test_lists_hold_one_positive_anywhere_and_no_duplicates(corpus, sampler, chi_square):
    rng, places = np.random.default_rng(0), []
    for _ in range(200):
        for example in sampler.draw(rng, 4, 6, 0.5, share=4):
            cell, count = corpus.cells[example.cell], len(example.candidates)
            right = {cell.pool[p].key for p in cell.positives[row_of(corpus, example)]}
            assert right == example.relevant
            assert [c.key in right for c in example.candidates].count(True) == 1
            assert example.candidates[example.answer].key in right
            assert len({c.key for c in example.candidates}) == count <= 6
            assert sorted(example.closeness) == list(range(count))
            assert example.closeness[example.answer] == 0
            places.append((count, example.answer))
    found = [place for count, place in places if count == 6]
    assert len(found) > 200
    assert chi_square(np.bincount(found, minlength=6)) < 25.7  # 0.9999 quantile, 5 degrees


def test_candidates_are_of_one_style(sampler):
    rng = np.random.default_rng(0)
    for example in sampler.draw(rng, 200, 5, 0.0):
        assert len({c.meta.get("style") for c in example.candidates}) == 1


def test_lists_that_share_have_different_queries_over_the_same_candidates(sampler):
    rng, shared = np.random.default_rng(0), 0
    for _ in range(100):
        lists = sampler.draw(rng, 3, 6, 0.5, share=3)
        if len({x.cell for x in lists}) > 1:
            continue
        first = {c.key for c in lists[0].candidates}
        together = [x for x in lists[1:] if {c.key for c in x.candidates} <= first]
        assert all(x.query is not lists[0].query for x in together)
        shared += len(together)
    assert shared > 20


def test_the_hardest_negatives_are_the_nearest(corpus, vectors, sampler):
    rng = np.random.default_rng(0)

    def similarity(hard: float) -> float:
        found = []
        for _ in range(60):
            (example,) = sampler.draw(rng, 1, 4, hard)
            cell, own = corpus.cells[example.cell], vectors[example.cell]
            number = {entry.key: i for i, entry in enumerate(cell.pool)}
            negatives = [c for k, c in enumerate(example.candidates) if k != example.answer]
            scores = (
                own.pool[[number[c.key] for c in negatives]] @ own.queries[row_of(corpus, example)]
            )
            order = [r for k, r in enumerate(example.closeness) if k != example.answer]
            assert np.array_equal(np.argsort(order), np.argsort(-scores))
            if hard == 1:
                style = example.candidates[0].meta.get("style")
                others = [
                    float(own.pool[i] @ own.queries[row_of(corpus, example)])
                    for i, entry in enumerate(cell.pool)
                    if entry.meta.get("style") == style and entry.key not in example.relevant
                ]
                assert min(scores) >= sorted(others)[-len(negatives)] - 1e-9
            found += scores.tolist()
        return float(np.mean(found))

    assert similarity(1.0) > similarity(0.0) + 0.1


def test_a_pool_smaller_than_the_list_ends_the_list(sampler):
    (example,) = sampler.draw(np.random.default_rng(0), 1, 50, 0.5, cell="made_i2t")
    assert len(example.candidates) == 10


def test_a_share_of_the_lists_gets_the_default_instruction(sampler):
    rng = np.random.default_rng(0)
    lists = with_default_instruction(sampler.draw(rng, 300, 3, 0.0), rng, 0.5)
    assert 100 < sum(not x.instruction for x in lists) < 200


def test_a_list_without_its_answer_keeps_the_others_and_their_order(sampler):
    rng = np.random.default_rng(0)
    for example in sampler.draw(rng, 60, 6, 0.5):
        less = without_answer(example)
        others = [c for k, c in enumerate(example.candidates) if k != example.answer]
        assert less.answer is None and list(less.candidates) == others
        ranks = [r for k, r in enumerate(example.closeness) if k != example.answer]
        assert np.array_equal(np.argsort(ranks), np.argsort(less.closeness))
        assert sorted(less.closeness) == list(range(len(others)))


def test_queries_by_name_are_worded_and_ideals_are_their_own_words(corpus, vectors):
    worded = ListSampler(corpus, vectors, named_pictures(corpus), wordings=1.0, unanswered=0.5)
    lists = worded.draw(np.random.default_rng(0), 300, 5, 0.5)
    texts = [x for x in lists if x.query.text]
    names = {entry.text for entry in corpus.cells["made_t2i"].queries}
    assert texts and all(x.bare and x.ideal in names for x in texts)
    assert sum(x.query.text not in names for x in texts) > len(texts) / 2
    assert 90 < sum(x.answer is None for x in lists) < 210
    for example in lists:
        if example.query.picture is not None:  # its picture's own name
            assert example.ideal == named_pictures(corpus).name(example.query.picture)
            break


def test_ideals_say_the_detail_that_is_asked_for(icons, tmp_path):
    """What a query asks for is in its metadata; a change has no name of its own."""
    root = tmp_path / "icons"
    shutil.copytree(icons, root)
    path = root / "query/train/mbeir_icons_t2i_train.jsonl"
    queries = [json.loads(line) for line in path.read_text().splitlines()]
    shown = json.loads((root / "pictures.jsonl").read_text().splitlines()[0])["img_path"]
    words = "a picture of a person in a manual wheelchair facing right with dark skin tone"
    queries[0] |= {"query_txt": words}
    queries[1] |= {"query_txt": "make it solid", "query_img_path": shown}
    write_lines(path, queries)
    details = [{"kind": "skin", "value": "dark"}, {"kind": "fill", "value": "filled"}, None]
    write_lines(
        root / "query_metadata.jsonl",
        [{"qid": q["qid"], "detail": d} for q, d in zip(queries, details, strict=False)],
    )
    corpus = Corpus(root, "train", PictureBank.load(root))
    (cell,) = corpus.cells.values()
    assert [query.meta for query in cell.queries[:2]] == [{"detail": d} for d in details[:2]]
    assert all(not query.meta for query in cell.queries[2:])
    rng = np.random.default_rng(0)
    vectors = {cell.name: Vectors(unit(rng, len(cell.queries)), unit(rng, len(cell.pool)))}
    sampler = ListSampler(corpus, vectors, named_pictures(corpus))
    found = {x.query.text: x.ideal for x in sampler.draw(rng, 200, 5, 0.5)}
    assert found[words] == "person in manual wheelchair facing right with dark"
    assert found["make it solid"] == f"{ICONS[1]} filled"


@pytest.fixture
def collator(processor) -> ListCollator:
    collator = ListCollator(processor)
    side = 16 // (processor.image_processor.patch_size * processor.image_processor.merge_size)
    collator.grid = (side, side)
    return collator


def oracle(corpus) -> dict[str, Vectors]:
    """Vectors of a first stage that finds one of each query's positives, always."""
    found = {}
    for name, cell in corpus.cells.items():
        pool = np.eye(len(cell.pool))
        queries = np.stack([pool[known[0]] for known in cell.positives])
        found[name] = Vectors(queries, pool)
    return found


def test_a_perfect_first_stage_hands_over_every_answer(corpus, collator):
    validation = ListValidation(corpus, oracle(corpus), collator, k=3, queries=4)
    assert validation.first_stage == 1
    for name, lists in validation.lists.items():
        cell = corpus.cells[name]
        assert len(lists) == validation.sizes[name] == min(4, len(cell.queries))
        for example in lists:
            right = {cell.pool[n].key for n in cell.positives[row_of(corpus, example)]}
            shown = [c.key for c in example.candidates]
            assert len(shown) <= 3 and shown[example.answer] in right
            assert sum(key in right for key in shown) == 1


def test_a_query_whose_answer_was_not_retrieved_counts_as_missed(corpus, collator):
    vectors = {}
    for name, cell in corpus.cells.items():
        pool = np.eye(len(cell.pool))
        wrong = [np.setdiff1d(range(len(cell.pool)), known)[0] for known in cell.positives]
        vectors[name] = Vectors(np.stack([pool[n] for n in wrong]), pool)
    validation = ListValidation(corpus, vectors, collator, k=1, queries=4)
    assert validation.first_stage == 0
    assert all(lists == [] for lists in validation.lists.values())
    assert all(size > 0 for size in validation.sizes.values())
