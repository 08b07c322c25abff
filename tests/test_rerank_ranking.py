"""Submitted rankings: the same results as in a batch, events, budgets, cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace

import pytest
from rerank_doubles import SHORT, check, distinct_texts, same

from retrv_engine import DeadlineExceeded, Sampling
from retrv_r1 import Item, ItemError, RankedResults, RankRequest, Reranker, RetrvError
from retrv_r1.rerank import conductor
from retrv_r1.rerank.events import Draft, Inspection, Reasoning
from retrv_r1.rerank.steps import confidence

pytest_plugins = ["rerank_fixtures"]

LONG = Sampling(max_reasoning_tokens=3000)  # minutes of reasoning, unless it is cut


def alike(found: RankedResults, expected: RankedResults) -> None:
    """The same results, but for what the cache found and the time that it took."""
    same(found.ranking, expected.ranking)
    for name in ("answer", "reasoning", "inspected", "mode", "auto", "cut", "well_formed"):
        assert getattr(found, name) == getattr(expected, name), name
    assert replace(found.tokens, cached=0) == replace(expected.tokens, cached=0)


def within(seconds: float, reached: Callable[[], bool]) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.005)
    return reached()


def is_free(reranker: Reranker) -> bool:
    """Whether no page of the engine belongs to a request."""
    stats = reranker.engine.stats()
    idle = stats.running == stats.waiting == 0
    return idle and stats.free_pages + stats.cached_pages == stats.pages


OPTIONS = {
    "fast": {"mode": "fast"},
    "reason": {"sampling": SHORT},
    "drawn": {"sampling": replace(SHORT, temperature=1.0, seed=3), "top_k": 3},
    "votes": {"sampling": replace(SHORT, temperature=1.5), "votes": 3},
    "full": {"sampling": SHORT, "reading": "full"},
    "pointwise": {"mode": "fast", "reading": "pointwise"},
    "auto": {"sampling": SHORT, "mode": "auto"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_submitted_ranking_is_the_same_as_in_a_batch(reranker, mixed, options):
    requests = [
        RankRequest("a red apple", mixed),
        RankRequest("q", distinct_texts(60), instruction="Which?"),
        RankRequest("q", ["only"]),
        RankRequest("q", []),
    ]
    expected = reranker.rank_batch(requests, **options)
    for request, one in zip(requests, expected, strict=True):
        alike(reranker.submit(request, **options).result(timeout=60), one)
    assert is_free(reranker)


@pytest.mark.parametrize("options", [OPTIONS["reason"], OPTIONS["votes"]], ids=["one", "votes"])
def test_events_tell_what_the_results_say(reranker, mixed, options):
    ranking = reranker.submit(RankRequest("a red apple", mixed), **options)
    events, results = list(ranking.events()), ranking.result()
    assert any(isinstance(event, Inspection) for event in events), "or this shows nothing"
    told = {}
    for vote in range(options.get("votes", 1)):
        mine = [event for event in events if not isinstance(event, Draft) and event.vote == vote]
        pieces = [event for event in mine if isinstance(event, Reasoning)]
        text = "".join(piece.text for piece in pieces)
        told[text] = tuple(event.index for event in mine if isinstance(event, Inspection))
        for piece in pieces:
            assert piece.index is None or piece.text.strip() == f"[{piece.index + 1}]"
    assert told[results.reasoning] == results.inspected


def test_events_come_before_the_end(endless):
    ranking = endless.submit(RankRequest("q", ["a", "b"]), sampling=LONG)
    first = next(ranking.events())
    assert isinstance(first, Reasoning) and first.text and not ranking.done()


def test_a_ranking_is_awaited_and_watched_in_an_event_loop(reranker, mixed):
    request = RankRequest("a red apple", mixed)
    expected = reranker.rank("a red apple", mixed, sampling=SHORT)

    async def both() -> tuple[RankedResults, str]:
        awaited = await reranker.submit(request, sampling=SHORT)
        watched = reranker.submit(request, sampling=SHORT)
        text = "".join([e.text async for e in watched if isinstance(e, Reasoning)])
        alike(watched.result(0), awaited)
        return awaited, text

    results, text = asyncio.run(both())
    alike(results, expected)
    assert text == expected.reasoning


@pytest.mark.parametrize("way", ["cancel", "task", "iterator"])
def test_a_cancelled_ranking_gives_its_pages_back(endless, way):
    ranking = endless.submit(RankRequest("q", distinct_texts(20)), sampling=LONG)
    next(ranking.events())
    assert not is_free(endless)

    async def leave() -> None:
        async def wait() -> None:
            if way == "task":
                await ranking
            async for _ in ranking:
                pass

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it waits now; a fast machine would soon be at the end
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    if way == "cancel":
        assert ranking.cancel()
    else:
        asyncio.run(leave())
    assert within(5, lambda: is_free(endless))
    endless.engine.check()
    with pytest.raises(CancelledError, match="the ranking was cancelled"):
        ranking.result()
    with pytest.raises(CancelledError):
        list(ranking.events())
    assert not endless._conductor._courses


def test_what_is_cancelled_while_it_waits_is_never_asked(reranker):
    with reranker._encoding:
        waiting = [reranker.submit(RankRequest("q", ["a", "b"]), mode="fast") for _ in range(3)]
        assert waiting[1].cancel()
    for ranking in (waiting[0], waiting[2]):
        check(ranking.result(timeout=20), 2)
    stats = reranker.engine.stats()
    assert (stats.finished, stats.cancelled) == (2, 0)


def test_a_budget_cuts_the_reasoning_and_gives_the_fast_answer(endless, mixed):
    request = RankRequest("a red apple", mixed)
    expected = endless.rank("a red apple", mixed, mode="fast", sampling=LONG)
    for budget in (0, 0.4):
        began = time.perf_counter()
        ranking = endless.submit(request, sampling=LONG, budget=budget)
        events, results = list(ranking.events()), ranking.result()
        seconds = time.perf_counter() - began
        assert budget <= seconds < budget + 2, "one step and what comes before the fast answer"
        assert results.cut and not results.auto
        alike(replace(results, cut=False), expected)
        (draft,) = (event.results for event in events if isinstance(event, Draft))
        alike(draft, expected)
        bill = results.bill
        assert (bill.prompts, bill.tokens.generated > 3) == ((2, True) if budget else (1, False))
    assert within(5, lambda: is_free(endless))


def test_a_budget_that_is_enough_changes_nothing(reranker, mixed):
    request, expected = RankRequest("q", mixed), reranker.rank("q", mixed, sampling=SHORT)
    alike(reranker.submit(request, sampling=SHORT, budget=60).result(), expected)
    fast = reranker.rank("q", mixed, mode="fast")
    alike(reranker.submit(request, mode="fast", budget=0).result(), fast)


def test_votes_that_were_done_in_time_count(reranker, mixed):
    """Of three chains one is cut: the results are those of the other two."""
    options = {"sampling": replace(SHORT, temperature=1.5), "votes": 3}
    plan = reranker._ranker.plan("reason", "compressed", options["sampling"], 3, None, True)
    run = reranker._steps(RankRequest("q", mixed), plan)
    generate = reranker.engine.generate
    round = run.send(generate([one.request for one in next(run).prepared]))
    outputs = generate([one.request for one in round.prepared])
    with pytest.raises(StopIteration) as end:
        run.send([outputs[0], None, outputs[2]])
    results = end.value.value
    assert results.cut and results.mode == "reason"
    answers = {outputs[0].answer, outputs[2].answer}
    assert results.answer in answers and results.tokens.generated == sum(
        len(outputs[k].tokens) for k in (0, 2)
    )


@pytest.mark.parametrize("threshold, mode", [(0.0, "fast"), (1.0, "reason"), (None, "reason")])
def test_auto_reasons_where_the_fast_answer_is_uncertain(
    make_model, processor, mixed, threshold, mode
):
    with Reranker(make_model(auto_threshold=threshold), processor) as reranker:
        fast = reranker.rank("q", mixed, mode="fast", sampling=SHORT)
        sure = confidence(fast[0].score, fast.none_of_these)
        assert sure < 0.9, "the threshold of a checkpoint without one"
        expected = reranker.rank("q", mixed, mode=mode, sampling=SHORT)
        for results in (
            reranker.rank("q", mixed, mode="auto", sampling=SHORT),
            reranker.submit(RankRequest("q", mixed), mode="auto", sampling=SHORT).result(),
        ):
            assert results.auto
            alike(replace(results, auto=False), expected)
        for near, way in ((-0.001, "fast"), (0.001, "reason")):
            reranker.model.config.auto_threshold = sure + near
            assert reranker.rank("q", mixed, mode="auto", sampling=SHORT).mode == way


def test_auto_does_not_reason_where_the_fast_answer_is_sure_that_nothing_fits(
    make_model, processor, mixed
):
    for bias, mode in ((100.0, "fast"), (-100.0, "reason")):
        calibration = {"fast": {"none_bias": bias}}
        with Reranker(make_model(calibration=calibration), processor) as reranker:
            fast = reranker.rank("q", mixed, mode="fast")
            none = fast.none_of_these
            assert none is not None and (none > 0.9) == (mode == "fast")
            assert fast[0].score < 0.9
            results = reranker.rank("q", mixed, mode="auto", sampling=SHORT)
            assert (results.mode, results.auto) == (mode, True)
            assert results.answer is not None, "the closest is named all the same"


def test_a_deadline_fails_one_ranking_and_no_other(endless, mixed):
    request = RankRequest("q", mixed)
    late = endless.submit(request, sampling=LONG, deadline=0.3)
    never = endless.submit(request, sampling=LONG, deadline=0)
    fine = endless.submit(request, sampling=SHORT, deadline=60)
    for ranking in (late, never):
        with pytest.raises(DeadlineExceeded):
            ranking.result(timeout=20)
    alike(fine.result(), endless.rank("q", mixed, sampling=SHORT))
    both = endless.submit(request, sampling=LONG, deadline=0.3, budget=0.6)
    with pytest.raises(DeadlineExceeded):  # a deadline is no budget
        both.result(timeout=20)


def test_a_deadline_holds_while_others_are_encoded(reranker):
    with reranker._encoding:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            reranker.submit(RankRequest("q", ["a"]), deadline=0.2).result(timeout=20)
        assert 0.2 <= time.monotonic() - began < 5


def test_fifty_rankings_of_many_threads_are_those_of_one(checkpoint, mixed, picture):
    model, processor, _ = checkpoint
    reranker, ways = Reranker(model, processor, window=8), list(OPTIONS.values())
    lists = [mixed, mixed[::-1], distinct_texts(12), mixed[:3]]
    queries = ["a red apple", Item(image=picture(40)), "blue"]
    work = [
        (RankRequest(queries[n % 3], lists[n % 4], tie_seed=n % 2 or None), ways[n % len(ways)])
        for n in range(25)
    ]
    expected = [reranker.rank_batch([request], **options)[0] for request, options in work]
    work, expected = work * 2, expected * 2
    reranker.encoder.clear()
    reranker.engine.flush()

    def one(number: int) -> RankedResults:
        request, options = work[number]
        return reranker.submit(request, priority=number % 3, **options).result(timeout=120)

    with ThreadPoolExecutor(25) as threads:
        for found, wanted in zip(threads.map(one, range(50)), expected, strict=True):
            alike(found, wanted)
    assert is_free(reranker)
    reranker.close()


def test_an_unusable_item_fails_its_own_ranking(reranker, tmp_path):
    """It is named by its place in its list, although portions of several lists are joined."""
    missing = Item(image=tmp_path / "gone.png")
    late = [*distinct_texts(conductor.PASS + 6), missing, "z"]
    with reranker._encoding:  # so that all are encoded together
        good = [reranker.submit(RankRequest("q", ["a", f"b {n}"]), mode="fast") for n in range(3)]
        soon = reranker.submit(RankRequest("q", ["a", missing]), mode="fast")
        broken = reranker.submit(RankRequest("q", late), mode="fast")
    for ranking, place in ((soon, 1), (broken, conductor.PASS + 6)):
        with pytest.raises(ItemError, match=rf"^candidate {place}: .*gone\.png"):
            ranking.result(timeout=20)
    for ranking in good:
        check(ranking.result(timeout=20), 2)
    with pytest.raises(ItemError, match=r"^candidate 1: "):
        reranker.submit(RankRequest("q", ["a", ""]))


def test_a_long_list_does_not_hold_up_a_short_one(reranker, monkeypatch):
    monkeypatch.setattr(conductor, "PASS", 5)
    ended: list[str] = []
    with reranker._encoding:
        for name, texts in (("long", distinct_texts(200)), ("short", ["a", "b"])):
            ranking = reranker.submit(RankRequest(name, texts), mode="fast")
            ranking.future.add_done_callback(lambda _, name=name: ended.append(name))
    assert within(30, lambda: len(ended) == 2)
    assert ended == ["short", "long"]


def test_items_are_encoded_again_if_the_weights_change_between_portions(
    make_model, processor, mixed, monkeypatch
):
    monkeypatch.setattr(conductor, "PASS", 4)
    monkeypatch.setattr(conductor, "PORTION", 4)
    with Reranker(make_model(0), processor) as one, Reranker(make_model(1), processor) as other:
        expected = other.rank("q", mixed, mode="fast")
        encode, calls = one.encoder.encode, []

        def encode_and_change(*args):
            found = encode(*args)
            calls.append(found)
            if len(calls) == 1:
                one.load_weights(dict(other.model.named_parameters()))
            return found

        monkeypatch.setattr(one.encoder, "encode", encode_and_change)
        alike(one.submit(RankRequest("q", mixed), mode="fast").result(timeout=20), expected)
        assert len(calls) == 4, "a portion with old weights, three with the new ones"


def test_an_error_of_the_model_fails_what_runs_and_nothing_else(reranker, mixed, monkeypatch):
    run, expected = reranker.engine.runner.run, reranker.rank("q", mixed, sampling=SHORT)

    def broken(extends):
        monkeypatch.setattr(reranker.engine.runner, "run", run)
        raise MemoryError("the model broke")

    monkeypatch.setattr(reranker.engine.runner, "run", broken)
    ranking = reranker.submit(RankRequest("q", mixed), sampling=SHORT)
    with pytest.raises(MemoryError, match="the model broke"):
        ranking.result(timeout=20)
    alike(reranker.submit(RankRequest("q", mixed), sampling=SHORT).result(timeout=20), expected)


def test_closing_ends_all_rankings(checkpoint):
    model, processor, _ = checkpoint
    reranker = Reranker(model, processor)
    request, before = RankRequest("q", ["a", "b"]), threading.active_count()
    ranking = reranker.submit(request, sampling=LONG)
    reranker.close()
    with pytest.raises((RetrvError, CancelledError)):
        ranking.result(timeout=5)
    with pytest.raises(RetrvError, match="closed"):
        reranker.submit(request)
    assert within(5, lambda: threading.active_count() <= before)


def test_the_plain_engine_takes_turns(model, processor, mixed):
    with Reranker(model, processor, engine="plain") as plain:
        expected = plain.rank("q", mixed, sampling=SHORT)
        request = RankRequest("q", mixed)
        for ranking in [plain.submit(request, sampling=SHORT) for _ in range(3)]:
            alike(ranking.result(timeout=20), expected)
        with pytest.raises(ValueError, match="plain engine cannot be cut"):
            plain.submit(request, budget=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "slow"}, "mode must be"),
        ({"budget": -1}, "budget must be seconds"),
        ({"deadline": "soon"}, "deadline must be seconds"),
        ({"budget": float("nan")}, "budget must be seconds"),
        ({"reading": "pointwise", "mode": "auto"}, "pointwise reading has no reasoning"),
    ],
)
def test_bad_options_are_refused_at_once(reranker, options, message):
    with pytest.raises(ValueError, match=message):
        reranker.submit(RankRequest("q", ["a"]), **options)
