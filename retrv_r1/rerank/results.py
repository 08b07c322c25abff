"""Makes the result of a request from the outcome of its last window."""

from __future__ import annotations

from dataclasses import replace

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.rerank.options import RankOptions
from retrv_r1.rerank.ordering import merge_windows, reasoning_text
from retrv_r1.rerank.windows import CandidateList, WindowResult
from retrv_r1.types import RankedItem, RankedResults


def results_of(
    one: CandidateList,
    last: WindowResult | None,
    options: RankOptions,
    name: str,
    model: RetrvR1ForConditionalGeneration,
    processor: RetrvR1Processor,
) -> RankedResults:
    """The ranking of a list whose last window was ranked.

    Args:
        last: outcome of the last window; None if the list is empty.
        name: name of the model in results.
    """
    nothing = RankedResults(
        one.query.item,
        None,
        (),
        mode=options.mode,
        model=name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        query_truncated=one.query.features.item.truncated,
    )
    if last is None:
        return nothing
    output, current = last.output, one.current
    inspected = tuple(current[place] for place in output.inspected)
    order = merge_windows(one.numbered(last.order), one.tail)
    return replace(
        nothing,
        answer=current[last.order[0][0]],
        ranking=tuple(
            RankedItem(
                number,
                score,
                one.candidates[number].item,
                number in inspected,
                one.candidates[number].features.item.truncated,
            )
            for number, score in order[: options.top_k]
        ),
        reasoning=reasoning_text(processor, output.tokens, current),
        inspected=inspected,
        well_formed=output.well_formed,
        timings={**one.timings, **output.timings},
        tokens=last.tokens,
        none_of_these=last.none,
        refused=output.refused,
    )
