"""Validation during training: direct answers on lists that the first stage retrieves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.corpus import Corpus, ListExample, pictures_of
from retrv_r1.train.entry_vectors import Ranking
from retrv_r1.train.lists import ListCollator
from retrv_r1.train.losses import run_lists
from retrv_r1.train.tensors import to_device
from retrv_r1.train.vision_rows import clean_rows


class ListValidation:
    """R@1 after reranking the first stage's best ``k`` candidates, per cell and on average.

    A query whose relevant candidates are not among the ``k`` counts as missed, as in ``retrv-r1
    eval``. Answers are read without reasoning.

    Args:
        k: candidates of a list.
        queries: queries of each cell.
        full_tokens: read candidates at full length instead of compressed.
    """

    def __init__(
        self,
        corpus: Corpus,
        vectors: Mapping[str, Ranking],
        collator: ListCollator,
        k: int = 50,
        queries: int = 25,
        full_tokens: bool = False,
    ) -> None:
        self.corpus, self.collator, self.full_tokens = corpus, collator, full_tokens
        self._rows: Tensor | None = None
        self.lists: dict[str, list[ListExample]] = {}
        self.sizes: dict[str, int] = {}
        first = []
        for name, cell in corpus.cells.items():
            rng = np.random.default_rng(0)
            rows = rng.permutation(len(cell.queries))[:queries]
            scores = np.stack([vectors[name].scores(int(row)) for row in rows])
            ranked = np.argsort(-scores, kind="stable")[:, :k]
            nearest = [r[s[r] > -np.inf] for r, s in zip(ranked, scores, strict=True)]
            known = [cell.positives[row] for row in rows]
            found = [np.isin(r, p) for r, p in zip(nearest, known, strict=True)]
            first.append(np.mean([hit[0] for hit in found]))
            self.sizes[name] = len(rows)
            self.lists[name] = [
                self._example(name, int(row), numbers, hit, rng)
                for row, numbers, hit in zip(rows, nearest, found, strict=True)
                if hit.any()
            ]
        self.first_stage = float(np.mean(first))

    def _example(
        self,
        name: str,
        row: int,
        nearest: np.ndarray,
        relevant: np.ndarray,
        rng: np.random.Generator,
    ) -> ListExample:
        cell = self.corpus.cells[name]
        answer = int(nearest[relevant.argmax()])
        kept = rng.permutation([answer, *nearest[~relevant]]).tolist()
        return ListExample(
            cell=name,
            instruction=cell.instructions[0],
            query=cell.queries[row],
            candidates=[cell.pool[number] for number in kept],
            answer=kept.index(answer),
            closeness=[0] * len(kept),
        )

    @torch.no_grad()
    def run(self, model: RetrvR1ForConditionalGeneration, batch: int = 10) -> dict[str, float]:
        """R@1 of the answers, and of the scores that the auxiliary losses train.

        An answer is the label with the highest logit, whether or not "none of these" has a higher
        one: that is what a ranking begins with.
        The tower's rows are computed once, because no stage that is validated so trains it.
        """
        used = sorted({p for lists in self.lists.values() for x in lists for p in _pictures(x)})
        if self._rows is None and not used:  # no list has its answer, or none has pictures
            self._rows = torch.empty(0, 0, 0)
        if self._rows is None:
            model.eval()  # the Trainer makes it train again
            self._rows = clean_rows(model, self.collator.processor, self.corpus.bank, used)
        rows = self._rows
        row_of = {picture: number for number, picture in enumerate(used)}
        metrics: dict[str, list[float]] = {}
        token, labels = self.collator.tokens.answer_start, list(self.collator.tokens.labels)
        for name, lists in self.lists.items():
            hits = dict.fromkeys(("answer", "match", "lookup", "pointer", "content"), 0.0)
            for start in range(0, len(lists), batch):
                chosen = lists[start : start + batch]
                packed = self.collator.collate(
                    chosen,
                    np.random.default_rng(0),
                    reason=0.0,
                    moved_labels=0.0,
                    full_tokens=self.full_tokens,
                )
                packed = to_device(packed, model.device)
                vision = rows[[row_of[p] for p in packed.pictures]].flatten(0, 1).to(model.device)
                out = run_lists(model, packed, vision)
                hits["answer"] += out.label_hits(labels)
                hits["match"] += out.match_loss(token)[1] * len(chosen)
                hits["lookup"] += out.lookup_loss()[1] * len(chosen)
                hits["pointer"] += out.pointer_loss()[1] * len(chosen)
                hits["content"] += out.content_loss()[1] * len(chosen)
            short = name.split("_")[-1]
            for kind, count in hits.items():
                metrics.setdefault(f"val_{kind}_r1", []).append(count / self.sizes[name])
            metrics[f"val_r1_{short}"] = [hits["answer"] / self.sizes[name]]
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        return {"val_first_stage_r1": self.first_stage, **means}


def _pictures(example: ListExample) -> list[int]:
    return pictures_of([example.query, *example.candidates])
