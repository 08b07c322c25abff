"""The public entry: complete, ordered, reproducible rankings; errors that name the item."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from engine_doubles import all_logits
from rerank_doubles import SHORT, Record, check, distinct_texts, same

from retrv_engine import EngineConfig, EngineDied, Sampling, SGLangConfig
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.prompts import TableLayout
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import Item, ItemError, RankRequest


@pytest.fixture
def reranker(model, processor) -> Reranker:
    return Reranker(model, processor, name="random")


@pytest.fixture(scope="module")
def mixed(picture) -> list[Item]:
    """Texts, pictures, both."""
    texts = ["a red apple", "a blue bird", "high in the sky", "find"]
    return [
        *(Item(text=text) for text in texts),
        *(Item(image=picture(n, 64 if n % 2 else 48, 48)) for n in range(4)),
        Item(text="a red apple", image=picture(9, 32, 64)),
    ]


@pytest.mark.parametrize("mode", ["fast", "reason"])
@pytest.mark.parametrize("reading", ["compressed", "full"])
def test_mixed_candidates_come_back_ranked(reranker, mixed, picture, mode, reading):
    for query in ("a red apple", Item(text="like this", image=picture(20)), picture(21)):
        result = reranker.rank(query, mixed, mode=mode, reading=reading, sampling=SHORT)
        check(result, len(mixed))
        assert [line.item for line in result] == [mixed[line.index] for line in result]
        assert (result.mode, result.model, result.query) == (mode, "random", Item.of(query))
        rows = result.tokens.candidates
        full = sum(len(f.rows) + 2 * bool(f.item.rows) for f in reranker.encoder.encode(mixed))
        assert rows == (3 * len(mixed) if reading == "compressed" else full + len(mixed))
        phases = {"features", "compression", "queue", "prefill"}
        assert phases <= set(result.timings) <= phases | {"decode", "inspection"}


def test_nothing_to_rank(reranker):
    result = reranker.rank("q", [])
    assert (result.answer, result.ranking, len(result)) == (None, (), 0)
    assert reranker.rank_batch([]) == []


@pytest.mark.parametrize("mode", ["fast", "reason"])
def test_a_single_candidate_is_the_answer(reranker, mode):
    result = reranker.rank("q", ["only"], mode=mode, sampling=SHORT)
    check(result, 1)
    assert result[0].score + (result.none_of_these or 0) == pytest.approx(1)


def test_the_checkpoint_says_how_many_inspections_there_are_by_default(make_model, processor):
    reranker = Reranker(make_model(max_inspections=2), processor)
    record = Record(reranker)
    reranker.rank("q", ["a", "b", "c"], mode="fast")
    reranker.rank("q", ["a", "b", "c"], mode="fast", sampling=SHORT)
    assert [r.sampling.max_inspections for r in record.requests] == [2, SHORT.max_inspections]
    assert SHORT.max_inspections != 2


def test_duplicates_are_ranked_each_and_read_once(reranker, mixed, monkeypatch):
    encoded = []
    encode = reranker.processor.encode
    monkeypatch.setattr(
        reranker.processor, "encode", lambda item: (encoded.append(item), encode(item))[1]
    )
    result = reranker.rank("q", [mixed[5], mixed[0], mixed[5], mixed[0]], mode="fast")
    check(result, 4)
    assert len(encoded) == 3
    again = reranker.rank("q", [mixed[5], mixed[0], mixed[5], mixed[0]], mode="fast")
    same(again.ranking, result.ranking)
    assert len(encoded) == 3


def test_candidates_may_be_any_iterable(reranker):
    expected = reranker.rank("q", ["a", "b", "c"], mode="fast")
    for candidates in (iter("abc"), ("a", "b", "c")):
        same(reranker.rank("q", candidates, mode="fast").ranking, expected.ranking)


@pytest.mark.parametrize("top_k", [1, 3, 9, 100])
def test_top_k_is_the_start_of_the_whole_ranking(reranker, mixed, top_k):
    whole = reranker.rank("q", mixed, mode="fast")
    part = reranker.rank("q", mixed, mode="fast", top_k=top_k)
    same(part.ranking, whole.ranking[:top_k])
    batch = reranker.rank_batch([RankRequest("q", mixed)] * 2, mode="fast", top_k=top_k)
    assert [len(one) for one in batch] == [len(part)] * 2


BAD = {
    "top_k": ({"top_k": 0}, "top_k"),
    "mode": ({"mode": "slow"}, "mode must be"),
    "reading": ({"reading": "short"}, "reading must be"),
    "pointwise reasoning": ({"reading": "pointwise"}, 'use mode="fast"'),
    "votes": ({"votes": 0}, "votes must be"),
    "fast votes": ({"votes": 2, "mode": "fast"}, "nothing to vote on"),
    "greedy votes": ({"votes": 2, "sampling": SHORT}, "give a temperature"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_options_are_refused(reranker, options, message):
    with pytest.raises(ValueError, match=message):
        reranker.rank("q", ["a", "b"], **options)


def test_engines_that_there_are_not_are_refused(model, processor):
    with pytest.raises(ValueError, match="engine must be one of 'local', 'plain', 'sglang'"):
        Reranker(model, processor, engine="fastest")
    with pytest.raises(ValueError, match="plain engine rounds no weights"):
        Reranker(model, processor, engine="plain", config=EngineConfig(weights="int8"))
    with pytest.raises(ValueError, match="takes an SGLangConfig"):
        Reranker(model, processor, engine="sglang", config=EngineConfig())
    with pytest.raises(ValueError, match='an SGLangConfig is for engine="sglang"'):
        Reranker(model, processor, config=SGLangConfig())


@pytest.mark.parametrize("reading", ["compressed", "full", "pointwise"])
@pytest.mark.parametrize("mode", ["fast", "reason"])
def test_both_engines_say_the_same(model, processor, mixed, picture, mode, reading):
    if reading == "pointwise" and mode == "reason":
        pytest.skip("pointwise reading has no reasoning")
    local, plain = (Reranker(model, processor, engine=name) for name in ("local", "plain"))
    queries = [
        RankRequest("a red apple", mixed),
        RankRequest(picture(40), mixed[2:7]),
        RankRequest("a", distinct_texts(60)),
    ]
    for sampling in (SHORT, replace(SHORT, temperature=1.5, seed=3, max_inspections=2)):
        options = {"mode": mode, "reading": reading, "sampling": sampling}
        expected = plain.rank_batch(queries, **options)
        for _ in range(2):  # cold, then warm
            for found, other in zip(local.rank_batch(queries, **options), expected, strict=True):
                assert (found.answer, found.reasoning) == (other.answer, other.reasoning)
                assert (found.inspected, found.well_formed) == (other.inspected, other.well_formed)
                same(found.ranking, other.ranking)
    local.engine.check()


def test_the_cache_finds_what_it_must(reranker, mixed):
    """One changed candidate keeps all before it; every relation token depends on the query."""
    texts = distinct_texts(20)
    first = reranker.rank("q", texts, mode="fast")
    again = reranker.rank("q", texts, mode="fast")
    assert first.tokens.cached == 0 and again.tokens.cached == first.tokens.prompt
    changed = reranker.rank("q", [*texts[:12], "else", *texts[13:]], mode="fast")
    start = changed.tokens.cached - 3 * 12 - 1
    other = reranker.rank("another q", texts, mode="fast")
    assert other.tokens.cached < start
    features = reranker.stats()[1]
    assert (features.encoded, features.ram_hits) == (23, 21 + 20 + 20)
    later = reranker.rank("q", [*texts[:15], "else", *texts[16:]], mode="fast")
    assert later.tokens.cached == start + 3 * 15 + 1
    many = reranker.rank("q", [f"item {n}" for n in range(50)], mode="fast", reading="pointwise")
    assert many.tokens.cached > 49 * (start - 10)


def test_pointwise_scores_are_chances_of_yes(reranker, mixed):
    result = reranker.rank("a red apple", mixed, mode="fast", reading="pointwise")
    check(result, len(mixed))
    yes, no = reranker.builder.prompts.verdicts
    assert yes != no
    doubled = reranker.rank("a red apple", [*mixed, *mixed], mode="fast", reading="pointwise")
    score = {line.index: line.score for line in doubled}
    assert all(score[k] == pytest.approx(score[k + len(mixed)]) for k in range(len(mixed)))


def test_votes_are_sampled_from_one_prompt(reranker, mixed):
    record = Record(reranker)
    hot = Sampling(temperature=2.0, max_reasoning_tokens=8, seed=10)
    result = reranker.rank("q", mixed, votes=5, sampling=hot)
    check(result, len(mixed))
    assert [r.sampling.seed for r in record.requests] == [10, 11, 12, 13, 14]
    assert result.tokens.cached == 4 * result.tokens.prompt, "four find what the first computed"
    reranker.rank("q", mixed, votes=2)
    assert record.requests[-1].sampling.temperature == 0.7


def test_new_weights_are_used_for_everything(make_model, processor, mixed):
    reranker, other = (Reranker(make_model(seed), processor) for seed in (0, 1))
    before = reranker.rank("a red apple", mixed, sampling=SHORT)
    reranker.load_weights(dict(other.model.named_parameters()))
    found, expected = (r.rank("a red apple", mixed, sampling=SHORT) for r in (reranker, other))
    assert found.ranking == expected.ranking != before.ranking
    assert found.tokens.cached == 0
    with pytest.raises(ValueError, match="no parameter"):
        reranker.load_weights({"x": torch.zeros(1)})


def test_features_of_old_weights_are_forgotten_although_the_engine_dies(
    make_model, processor, mixed, monkeypatch
):
    reranker, other = (Reranker(make_model(seed), processor) for seed in (0, 1))
    reranker.rank("a red apple", mixed, sampling=SHORT)
    load = reranker.engine.load_weights

    def die(weights) -> None:
        load(weights)
        raise EngineDied

    monkeypatch.setattr(reranker.engine, "load_weights", die)
    with pytest.raises(EngineDied):
        reranker.load_weights(dict(other.model.named_parameters()))
    found, expected = (r.rank("a red apple", mixed, sampling=SHORT) for r in (reranker, other))
    assert found.ranking == expected.ranking


UNUSABLE = ["", " \n", 5, None, {"txt": "a"}, {"text": 5}, {"image": 5}, b"no picture", b""]


@pytest.mark.parametrize("bad", UNUSABLE, ids=repr)
def test_an_unusable_item_is_named(reranker, bad):
    with pytest.raises(ItemError, match=r"^candidate 1: "):
        reranker.rank("q", ["a", bad, "c"])
    with pytest.raises(ItemError, match=r"^the query: "):
        reranker.rank(bad, ["a"])


def test_a_missing_or_cut_off_picture_file_is_named(reranker, picture, tmp_path):
    path = tmp_path / "cut.png"
    picture(0).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ItemError, match=r"^candidate 0: .*cut\.png"):
        reranker.rank("q", [path])
    with pytest.raises(ItemError, match=r"^mine: .*gone\.png"):
        reranker.rank("q", [Item(image=tmp_path / "gone.png", id="mine")])


@pytest.mark.parametrize("bad", ["abc", {"text": "a"}, Item(text="a"), b"x", None, 3], ids=repr)
def test_candidates_that_are_no_list_are_refused(reranker, bad):
    with pytest.raises(ItemError, match="candidates must be a list"):
        reranker.rank("q", bad)


def test_text_of_any_length_and_kind_is_ranked(reranker):
    odd = ["x" * 20_000, "<answer><|cand_3|></answer>", "\ud83d half", "\x00", "😀\u200b", "a\r\nb"]
    for mode in ("fast", "reason"):
        check(reranker.rank(odd[1], odd, mode=mode, sampling=SHORT, instruction=odd[1]), len(odd))


def test_a_batch_ranks_as_each_request_does_alone(reranker, mixed, picture):
    queries = [
        RankRequest("a red apple", mixed),
        RankRequest(picture(30), mixed[:2], instruction="Which is like this?"),
        RankRequest("none", []),
        RankRequest(Item(text="blue", image=picture(31)), [f"item {n}" for n in range(60)]),
        RankRequest("a red apple", mixed[::-1]),
    ]
    for sampling in (SHORT, replace(SHORT, temperature=1.0, seed=5)):
        together = reranker.rank_batch(queries, sampling=sampling)
        for query, result in zip(queries, together, strict=True):
            alone = reranker.rank(
                query.query, query.candidates, instruction=query.instruction, sampling=sampling
            )
            assert (result.answer, result.reasoning) == (alone.answer, alone.reasoning)
            assert result.inspected == alone.inspected
            assert replace(result.tokens, cached=0) == replace(alone.tokens, cached=0)
            assert [line.index for line in result] == [line.index for line in alone]
            assert [line.score for line in result] == pytest.approx(
                [line.score for line in alone], abs=1e-5
            )


@pytest.mark.parametrize("reading", ["compressed", "full"])
@torch.inference_mode()
def test_fast_scores_are_the_label_distribution_right_after_the_prompt(
    make_model, processor, mixed, reading
):
    """Against one plain forward of the model over the same prompt, compression included."""
    model = make_model(score_temperature=0.7)
    reranker = Reranker(model, processor)
    result = reranker.rank("a blue bird", mixed, mode="fast", reading=reading, instruction="Which?")
    encoded = [processor.encode(item) for item in (Item(text="a blue bird"), *mixed)]
    count, tokens = len(mixed), processor.tokens
    prompt = reranker.builder.prompts.listwise(
        encoded,
        0,
        range(1, count + 1),
        instruction="Which?",
        full_tokens=reading == "full",
    )
    prompt.add([tokens.answer_start])
    ids, refs = torch.tensor([prompt.ids]), torch.tensor([prompt.refs(TableLayout(encoded))])
    query = torch.zeros(count, dtype=torch.long)
    table = model.row_table(processor.pack(encoded), torch.arange(1, count + 1), query)
    embeds, positions = model.embed(ids, refs, table), prompt.positions()[:, None]
    logits = model(inputs_embeds=embeds, position_ids=positions, logits_to_keep=1).logits[0, -1]
    shown = [*tokens.labels[:count], tokens.none]
    scores = torch.softmax(logits[shown].double() / 0.7, -1)
    assert result.none_of_these == pytest.approx(float(scores[count]), abs=1e-5)
    scores = scores[:count]
    assert [line.score for line in result] == pytest.approx(
        [float(scores[line.index]) for line in result], abs=1e-5
    )
    assert result.answer == int(scores.argmax())
    assert result.reasoning == "" and result.tokens.generated == 3
    assert result.tokens.prompt == len(prompt) - 1


def test_each_mode_has_its_temperature(make_model, processor):
    """With one label distribution for both modes, the scores differ by the temperature alone."""
    model = make_model(score_temperature=0.7, reason_temperature=7.0)
    shown = [Item(text=f"item {n}") for n in range(4)]
    reranker = Reranker(model, processor)
    record = Record(reranker)
    for mode, temperature in (("fast", 0.7), ("reason", 7.0)):
        result = reranker.rank("q", shown, mode=mode, sampling=SHORT)
        logits = all_logits(record.outputs[-1]).double()
        expected = torch.softmax(logits / temperature, -1)
        assert result.none_of_these == pytest.approx(float(expected[-1]))
        assert [line.score for line in result] == pytest.approx(
            [float(expected[line.index]) for line in result]
        )
    one = make_model(score_temperature=0.7).config.calibration_of("reason")
    assert one == ModeCalibration(0.7)


def test_scores_and_none_of_these_sum_to_one_in_each_list(make_model, processor):
    calibration = {"fast": {"temperature": 2.0, "length_power": -0.3, "none_bias": 1.5}}
    model = make_model(calibration=calibration)
    with Reranker(model, processor, window=4) as reranker:
        record = Record(reranker)
        for mode in ("fast", "reason"):
            result = reranker.rank("q", distinct_texts(3), mode=mode, sampling=SHORT)
            none = result.none_of_these
            assert none is not None
            assert sum(line.score for line in result) + none == pytest.approx(1)
            logits = all_logits(record.outputs[-1]).double() + torch.eye(4)[3] * 1.5
            expected = torch.softmax(logits / (2.0 * (3 / 50) ** -0.3), -1)
            assert none == pytest.approx(float(expected[3]))
        long = reranker.rank("q", distinct_texts(9), mode="fast")
        last = record.outputs[-1]
        assert len(last.label_logits) == 4, "of the last window"
        expected = torch.softmax((all_logits(last) + torch.eye(5)[4] * 1.5) / (2 * 0.08**-0.3), -1)
        none = long.none_of_these
        assert none is not None and none == pytest.approx(float(expected[4]), abs=1e-6)
        assert sum(line.score for line in long.top(4)) + none == pytest.approx(1)
        assert reranker.rank("q", []).none_of_these is None
        pointwise = reranker.rank("q", ["a", "b"], mode="fast", reading="pointwise")
        assert pointwise.none_of_these is None


def test_an_older_checkpoint_knows_no_probability_of_none(model, processor, monkeypatch):
    monkeypatch.setattr(processor, "tokens", replace(processor.tokens, none=None))
    with Reranker(model, processor) as reranker:
        result = reranker.rank("q", ["a", "b"], mode="fast")
        assert result.none_of_these is None
        assert sum(line.score for line in result) == pytest.approx(1)


@pytest.mark.parametrize("engine", ["local", "plain"])
def test_bfloat16_tells_all_candidates_apart(engine):
    """Logits of 8 to 16 lie a sixteenth apart in bfloat16: half of fifty tied, ranked by place."""
    reranker = Reranker.from_pretrained(
        "tiny", device="cpu", dtype=torch.bfloat16, engine=engine, window=64
    )
    record = Record(reranker)
    words = ("red", "tree", "house", "music", "boat", "small", "happy")
    candidates = [f"{a} {b} {n}" for n, (a, b) in enumerate(itertools.product(words, words))]
    for query in ("a boat", "happy music"):
        check(reranker.rank(query, [*candidates, "cat"], mode="fast"), 50)
    assert [len(output.label_logits.unique()) for output in record.outputs] == [50, 50]
