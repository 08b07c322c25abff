"""Training lists: chains that give nothing away, targets that are exactly the model's own tokens,
and the same rows at the same positions as a served request."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from retrv_engine import Output, Request
from retrv_engine.plain import embed_pieces
from retrv_engine.request import length_of
from retrv_r1.model.chains import parse
from retrv_r1.model.tokens import MAX_CANDIDATES
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.train.chains import chain, describe, is_close
from retrv_r1.train.corpus import Entry, ListExample, rivals
from retrv_r1.train.lists import ListBatch, ListCollator
from retrv_r1.train.losses import run_lists
from retrv_r1.train.pictures import on_white, to_patches
from retrv_r1.train.sampling import without_answer
from retrv_r1.types import Item

pytest_plugins = ["training_fixtures"]


def text_list(rng: np.random.Generator, size: int, answer: int | None = None) -> ListExample:
    """Candidates of five bases; the answer's neighbours share its base or a word of its name."""
    bases = rng.integers(5, size=size)
    entries = [
        Entry(f"thing {base} number {i}", None, {"base": f"B{base}", "subgroup": f"S{base % 2}"})
        for i, base in enumerate(bases)
    ]
    right = int(rng.integers(size)) if answer is None else answer
    others = rng.permutation(np.array([i for i in range(size) if i != right], int))
    closeness = np.zeros(size, int)
    closeness[others] = np.arange(1, size)
    return ListExample("cell", "Which?", Entry("q", None, {}), entries, right, closeness.tolist())


def test_chains_name_the_answer_and_look_at_what_a_detail_decides():
    rng = np.random.default_rng(0)
    inspections = Counter()
    for _ in range(400):
        example = text_list(rng, int(rng.integers(1, 20)))
        thought = chain(example, rng)
        assert thought is not None and parse(thought.text()) == thought
        named, looked = ([k for k, _ in said] for said in (thought.near, thought.seen))
        assert example.answer in named and len(set(named)) == len(named)
        assert min(2, len(example.candidates)) <= len(named) <= 3
        assert thought.ideal == describe(example.candidates[example.answer])
        assert thought.best is None, "the decision is the answer behind the chain"
        assert not looked or example.answer in looked
        assert looked == [k for k in named if k in looked], "in the order in which they are named"
        for candidate, said in (*thought.near, *thought.seen):
            assert said == describe(example.candidates[candidate])
        close = [is_close(example.candidates[example.answer], example.candidates[k]) for k in named]
        assert len(looked) == (sum(close) if sum(close) > 1 else 0)
        inspections[len(looked)] += 1
    assert inspections.keys() == {0, 2, 3} and min(inspections.values()) > 10


def test_a_list_without_an_answer_has_a_chain_and_one_without_words_has_none():
    rng = np.random.default_rng(0)
    example = replace(text_list(rng, 6), ideal="a violin")
    thought = chain(without_answer(example), rng)
    assert thought is not None and thought.ideal == "a violin" and len(thought.near) >= 2
    assert chain(replace(example, ideal="#"), rng) is None


def entry(name: str, **details: str) -> Entry:
    return Entry(None, abs(hash((name, *details.items()))), {"name": name, "details": details})


def test_statements_say_the_detail_that_tells_twins_apart():
    rng = np.random.default_rng(0)
    star, outline = entry("star", fill="filled"), entry("star", fill="outline")
    others = [entry("star half", fill="outline"), entry("star four"), entry("kettle")]
    example = ListExample(
        "cell", "", Entry("star", None, {}), [star, outline, *others], 0, [0, 1, 2, 3, 4]
    )
    said = {"star filled", "star outline", "star half outline", "star four"}
    for _ in range(30):
        found = dict(chain(example, rng).seen)
        assert found[0] == "star filled" and found[1] == "star outline", "twins are named first"
        assert set(found.values()) < said
    # Nothing can be said to choose between pictures of one name and the same details.
    copy = replace(example, candidates=[star, replace(star, picture=1), others[2]])
    copy = replace(copy, closeness=[0, 1, 2])
    for one in (copy, without_answer(copy)):
        assert not chain(one, rng).seen


def test_neither_the_order_of_the_named_nor_of_the_list_says_which_is_right(chi_square):
    rng = np.random.default_rng(1)
    places: dict[int, list[int]] = {}
    ranks = []
    for _ in range(3000):
        example = text_list(rng, 12)
        thought = chain(example, rng)
        assert thought is not None
        named = [candidate for candidate, _ in thought.near]
        places.setdefault(len(named), []).append(named.index(example.answer))
        ranks.append(sorted(named).index(example.answer) / len(named))
    assert set(places) <= {2, 3}
    for count, found in places.items():
        assert chi_square(np.bincount(found, minlength=count)) < 18.5  # 0.9999, 2 degrees
    # Nor does its place in the prompt among the named.
    chance = [(count - 1) / 2 / count for count, found in places.items() for _ in found]
    assert abs(np.mean(ranks) - np.mean(chance)) < 0.03


def test_rivals_are_candidates_that_are_not_known_to_be_relevant():
    a, b, c, d, q = (Entry(text, None, {}) for text in "abcdq")
    lists = [
        ListExample("x", "", q, [a, b], 0, [0, 1], frozenset({a.key, c.key})),
        ListExample("x", "", d, [c, q, b], 2, [1, 2, 0], frozenset({b.key})),
        ListExample("y", "", q, [b, d], 1, [1, 0], frozenset({d.key})),
    ]
    assert rivals(lists).tolist() == [
        # of its own; c is relevant too, q is the query; another cell's
        [False, True, False, False, True, False, False],
        [True, False, True, True, False, False, False],
        [False, False, False, False, False, True, False],
    ]


# Batches.


@pytest.fixture(scope="module")
def collator(processor) -> ListCollator:
    collator = ListCollator(processor)
    collator.grid = (2, 2)
    return collator


def collate(collator, examples, *, reason=1.0, full=False, moved=0.4) -> ListBatch:
    return collator.collate(
        examples, np.random.default_rng(0), reason=reason, full_tokens=full, moved_labels=moved
    )


@pytest.mark.parametrize("full", [False, True])
def test_targets_are_the_models_own_tokens_and_nothing_else(collator, sampler, full):
    rng, tokens = np.random.default_rng(0), collator.tokens
    examples = sampler.draw(rng, 40, 5, 1.0)
    batch = collate(collator, examples, full=full)
    spliced_lists = 0
    for b, example in enumerate(examples):
        ids, labels = batch.input_ids[b].tolist(), batch.labels[b].tolist()
        start = labels.index(tokens.think_start)  # the system prompt names the tag too
        end = len(ids) - ids[::-1].index(tokens.end)
        trained = [i for i, label in enumerate(labels) if label != -100]
        assert all(labels[i] == ids[i] for i in trained)
        inspected = [i for i in range(start, end) if ids[i] == tokens.inspect_end]
        spliced: set[int] = set()
        for at in inspected:
            names = batch.candidate_labels[batch.candidates.owner == b].tolist()
            item = collator.encode(example.candidates[names.index(ids[at - 1])])
            spliced |= set(range(at + 1, at + 1 + len(item) + 2 * bool(item.rows)))
        assert set(trained) == set(range(start, end)) - spliced
        assert ids[end - 4 : end] == [
            *(tokens.answer_start, labels[end - 3], tokens.answer_end, tokens.end)
        ]
        decided = int(batch.answer_rows[b]) + 1
        assert decided == end - 3, "the answer itself is the decision"
        spliced_lists += bool(spliced)
    assert spliced_lists > 10


def test_an_ideal_alone_is_the_only_target_and_has_the_querys_words(collator, tokenizer):
    said = ["a picture of a Red apple", "red", "+", "red apple " * 20]
    assert [collator.can_repeat(text) for text in said] == [True, True, False, False]
    batch = collator.ideals(said[:2])
    for row, ideal in enumerate(("red apple", "red")):
        targets = batch.labels[row][batch.labels[row] != -100].tolist()
        assert targets[0] == collator.tokens.think_start
        assert tokenizer.decode(targets[1:]) == f"ideal: {ideal}."
    assert not len(batch.candidates.items) and not batch.pictures


def test_direct_answers_train_the_label_and_what_closes_it(collator, sampler):
    rng, tokens = np.random.default_rng(0), collator.tokens
    examples = sampler.draw(rng, 6, 4, 0.5)
    batch = collate(collator, examples, reason=0.0, moved=0.0)
    for b, example in enumerate(examples):
        trained = [i for i in batch.labels[b].tolist() if i != -100]
        assert trained == [tokens.labels[example.answer], tokens.answer_end, tokens.end]
    rows = torch.arange(len(examples))
    assert (batch.input_ids[rows, batch.answer_rows] == tokens.answer_start).all()


def test_every_label_is_trained_and_most_lists_start_at_the_first(collator):
    rng = np.random.default_rng(3)
    examples = [text_list(rng, 8) for _ in range(1500)]
    batch = collate(collator, examples, reason=0.0)
    labels = {token: k for k, token in enumerate(collator.tokens.labels)}
    starts = [min(labels[i] for i in row if i in labels) for row in batch.input_ids.tolist()]
    seen = {start + k for start in starts for k in range(8)}
    assert seen == set(range(MAX_CANDIDATES))
    assert 0.5 < np.mean([start == 0 for start in starts]) < 0.75
    answers = batch.input_ids[torch.arange(len(examples)), batch.answer_rows + 1].tolist()
    assert [labels[a] - s for a, s in zip(answers, starts, strict=True)] == [
        example.answer for example in examples
    ]


@pytest.mark.parametrize("full", [False, True])
def test_candidates_end_at_their_last_rows(collator, sampler, full):
    rng = np.random.default_rng(5)
    examples = sampler.draw(rng, 8, 4, 0.5)
    batch = collate(collator, examples, full=full)
    assert batch.candidates.owner.tolist() == [b for b in range(8) for _ in range(4)]
    assert batch.candidates.is_answer.view(8, 4).int().argmax(1).tolist() == [
        e.answer for e in examples
    ]
    ends, labels = batch.candidate_ends.view(8, 4), batch.candidate_labels.view(8, 4)
    for b, example in enumerate(examples):
        for number, row in enumerate(ends[b].tolist()):
            item = collator.encode(example.candidates[number])
            before = len(item) + 2 * bool(item.rows) if full else 2
            assert batch.input_ids[b, row - before] == labels[b, number]
            assert int(labels[b, number]) in collator.tokens.labels
            following = int(batch.input_ids[b, row + 1])
            assert (following in collator.tokens.labels) is (number < 3)


@torch.no_grad()
def test_padding_and_company_change_no_loss(collator, sampler, model):
    """Each list of a batch has the hidden states that it has alone."""
    rng = np.random.default_rng(6)
    examples = [x for size in (3, 6, 4) for x in sampler.draw(rng, 1, size, 0.5)]
    rows = torch.randn(200, 4, 64, generator=torch.Generator().manual_seed(0)) / 3

    def run(batch: ListBatch):
        return run_lists(model, batch, rows[batch.pictures].flatten(0, 1))

    together = collate(collator, examples, moved=0.0)
    out = run(together)
    alone = [run(collate(collator, [e], reason=1.0, moved=0.0)) for e in examples[:1]]
    length = int((together.labels[0] != -100).nonzero().max()) + 1
    torch.testing.assert_close(
        out.hidden[0, :length], alone[0].hidden[0, :length], atol=1e-4, rtol=1e-4
    )
    direct = collate(collator, examples, reason=0.0, moved=0.0)
    loss, hits = run(direct).answer_loss()
    each = [run(collate(collator, [e], reason=0.0, moved=0.0)).answer_loss() for e in examples]
    assert float(loss) == pytest.approx(np.mean([float(one) for one, _ in each]), abs=1e-4)
    assert hits == pytest.approx(np.mean([h for _, h in each]))


def test_patches_of_a_batch_are_the_processors(image_processor, processor, corpus):
    """Pictures that need no resizing, so that nothing but order and normalisation is left."""
    bank, side = corpus.bank, 48
    rgba = torch.nn.functional.interpolate(bank.rgba([0, 3, 11]), scale_factor=3)
    image = on_white(rgba)
    patches, grid = to_patches(image, image_processor, side)
    for number, one in enumerate((image * 255).round().byte()):
        pixels = one.permute(1, 2, 0).numpy()
        expected, expected_grid, _ = processor.encode_picture(Image.fromarray(pixels))
        assert tuple(grid[number].tolist()) == expected_grid
        part = patches.view(3, -1, patches.shape[-1])[number]
        torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


class Recording:
    """Keeps the requests and answers with the first candidate."""

    def generate(self, requests: list[Request]) -> list[Output]:
        self.requests = requests
        return [Output((0, 0, 0), 0, torch.zeros(len(r.labels)), (), 0, True, ()) for r in requests]


@torch.no_grad()
def test_a_trained_sequence_is_what_the_engine_will_feed(model, processor, picture):
    """Prompt, tokens and inspected rows of a list in training and in a request: the same
    embeddings at the same positions."""
    pictures = [picture(n) for n in range(3)]  # 48 x 48: nine rows
    items = [
        Item(text="which?", image=pictures[0]),
        *(Item(image=pictures[1]), Item(text="a red apple"), Item("blue", pictures[2])),
        Item(text="a red bird"),
    ]
    meta = {"base": "B", "name": "red thing"}
    entries = [
        Entry(item.text, pictures.index(item.image) if item.image else None, meta) for item in items
    ]
    example = ListExample("c", "Find it!", entries[0], entries[1:], 2, [1, 2, 0, 3])
    collator = ListCollator(processor)
    collator.grid = (3, 3)
    reranker = Reranker(model, processor)
    reranker.engine = engine = Recording()
    reranker.rank(items[0], items[1:], instruction="Find it!")
    (request,) = engine.requests
    tokens, inspections = processor.tokens, 0
    for seed in range(12):
        batch = collator.collate(
            [example], np.random.default_rng(seed), reason=1.0, moved_labels=0.0
        )
        patches = [processor.encode_picture(pictures[row]) for row in batch.pictures]
        vision = model.encode_pictures(
            torch.cat([p for p, _, _ in patches]), torch.tensor([g for _, g, _ in patches])
        )
        full, candidates = replace(batch.items, vision_rows=vision), batch.candidates
        table = model.row_table(full, candidates.items, candidates.queries[candidates.owner])
        trained = model.embed(batch.input_ids, batch.row_refs, table)[0]
        ids, pieces = batch.input_ids[0].tolist(), list(request.prompt)
        while (place := length_of(pieces)) < len(ids):
            pieces.append(ids[place])
            if ids[place] == tokens.inspect_end:
                name = request.inspections[request.labels.index(ids[place - 1])]
                pieces += request.source.load([name])[0]
                inspections += 1
        embeds, positions, _ = embed_pieces(model, pieces, 0)
        assert torch.equal(positions, batch.position_ids[:, 0])
        torch.testing.assert_close(embeds, trained, atol=1e-4, rtol=1e-4)
    assert inspections > 5
