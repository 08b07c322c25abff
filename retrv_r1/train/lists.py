"""Lists as model inputs: items packed once, prompts, targets, and the losses on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from retrv_r1.model.modeling import PackedItems, RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import EncodedItem, RetrvR1Processor
from retrv_r1.model.tokens import MAX_CANDIDATES, encode_text
from retrv_r1.prompts import PromptBuilder, Rows, TableLayout
from retrv_r1.train.chains import Piece, chain
from retrv_r1.train.corpus import Entry, ListExample
from retrv_r1.train.pictures import merged_grid

Reading = Literal["compressed", "full"]


@dataclass(frozen=True)
class ListBatch:
    """Padded sequences over one row table.

    Attributes:
        items: the packed items, still without vision rows.
        pictures: bank rows of the pictures, in the order of their vision rows.
        input_ids, row_refs, labels: ``[b, l]``; position_ids ``[3, b, l]``.
        pair_candidate, pair_query: item numbers of the pairs.
        match_rows, match_cols: sequence and position of every candidate's last row, ``[c]``.
        match_fits: whether each of these candidates is the answer; match_labels: its label.
        rivals: which of all candidates are negatives of a list's query, ``[b, c]``.
        query_cols: position of the last row before the candidates, ``[b]``.
        answer_cols: position of the row that predicts the answer's label, ``[b]``.
    """

    items: PackedItems
    pictures: list[int]
    input_ids: Tensor
    row_refs: Tensor
    position_ids: Tensor
    labels: Tensor
    pair_candidate: Tensor
    pair_query: Tensor
    match_rows: Tensor
    match_cols: Tensor
    match_fits: Tensor
    match_labels: Tensor
    rivals: Tensor
    query_cols: Tensor
    answer_cols: Tensor

    @property
    def tokens(self) -> int:
        return self.input_ids.numel()


class ListCollator:
    """Turns list examples and descriptions into a :class:`ListBatch`.

    Args:
        max_text: tokens of an item's text that are read.
    """

    def __init__(self, processor: RetrvR1Processor, max_text: int = 24) -> None:
        self.processor, self.max_text = processor, max_text
        self.grid = merged_grid(processor.image_processor)
        self.builder = PromptBuilder(processor.tokenizer, processor.config.prompts)
        self.tokens = processor.tokens
        self._ids: dict[str, list[int]] = {}

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        if text not in self._ids:
            self._ids[text] = encode_text(self.processor.tokenizer, text)
        return self._ids[text]

    def encode(self, entry: Entry) -> EncodedItem:
        """An entry as an encoded item without patches (the bank holds its picture)."""
        ids = tuple(self.text_ids(entry.text)[: self.max_text]) if entry.text else ()
        return EncodedItem(ids, rows=self.grid if entry.picture is not None else None)

    def collate(
        self,
        lists: Sequence[ListExample],
        rng: np.random.Generator,
        *,
        reason: float,
        reading: Reading = "compressed",
        moved_labels: float = 0.2,
    ) -> ListBatch:
        """One sequence per list.

        Args:
            reason: share of lists with a chain of thought; the others answer at once.
            moved_labels: share of lists whose labels start anywhere, so that all are trained.
        """
        ordered, numbers = distinct(lists)
        encoded = [self.encode(entry) for entry in ordered]
        layout = TableLayout.of(encoded)
        sequences, labels, pairs, matches, ends, answers = [], [], [], [], [], []
        for b, (example, (query, candidates)) in enumerate(zip(lists, numbers, strict=True)):
            first_pair = len(pairs)
            pairs += [(c, query) for c in candidates]
            offset = 0
            if rng.random() < moved_labels:
                offset = int(rng.integers(MAX_CANDIDATES - len(candidates) + 1))
            names = [self.tokens.labels[offset + k] for k in range(len(candidates))]
            rows = self.builder.listwise(
                layout,
                query,
                candidates,
                range(first_pair, first_pair + len(candidates)),
                instruction=example.instruction,
                labels=range(offset, offset + len(candidates)),
                full_tokens=reading == "full",
            )
            starts = label_positions(rows, names)
            lengths = [2] * len(candidates)
            if reading == "full":
                items = [layout.items[c] for c in candidates]
                lengths = [len(item) + 2 * bool(item.rows) for item in items]
            last = [start + length for start, length in zip(starts, lengths, strict=True)]
            matches += [(b, c, k == example.answer, names[k]) for k, c in enumerate(last)]
            ends.append(starts[0] - 1)
            targets = [-100] * len(rows)
            reasoned = rng.random() < reason
            if reasoned:
                self._think(rows, targets, chain(example, rng), names, layout, candidates)
            answers.append(len(rows))
            self._answer(rows, targets, names[example.answer], reasoned)
            sequences.append(rows)
            labels.append(targets)
        return self._pad(
            layout, ordered, sequences, labels, pairs, matches, rivals(lists), ends, answers
        )

    def pairs(self, lists: Sequence[ListExample]) -> PairBatch:
        """The same lists for their content tokens alone."""
        ordered, numbers = distinct(lists)
        layout = TableLayout.of([self.encode(entry) for entry in ordered])
        shown = [(b, c) for b, (_, candidates) in enumerate(numbers) for c in candidates]
        owner, candidate = torch.tensor(shown).T
        return PairBatch(
            items=self.processor.pack(layout.items),
            entries=ordered,
            query=torch.tensor([query for query, _ in numbers]),
            candidate=candidate,
            owner=owner,
            fits=torch.tensor([k == x.answer for x in lists for k in range(len(x.candidates))]),
            rivals=torch.tensor(rivals(lists)),
        )

    def _think(
        self,
        rows: Rows,
        targets: list[int],
        pieces: Sequence[Piece],
        names: Sequence[int],
        layout: TableLayout,
        candidates: Sequence[int],
    ) -> None:
        def write(ids: Sequence[int]) -> None:
            rows.add(ids)
            targets.extend(ids)

        write([self.tokens.think_start])
        for piece in pieces:
            if piece.kind == "text":
                write(self.text_ids(piece.text))
            elif piece.kind == "label":
                write([names[piece.candidate]])
            else:
                label = names[piece.candidate]
                write([self.tokens.inspect_start, label, self.tokens.inspect_end])
                self.builder.full_item(rows, layout, candidates[piece.candidate])
                targets.extend([-100] * (len(rows) - len(targets)))
        write([self.tokens.think_end])

    def _answer(self, rows: Rows, targets: list[int], label: int, reasoned: bool) -> None:
        ids = [self.tokens.answer_start, label, self.tokens.answer_end, self.tokens.im_end]
        rows.add(ids)
        # After reasoning the opening tag is the model's to write; in fast mode it is given.
        targets.extend([ids[0] if reasoned else -100, *ids[1:]])

    def describe(
        self, entries: Sequence[Entry], descriptions: Sequence[str], reading: Reading
    ) -> ListBatch:
        """One sequence per entry: the item alone, then its description as the target."""
        encoded = [self.encode(entry) for entry in entries]
        layout = TableLayout.of(encoded)
        sequences, labels = [], []
        for item, description in enumerate(descriptions):
            rows = self.builder.description(layout, item, full_tokens=reading == "full")
            ids = [*self.text_ids(" " + description)[: self.max_text], self.tokens.im_end]
            labels.append([-100] * len(rows) + ids)
            sequences.append(rows.add(ids))
        return self._pad(layout, entries, sequences, labels, [], [], [], [], [])

    def _pad(
        self,
        layout: TableLayout,
        entries: Sequence[Entry],
        sequences: Sequence[Rows],
        labels: Sequence[Sequence[int]],
        pairs: Sequence[tuple[int, int]],
        matches: Sequence[tuple[int, int, bool, int]],
        negatives: Sequence[Sequence[bool]],
        query_ends: Sequence[int],
        answers: Sequence[int],
    ) -> ListBatch:
        longest = max(len(rows) for rows in sequences)
        shape = (len(sequences), longest)
        ids = torch.full(shape, self.tokens.pad)
        refs, targets = torch.full(shape, -1), torch.full(shape, -100)
        positions = torch.zeros(3, *shape, dtype=torch.long)
        for b, (rows, target) in enumerate(zip(sequences, labels, strict=True)):
            assert len(rows) == len(target)
            length = len(rows)
            ids[b, :length], refs[b, :length], positions[:, b, :length] = rows.tensors()
            targets[b, :length] = torch.tensor(target)
        pair_tensor = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        match = torch.tensor(matches, dtype=torch.long).reshape(-1, 4)
        return ListBatch(
            items=self.processor.pack(layout.items),
            pictures=[e.picture for e in entries if e.picture is not None],
            input_ids=ids,
            row_refs=refs,
            position_ids=positions,
            labels=targets,
            pair_candidate=pair_tensor[:, 0],
            pair_query=pair_tensor[:, 1],
            match_rows=match[:, 0],
            match_cols=match[:, 1],
            match_fits=match[:, 2].bool(),
            match_labels=match[:, 3],
            rivals=torch.tensor(negatives, dtype=torch.bool).reshape(len(query_ends), len(match)),
            query_cols=torch.tensor(query_ends, dtype=torch.long),
            answer_cols=torch.tensor(answers, dtype=torch.long),
        )


@dataclass(frozen=True)
class PairBatch:
    """Lists without prompts: the items whose content tokens are compared, and how.

    Attributes:
        items: the packed items of ``entries``, still without vision rows.
        query, candidate: item numbers of every list's query ``[b]`` and of all candidates ``[c]``.
        owner, fits, rivals: of every candidate, as ``match_rows``, ``match_fits`` and ``rivals``.
    """

    items: PackedItems
    entries: Sequence[Entry]
    query: Tensor
    candidate: Tensor
    owner: Tensor
    fits: Tensor
    rivals: Tensor

    @property
    def pictures(self) -> list[int]:
        """Bank rows of the pictures, in the order of their vision rows."""
        return [e.picture for e in self.entries if e.picture is not None]

    def content(self, model: RetrvR1ForConditionalGeneration, vision_rows: Tensor | None) -> Tensor:
        """Content token of every item, ``[m, d]``."""
        items = PackedItems(self.items.ids, self.items.cu_seqlens, vision_rows=vision_rows)
        return model.icm.content(model.features(items), items.cu_seqlens)

    def loss(self, content: Tensor, temperature: float = 0.04) -> tuple[Tensor, float]:
        """What :meth:`ListOutput.content_loss` is, without the language model."""
        queries, candidates = content[self.query], content[self.candidate]
        return contrast(queries, candidates, self.owner, self.fits, self.rivals, temperature)


def contrast(
    queries: Tensor,
    candidates: Tensor,
    owner: Tensor,
    fits: Tensor,
    rivals: Tensor,
    temperature: float,
) -> tuple[Tensor, float]:
    """InfoNCE over cosine similarities, and the share of answers nearest within their own lists.

    Args:
        queries: ``[b, d]``; candidates: of all lists, ``[c, d]``.
        owner, fits: list of each candidate, and whether it is that list's answer, ``[c]``.
        rivals: negatives of each list's query, ``[b, c]``.
    """
    normalize, lists = nn.functional.normalize, torch.arange(len(queries))
    logits = normalize(queries, dim=-1) @ normalize(candidates, dim=-1).T / temperature
    answers = fits.nonzero().squeeze(1)
    known = rivals.clone()
    known[lists, answers] = True
    logits = logits.float().masked_fill(~known, -1e4)
    foreign = owner[None] != lists[:, None]
    hits = logits.masked_fill(foreign, -1e4).argmax(1) == answers
    return nn.functional.cross_entropy(logits, answers), float(hits.float().mean())


@dataclass(frozen=True)
class ListOutput:
    """Hidden states ``[b, l, d]`` and the head.

    Attributes:
        hidden: of the last layer, normed.
        middle: half-way up; late: below the last layer, normed as the last one is.
        content: content token of every item, ``[m, d]``.
    """

    hidden: Tensor
    middle: Tensor
    late: Tensor
    content: Tensor
    batch: ListBatch
    head: nn.Module

    def token_loss(self) -> Tensor:
        """Cross-entropy of the target tokens."""
        targets = self.batch.labels[:, 1:]
        keep = targets != -100
        logits = self.head(self.hidden[:, :-1][keep])
        return nn.functional.cross_entropy(logits.float(), targets[keep])

    def answer_logits(self) -> Tensor:
        """Logits over the vocabulary where the answer's label is due, ``[b, vocabulary]``."""
        return self.head(self.hidden[torch.arange(len(self.hidden)), self.batch.answer_cols])

    def answer_loss(self) -> tuple[Tensor, float]:
        """Cross-entropy of the answers' labels alone, and the share that is most likely."""
        logits = self.answer_logits()
        rows = torch.arange(len(logits))
        goal = self.batch.labels[rows, self.batch.answer_cols + 1]
        hits = float((logits.argmax(-1) == goal).float().mean())
        return nn.functional.cross_entropy(logits.float(), goal), hits

    def pointer_loss(self, temperature: float = 0.05) -> tuple[Tensor, float]:
        """InfoNCE in the middle layer: a query's last row against candidates' last rows.

        Candidates of other lists are negatives too (:func:`rivals`). It puts queries and
        candidates into one space half-way up, where the upper layers can look the answer up;
        without it list reading stays at chance (docs/LOG.md). Nothing of it remains at inference.
        Returns the loss and the share of answers nearest within their own lists.
        """
        batch = self.batch
        lists = torch.arange(len(self.middle))
        queries = self.middle[lists, batch.query_cols]
        candidates = self.middle[batch.match_rows, batch.match_cols]
        return contrast(
            queries, candidates, batch.match_rows, batch.match_fits, batch.rivals, temperature
        )

    def content_loss(self, temperature: float = 0.05) -> tuple[Tensor, float]:
        """InfoNCE between content tokens: a query's own against those of all candidates.

        Costs nothing beside the list itself, and makes token embeddings, tower rows and content
        tokens comparable before the language model has learned to compare. Returns what
        :meth:`pointer_loss` does.
        """
        batch = self.batch
        own = batch.match_fits.nonzero().squeeze(1)
        queries = self.content[batch.pair_query[own]]
        candidates = self.content[batch.pair_candidate]
        return contrast(
            queries, candidates, batch.match_rows, batch.match_fits, batch.rivals, temperature
        )

    def match_loss(self, token: int) -> tuple[Tensor, float]:
        """Below the last layer, at every candidate's last row: does it match, what is its label?

        The logit of ``token`` is softmaxed over the list, the labels' logits must name the row's
        own label. The last layer then has only to find the best match and copy its label. Dense
        supervision; nothing of it remains at inference. Returns the loss and the share of lists
        whose answer scores highest.
        """
        batch, weight = self.batch, self.head.weight
        rows = self.late[batch.match_rows, batch.match_cols]
        sizes = torch.bincount(batch.match_rows, minlength=len(self.hidden)).tolist()
        scores = nn.utils.rnn.pad_sequence((rows @ weight[token]).split(sizes), True, -1e4)
        fits = nn.utils.rnn.pad_sequence(batch.match_fits.split(sizes), True, False)
        goal = fits.float().argmax(1)
        known, own = batch.match_labels.unique(return_inverse=True)
        cross_entropy = nn.functional.cross_entropy
        loss = cross_entropy(scores.float(), goal) + cross_entropy(rows @ weight[known].T, own)
        return loss, float((scores.argmax(1) == goal).float().mean())


def run_lists(
    model: RetrvR1ForConditionalGeneration, batch: ListBatch, vision_rows: Tensor | None
) -> ListOutput:
    """Runs a batch through compressor and language model; ``vision_rows [v, d]``."""
    items = PackedItems(batch.items.ids, batch.items.cu_seqlens, vision_rows=vision_rows)
    table = model.row_table(items, batch.pair_candidate, batch.pair_query)
    embeds = model.embed(batch.input_ids, batch.row_refs, table)
    out = model.language_model(
        inputs_embeds=embeds, position_ids=batch.position_ids, output_hidden_states=True
    )
    states = out.hidden_states
    middle, late = states[len(states) // 2], model.language_model.norm(states[-2])
    content = table[len(batch.items.ids) :][: len(batch.items.cu_seqlens) - 1]
    head = model.get_output_embeddings()
    return ListOutput(out.last_hidden_state, middle, late, content, batch, head)


def distinct(lists: Sequence[ListExample]) -> tuple[list[Entry], list[tuple[int, list[int]]]]:
    """The entries of lists, each once, and every list's query and candidates as their numbers."""
    entries: dict[tuple[str | None, int | None], int] = {}
    ordered: list[Entry] = []

    def number(entry: Entry) -> int:
        if entry.key not in entries:
            entries[entry.key] = len(ordered)
            ordered.append(entry)
        return entries[entry.key]

    numbers = [(number(x.query), [number(c) for c in x.candidates]) for x in lists]
    return ordered, numbers


def rivals(lists: Sequence[ListExample]) -> list[list[bool]]:
    """Which of all lists' candidates, in order, are negatives of each list's query.

    The other candidates of its own list; of other lists those of the same cell that are not known
    to be relevant, nor the query itself.
    """
    shown = [(b, x.cell, c.key) for b, x in enumerate(lists) for c in x.candidates]
    out = []
    for b, example in enumerate(lists):
        answer = example.candidates[example.answer].key
        barred = example.relevant | {answer, example.query.key}
        out.append(
            [
                key != answer if owner == b else cell == example.cell and key not in barred
                for owner, cell, key in shown
            ]
        )
    return out


def label_positions(rows: Rows, names: Sequence[int]) -> list[int]:
    """Where the labels stand in a listwise prompt."""
    wanted = {name: k for k, name in enumerate(names)}
    found = {wanted[token]: col for col, token in enumerate(rows.ids) if token in wanted}
    return [found[k] for k in range(len(names))]
