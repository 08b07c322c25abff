"""The public entry: complete, ordered, reproducible rankings; errors that name the item."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest
import torch

from retrv_engine import EngineConfig, Output, Request, Sampling, SGLangConfig
from retrv_r1.model.prompts import TableLayout
from retrv_r1.rerank.feature_encoder import FeatureEncoder, pack_features
from retrv_r1.rerank.ordering import merge_windows, rank_labels, vote
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import Item, ItemError, RankedItem, RankedResults, RankRequest

SHORT = Sampling(max_reasoning_tokens=12)


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


class Oracle:
    """An engine that knows every candidate's worth, told apart by its content token."""

    def __init__(self, reranker: Reranker, items: Sequence[Item], worth: torch.Tensor) -> None:
        model, self.tokens = reranker.model, reranker.processor.tokens
        features, offsets = pack_features(FeatureEncoder(model, reranker.processor).encode(items))
        with torch.inference_mode():
            self.content = model.icm.content(features, offsets)
        self.worth, self.windows = worth, []

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Output:
        prompt, found = list(request.prompt), []
        for label in request.labels:
            content = prompt[prompt.index(label) + 1]
            found.append(int((self.content - content.rows).abs().sum(-1).argmin()))
        self.windows.append((found, request.reason))
        logits = self.worth[found]
        answer = int(logits.argmax())
        label = self.tokens.labels[answer]
        return Output((0, label, 0), answer, logits, (), 0, True, (0.0, 0.0, 0.0))


def distinct_texts(count: int) -> list[str]:
    """Texts of two letters in order: pooling has no positions, "b a" compresses as "a b" does."""
    letters = [chr(ord("A") + n) for n in range(32)]
    return [f"{a} {b}" for a, b in combinations_with_replacement(letters, 2)][:count]


class Fixed:
    """An engine that always says the same."""

    def __init__(self, **output) -> None:
        values = {
            "tokens": (0, 0, 0),
            "answer": 0,
            "inspected": (),
            "inspected_rows": 0,
            "well_formed": True,
            "logprobs": (),
        }
        self.output = Output(**values | output)
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        self.requests += requests
        return [self.output for _ in requests]


def check(result: RankedResults, count: int) -> None:
    """What holds of every ranking."""
    assert sorted(line.index for line in result) == list(range(count))
    scores = [line.score for line in result]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert result.answer == result[0].index
    assert {line.index for line in result if line.inspected} == set(result.inspected)


def same(found: Sequence[RankedItem], expected: Sequence[RankedItem]) -> None:
    """The same ranking; what a cache gives may differ by rounding."""
    assert [line.index for line in found] == [line.index for line in expected]
    scores = [line.score for line in expected]
    assert [line.score for line in found] == pytest.approx(scores, abs=1e-6)


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
    assert result[0].score == 1.0


@pytest.mark.parametrize("count, window", [(2, 2), (3, 2), (5, 3), (128, 128), (129, 128)])
def test_every_candidate_is_ranked_once_whatever_the_window(model, processor, count, window):
    reranker = Reranker(model, processor, window=window)
    items = [f"item {n}" for n in range(count)]
    check(reranker.rank("q", items, mode="fast"), count)


@pytest.mark.parametrize("window", [2, 3, 50, 128])
def test_sliding_windows_bring_the_best_of_a_long_list_up(model, processor, window):
    count = 500 if window >= 50 else 40
    reranker = Reranker(model, processor, window=window)
    items = [Item(text=text) for text in distinct_texts(count)]
    worth = torch.randperm(count, generator=torch.Generator().manual_seed(window)).float() / 10
    reranker.engine = oracle = Oracle(reranker, items, worth)
    result = reranker.rank("q", items)
    check(result, count)
    best = worth.argsort(descending=True).tolist()
    sure = max(1, window // 2)
    assert [line.index for line in result][:sure] == best[:sure]
    # Fast windows up the list, each candidate in at least one; the last one in the mode asked for.
    assert [reason for _, reason in oracle.windows] == [False] * (len(oracle.windows) - 1) + [True]
    assert {len(found) for found, _ in oracle.windows} == {window}
    assert set().union(*(found for found, _ in oracle.windows)) == set(range(count))
    assert len(oracle.windows) == 1 + -(-(count - window) // (window // 2))


def test_the_checkpoint_says_how_many_inspections_there_are_by_default(model, processor):
    reranker, seen = Reranker(model, processor), []
    generate = reranker.engine.generate
    reranker.engine.generate = lambda requests: (seen.extend(requests), generate(requests))[1]
    model.config.max_inspections = 2
    reranker.rank("q", ["a", "b", "c"], mode="fast")
    reranker.rank("q", ["a", "b", "c"], mode="fast", sampling=SHORT)
    assert [r.sampling.max_inspections for r in seen] == [2, SHORT.max_inspections]
    assert SHORT.max_inspections != 2


def test_sampling_does_not_reach_the_windows_before_the_last(model, processor):
    reranker = Reranker(model, processor, window=4)
    requests: list[Request] = []
    generate = reranker.engine.generate
    reranker.engine.generate = lambda rs: (requests.extend(rs), generate(rs))[1]
    hot = Sampling(temperature=1.0, seed=3, max_reasoning_tokens=5)
    reranker.rank("q", [f"item {n}" for n in range(8)], sampling=hot)
    assert [r.sampling.temperature for r in requests] == [0.0, 0.0, 1.0]


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
    start = first.tokens.prompt - len(reranker.builder.prompts._parts["after_candidates"]) - 60
    assert changed.tokens.cached == start + 3 * 12 + 1
    other = reranker.rank("another q", texts, mode="fast")
    assert other.tokens.cached < start
    features = reranker.stats()[1]
    assert (features.encoded, features.ram_hits) == (23, 21 + 20 + 20)
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


def test_votes_are_counted(reranker, mixed, monkeypatch):
    requests: list[Request] = []
    generate = reranker.engine.generate
    monkeypatch.setattr(
        reranker.engine, "generate", lambda rs: (requests.extend(rs), generate(rs))[1]
    )
    hot = Sampling(temperature=2.0, max_reasoning_tokens=8, seed=10)
    result = reranker.rank("q", mixed, votes=5, sampling=hot)
    check(result, len(mixed))
    assert [r.sampling.seed for r in requests] == [10, 11, 12, 13, 14]
    assert result.tokens.cached == 4 * result.tokens.prompt, "four find what the first computed"
    reranker.rank("q", mixed, votes=2)
    assert requests[-1].sampling.temperature == 0.7

    def said(answer: int, logits: list[float]) -> Output:
        return Output((), answer, torch.tensor(logits), (), 0, True, ())

    few = [said(0, [9.0, 0.0]), said(1, [0.0, 0.1]), said(1, [0.0, 0.2])]
    winner, logits = vote(few)
    assert winner is few[1], "most votes, however sure the other is"
    chances = torch.stack([o.label_logits.double().softmax(-1) for o in few]).mean(0)
    torch.testing.assert_close(logits.exp(), chances)
    assert vote(few[:2])[0] is few[0], "of equally many the likelier"


def test_new_weights_are_used_for_everything(make_model, processor, mixed):
    reranker, other = (Reranker(make_model(seed), processor) for seed in (0, 1))
    before = reranker.rank("a red apple", mixed, sampling=SHORT)
    reranker.load_weights(dict(other.model.named_parameters()))
    found, expected = (r.rank("a red apple", mixed, sampling=SHORT) for r in (reranker, other))
    assert found.ranking == expected.ranking != before.ranking
    assert found.tokens.cached == 0
    with pytest.raises(ValueError, match="no parameter"):
        reranker.load_weights({"x": torch.zeros(1)})


@pytest.mark.parametrize("window", [0, 1, 129])
def test_windows_that_no_prompt_holds_are_refused(model, processor, window):
    with pytest.raises(ValueError, match="window"):
        Reranker(model, processor, window=window)


@pytest.mark.parametrize("bad", ["", " \n", 5, None, {"txt": "a"}, b"no picture", b""], ids=repr)
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
    scores = torch.softmax(logits[list(tokens.labels[:count])].double() / 0.7, -1)
    assert [line.score for line in result] == pytest.approx(
        [float(scores[line.index]) for line in result], abs=1e-5
    )
    assert result.answer == int(scores.argmax())
    assert result.reasoning == "" and result.tokens.generated == 3
    assert result.tokens.prompt == len(prompt) - 1


def test_reasoning_names_candidates_by_their_place_in_the_callers_list(model, processor):
    reranker = Reranker(model, processor, window=4)
    tokens = processor.tokens

    def words(text: str) -> list[int]:
        return processor.tokenizer(text)["input_ids"]

    written = [
        *(tokens.think_start, *words("close:"), tokens.labels[2], tokens.labels[0], *words(".")),
        *(tokens.inspect_start, tokens.labels[2], tokens.inspect_end, *words(" ü 😀, yes. so")),
        *(tokens.labels[2], tokens.think_end, tokens.answer_start, tokens.labels[2]),
        tokens.answer_end,
    ]
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0])
    reranker.engine = Fixed(
        tokens=tuple(written), answer=2, inspected=(2,), inspected_rows=4, label_logits=logits
    )
    result = reranker.rank("q", ["a", "b", "c", "d", "e", "f"])
    # The first window, of the last four, comes back as 4, 5, 3, 2; then 0, 1, 4, 5 are ranked.
    assert result.answer == 4 and result.inspected == (4,)
    assert result.reasoning == "close: [5] [1]. inspect [5] ü 😀, yes. so [5]"
    assert [line.index for line in result] == [4, 5, 1, 0, 3, 2]
    assert [line.inspected for line in result] == [True, *[False] * 5]
    assert result.tokens.inspected == 4


def test_reasoning_is_built_of_words_and_the_lists_own_labels(reranker, mixed, tokenizer):
    """Prompt structure, text ends and labels beyond the list cannot be written by the model."""
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert len(special) == 143
    tokens = reranker.processor.tokens
    known = {tokens.think_start, tokens.think_end, tokens.answer_start, tokens.answer_end}
    known |= {tokens.inspect_start, tokens.inspect_end, *tokens.labels[:3]}
    generate, written = reranker.engine.generate, []
    reranker.engine.generate = lambda rs: (outputs := generate(rs), written.extend(outputs))[0]
    for seed in range(6):
        hot = Sampling(temperature=5.0, max_reasoning_tokens=60, seed=seed)
        result = reranker.rank("q", mixed[3:6], sampling=hot)
        assert not {name for name in tokenizer.all_special_tokens if name in result.reasoning}
    used = {token for output in written for token in output.tokens} & special
    assert used <= known and len(written) == 6


def test_scores_fall_down_the_list_and_the_answer_leads():
    logits = torch.tensor([0.0, 2.0, 2.0, -5.0])
    ranked = rank_labels(logits, answer=0, temperature=2.0)
    assert [k for k, _ in ranked] == [0, 1, 2, 3]
    scores = torch.softmax(logits.double() / 2, -1)
    assert [s for _, s in ranked] == pytest.approx([float(scores[k]) for k in (1, 1, 2, 3)])
    best = rank_labels(logits, answer=2, temperature=1.0)
    assert [k for k, _ in best] == [2, 1, 0, 3] and best[0][1] == best[1][1]
    assert rank_labels(torch.tensor([-1e4]), answer=0, temperature=1.0) == [(0, 1.0)]
    extreme = rank_labels(torch.tensor([1e4, -1e4]), answer=0, temperature=0.01)
    assert extreme == [(0, 1.0), (1, 0.0)]


def test_windows_join_without_a_rise():
    head, tail = [(3, 0.5), (1, 0.25)], [(2, 0.9), (0, 0.125), (4, 0.2)]
    joined = [(3, 0.5), (1, 0.25), (2, 0.25), (0, 0.125), (4, 0.125)]
    assert merge_windows(head, tail) == joined
    assert merge_windows(head, []) == head
    assert merge_windows([], tail[:1]) == tail[:1]


def test_bfloat16_tells_all_candidates_apart(monkeypatch):
    """Logits of 8 to 16 lie a sixteenth apart in bfloat16: half of fifty tied, ranked by place."""
    reranker = Reranker.from_pretrained(
        "tiny", device="cpu", dtype=torch.bfloat16, engine="plain", window=64
    )
    outputs: list[Output] = []
    generate = reranker.engine.generate
    monkeypatch.setattr(
        reranker.engine, "generate", lambda r: outputs.extend(made := generate(r)) or made
    )
    words = ("red", "tree", "house", "music", "boat", "small", "happy")
    candidates = [f"{a} {b} {n}" for n, (a, b) in enumerate(itertools.product(words, words))]
    for query in ("a boat", "happy music"):
        check(reranker.rank(query, [*candidates, "cat"], mode="fast"), 50)
    assert [len(output.label_logits.unique()) for output in outputs] == [50, 50]
