"""The model's outputs on a batch of lists, and the losses on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.train.lists import Candidates, ListBatch


def contrast(
    queries: Tensor, states: Tensor, candidates: Candidates, temperature: float
) -> tuple[Tensor, float]:
    """InfoNCE over cosine similarities, and the share of answers nearest within their own lists.

    Lists without an answer do not count.

    Args:
        queries: state of each list's query, ``[b, d]``.
        states: state of each candidate of all lists, ``[c, d]``.
        temperature: divisor of the similarities.
    """
    normalize, lists = nn.functional.normalize, candidates.answered
    if not len(lists):
        return queries.sum() * 0, 0.0
    logits = normalize(queries[lists], dim=-1) @ normalize(states, dim=-1).T / temperature
    answers = candidates.is_answer.nonzero().squeeze(1)
    known = candidates.rivals[lists]
    known[torch.arange(len(lists), device=lists.device), answers] = True
    logits = logits.float().masked_fill(~known, -1e4)
    foreign = candidates.owner[None] != lists[:, None]
    hits = logits.masked_fill(foreign, -1e4).argmax(1) == answers
    return nn.functional.cross_entropy(logits, answers), float(hits.float().mean())


@dataclass(frozen=True)
class ListOutput:
    """Hidden states of a batch, and the head.

    Attributes:
        hidden: normed states after the last layer, ``[b, l, d]``.
        middle: states after half of the layers, ``[b, l, d]``.
        late: states before the last layer, with the final norm, ``[b, l, d]``.
        content: content token of every item, ``[m, d]``.
    """

    hidden: Tensor
    middle: Tensor
    late: Tensor
    content: Tensor
    batch: ListBatch
    head: nn.Linear

    def token_loss(self) -> Tensor:
        """Cross-entropy of the target tokens."""
        targets = self.batch.labels[:, 1:]
        keep = targets != -100
        logits = self.head(self.hidden[:, :-1][keep])
        return nn.functional.cross_entropy(logits.float(), targets[keep])

    def answer_logits(self) -> Tensor:
        """Logits at the positions that predict the answers' labels, ``[b, vocabulary]``."""
        return self.head(self.hidden[self._lists(), self.batch.answer_rows])

    def answer_loss(self) -> tuple[Tensor, float]:
        """Cross-entropy of the answers' labels, and the share that has the highest logit."""
        logits = self.answer_logits()
        goal = self.batch.labels[self._lists(), self.batch.answer_rows + 1]
        hits = float((logits.argmax(-1) == goal).float().mean())
        return nn.functional.cross_entropy(logits.float(), goal), hits

    def label_hits(self, labels: Sequence[int]) -> int:
        """Number of lists whose answer has the highest logit among the labels."""
        goal = self.batch.labels[self._lists(), self.batch.answer_rows + 1]
        best = self.answer_logits()[:, list(labels)].argmax(-1)
        return int((torch.tensor(labels, device=best.device)[best] == goal).sum())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Middle states at the last rows of queries ``[b, d]`` and of candidates ``[c, d]``."""
        return self._states(self.middle, self.batch.query_ends)

    def contents(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """From tokens of items ``[m, d]`` those of queries ``[b, d]`` and candidates ``[c, d]``."""
        candidates = self.batch.candidates
        return tokens[candidates.queries], tokens[candidates.items]

    def pointer_loss(self, temperature: float = 0.05) -> tuple[Tensor, float]:
        """InfoNCE in the middle layer: a query's last row against candidates' last rows.

        Candidates of other lists are negatives too (``Candidates.rivals``). The loss puts queries
        and candidates into one space, where the upper layers can look up the answer; without it
        list reading stays at chance (docs/LOG.md). It adds nothing to inference. Returns what
        :func:`contrast` does.
        """
        return self._contrast(*self.ends(), temperature)

    def lookup_loss(self, temperature: float = 0.05) -> tuple[Tensor, float]:
        """The same before the last layer, from the row that predicts the answer.

        The last layer then finds the answer by similarity and has only to copy its label.
        """
        return self._contrast(*self._states(self.late, self.batch.answer_rows), temperature)

    def _states(self, states: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States of each list at ``rows [b]``, and of every candidate's last row."""
        queries = states[self._lists(), rows]
        return queries, states[self.batch.candidates.owner, self.batch.candidate_ends]

    def _lists(self) -> Tensor:
        return torch.arange(len(self.hidden), device=self.hidden.device)

    def _contrast(
        self, queries: Tensor, states: Tensor, temperature: float
    ) -> tuple[Tensor, float]:
        return contrast(queries, states, self.batch.candidates, temperature)

    def content_loss(self, temperature: float = 0.05) -> tuple[Tensor, float]:
        """InfoNCE between content tokens: a query's against those of all candidates.

        It costs almost nothing, and makes token embeddings, tower rows and content tokens
        comparable before the language model has learned to compare.
        """
        return self._contrast(*self.contents(self.content), temperature)

    def match_loss(self, token: int) -> tuple[Tensor, float]:
        """Loss on match and label of every candidate, from its last row before the last layer.

        The logit of ``token``, softmaxed over the list, must choose the answer; the labels' logits
        must name the row's own label. The last layer then has only to find the best match and copy
        its label. It adds nothing to inference. Returns the loss and the share of lists whose
        answer has the highest logit of ``token``.
        """
        candidates, weight = self.batch.candidates, self.head.weight
        rows = self.late[candidates.owner, self.batch.candidate_ends]
        scores = self._by_list(rows @ weight[token], -1e4)
        fits = self._by_list(candidates.is_answer.to(rows.dtype), 0.0)
        known, own = self.batch.candidate_labels.unique(return_inverse=True)
        cross_entropy = nn.functional.cross_entropy
        loss = cross_entropy(rows @ weight[known].T, own)
        lists = candidates.answered
        if not len(lists):
            return loss, 0.0
        scores, goal = scores[lists].float(), fits[lists].argmax(1)
        return loss + cross_entropy(scores, goal), float((scores.argmax(1) == goal).float().mean())

    def likeness_loss(self, scale: float = 20.0) -> Tensor:
        """KL divergence of the answers' distributions from those of the content tokens' likeness.

        What candidates resemble is known before a language model can compare them; this keeps it
        from forgetting so, and shows it how near the others are. Lists without an answer do not
        count.

        Args:
            scale: factor of cosines.
        """
        candidates, lists = self.batch.candidates, self.batch.candidates.answered
        if not len(lists):
            return self.hidden.sum() * 0
        queries, shown = (nn.functional.normalize(x, dim=-1) for x in self.contents(self.content))
        alike = scale * (queries[candidates.owner] * shown).sum(-1).detach()
        said = self.answer_logits()[candidates.owner, self.batch.candidate_labels]
        goal, given = (self._by_list(x.float(), -1e4)[lists].log_softmax(-1) for x in (alike, said))
        return nn.functional.kl_div(given, goal, log_target=True, reduction="batchmean")

    def _by_list(self, values: Tensor, empty: float) -> Tensor:
        """Values of all candidates ``[c]`` as ``[b, most]``, the places behind filled."""
        owner = self.batch.candidates.owner
        sizes = torch.bincount(owner, minlength=len(self.hidden))
        place = torch.arange(len(values), device=values.device)
        at = owner, place - (sizes.cumsum(0) - sizes)[owner]
        return values.new_full((len(sizes), int(sizes.max())), empty).index_put(at, values)


def run_lists(
    model: RetrvR1ForConditionalGeneration, batch: ListBatch, vision_rows: Tensor | None
) -> ListOutput:
    """Runs compressor and language model on a batch.

    Args:
        batch: lists or descriptions.
        vision_rows: tower rows of the batch's pictures, ``[v, d]``.
    """
    items, candidates = replace(batch.items, vision_rows=vision_rows), batch.candidates
    table = model.row_table(items, candidates.items, candidates.queries[candidates.owner])
    embeds = model.embed(batch.input_ids, batch.row_refs, table)
    out = model.language_model(
        inputs_embeds=embeds, position_ids=batch.position_ids, output_hidden_states=True
    )
    states = out.hidden_states
    middle, late = states[len(states) // 2], model.language_model.norm(states[-2])
    rows = len(batch.items.ids)
    content = table[rows:][: len(batch.items.cu_seqlens) - 1]
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    return ListOutput(out.last_hidden_state, middle, late, content, batch, head)
