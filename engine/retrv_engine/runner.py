"""Runs the model: a packed batch of rows through a Hugging Face decoder, over the paged cache.

The decoder is a twin of the model's own: the same parameters in modules of their own, so that its
attention and its linear layers can be ours while the model stays as it is for everybody else.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retrv_engine.batch import NAME, Batch, PagedCache, Plan, register
from retrv_engine.config import EngineConfig
from retrv_engine.decode import DecodeSteps
from retrv_engine.head import logits_of
from retrv_engine.job import Extend
from retrv_engine.model import LanguageModel, load_weights
from retrv_engine.qwen_layers import fuse_layers
from retrv_engine.request import Piece, check_pieces
from retrv_engine.sampler import Choice, Masks, Picked, pick
from retrv_kernels.linear import PreparedLinear
from retrv_kernels.ops import Span, splice_features

CPU_CACHE_BYTES = 2**30
REST_BYTES = 4 * 2**30
"""What the cache leaves of a GPU's memory to features, the tower and logits, if it has as much."""
MOST_PAGES = 2**20
STORES = 16  # of splice_features
PICKED_ROWS = 256
"""Rows whose logits are held at once: 256 of a vocabulary of 152,000 are 156 MB."""
ROUNDED = {"model": None, "float16": torch.float16, "int8": torch.int8}


class Runner(Protocol):
    """What computes a step; pages are numbers below ``pages``.

    Attributes:
        single: as of :class:`retrv_engine.scheduler.Scheduler`.
        sizes: numbers of sequences that a step is made for, where ``single``.
    """

    pages: int
    single: bool
    sizes: Sequence[int]

    def run(self, extends: Sequence[Extend]) -> list[list[Picked]]:
        """Computes rows, keeps what later ones need of them, and takes the tokens that are due.

        Returns:
            What each of ``extends`` wants.
        """
        ...

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies the first rows of a page to another."""
        ...

    def check(self, pieces: Sequence[Piece]) -> None:
        """Raises ValueError unless the pieces can be run."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copies values into the model's parameters, or raises ValueError and changes nothing."""
        ...

    def reset(self) -> None:
        """Forgets what is kept between steps, after an error in one."""
        ...

    def warm(self) -> None:
        """Compiles what requests of other makes will launch; asked for where ``single``."""
        ...


class ModelRunner:
    """Computes logits of planned rows.

    Args:
        model: shared with its other users; only ``load_weights`` changes it.
    """

    def __init__(self, model: LanguageModel, config: EngineConfig) -> None:
        register()
        self.model, self.config = model, config
        self.table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.decoder = twin(model.language_model)
        self.decoder.config._attn_implementation = NAME  # type: ignore[union-attr]
        stored = ROUNDED[config.weights]
        if stored is not None and self.table.device.type != "cpu":
            raise ValueError(f"weights are rounded on CPUs only, not on {self.table.device}")
        if not fuse_layers(self.decoder, stored):
            prepare_linears(self.decoder, stored)
        self.head: Any = model.get_output_embeddings()
        self.words = getattr(self.head, "out_features", len(self.table))
        if type(self.head) is nn.Linear and self.head.weight.element_size() != 2:
            self.head = PreparedLinear(self.head, dtype=stored)
        text: Any = self.decoder.config
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            raise ValueError("models with sliding-window attention are not supported")
        heads = text.num_key_value_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        row = 2 * text.num_hidden_layers * heads * width * self.table.element_size()
        size = config.page_size
        self.pages = min(MOST_PAGES, max(1, self._budget() // (row * size)))
        # One more, which padding rows of a decode step write to.
        shape = text.num_hidden_layers, 2, self.pages + 1, heads, size, width
        self.cache = PagedCache(self.table.new_empty(shape))
        self.single = bool(config.graphs)
        self.steps = DecodeSteps(self.cache, self.pages, self.single, config.max_sequences)
        self.sizes: Sequence[int] = self.steps.buckets
        self._masks: Masks | None = None
        self._places = self._parameters()

    def check(self, pieces: Sequence[Piece]) -> None:
        """See :meth:`Runner.check`."""
        check_pieces(pieces, self.table)

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies the first rows of a page to another."""
        self.cache.copy(source, target, rows)

    def run(self, extends: Sequence[Extend]) -> list[list[Picked]]:
        """See :meth:`Runner.run`."""
        choices = [extend.choices() for extend in extends]
        if self._masks is None:
            rows = 2 * self.config.max_sequences + 2
            self._masks = Masks(rows, self.words, self.table.device)
        if all(map(_writes, extends)):
            single = [one[0] if one else Choice() for one in choices]
            found = self.steps.run(self._logits, extends, single, self._masks)
            return [[pick] if one else [] for one, pick in zip(choices, found, strict=True)]
        picks = iter(self._run(extends, [choice for one in choices for choice in one]))
        return [list(itertools.islice(picks, len(one))) for one in choices]

    def _run(self, extends: Sequence[Extend], choices: Sequence[Choice]) -> list[Picked]:
        """A step in which some read: rows of any number and kind."""
        plan = Plan.of(extends, self.config.page_size, self.table.device)
        pieces = self._pieces([extends[i] for i in plan.order])
        spliced = splice_features(
            *pieces, plan.page_table, self.config.page_size, dtype=self.table.dtype
        )
        batch = plan.place(self.cache, spliced.slots)
        hidden = self._hidden(spliced.embeds, spliced.positions, batch)[plan.wanted]
        parts = [slice(first, first + PICKED_ROWS) for first in range(0, len(choices), PICKED_ROWS)]
        return [
            one
            for part in parts
            for one in pick(logits_of(self.head, hidden[part]), choices[part], self._masks)
        ]

    def _logits(self, tokens: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """Float32 logits ``[b, vocabulary]`` behind tokens ``[b]``."""
        embeds = nn.functional.embedding(tokens, self.table)
        return logits_of(self.head, self._hidden(embeds, positions.expand(3, -1), batch))

    def _hidden(self, embeds: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """``embeds [n, d]`` at ``positions [3, n]`` behind the last layer and norm, ``[n, d]``."""
        return self.decoder(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            use_cache=False,
            retrv_batch=batch,
        ).last_hidden_state[0]

    def _pieces(self, extends: Sequence[Extend]) -> tuple[list[Tensor], list[Span]]:
        """Stores and spans of the rows to feed; the first store is the table of embeddings."""
        stores: dict[int, tuple[int, Tensor]] = {id(self.table): (0, self.table)}
        spans = []
        for sequence, (job, first, stop) in enumerate(extends):
            slot = first
            for piece in job.context.placed(first, stop):
                table = self.table if piece.table is None else piece.table
                number, _ = stores.setdefault(id(table), (len(stores), table))
                at = (piece.position, piece.width, sequence, slot, piece.start)
                spans.append(Span(number, piece.row, piece.length, *at))
                slot += piece.length
        tables = [table for _, table in stores.values()]
        if len(tables) <= STORES:
            return tables, spans
        # More tables than the operator takes: those beyond are put behind one another.
        kept, rest = tables[: STORES - 1], tables[STORES - 1 :]
        starts = [0, *itertools.accumulate(map(len, rest))]
        for i, span in enumerate(spans):
            if (place := span.store - len(kept)) >= 0:
                spans[i] = span._replace(store=len(kept), row=starts[place] + span.row)
        return [*kept, torch.cat(rest)], spans

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :meth:`Runner.load_weights`."""
        load_weights(self.model, weights)
        for module in (*self.decoder.modules(), self.head):
            if isinstance(module, PreparedLinear):
                module.refresh()
        if (places := self._parameters()) != self._places:  # what graphs replay reads elsewhere
            self._places = places
            self.steps.clear()

    def warm(self) -> None:
        """See :meth:`Runner.warm`: rows from any number of stores."""
        table = self.table.new_zeros(1, self.table.shape[1])
        pages = torch.full((1, 1), self.pages, device=table.device)
        for count in (1, 2, 4, 8, STORES):
            spans = [Span(store, 0, 1, 0, 0, 0, 0, 0) for store in range(count)]
            splice_features([table] * count, spans, pages, self.config.page_size, dtype=table.dtype)

    def reset(self) -> None:
        """See :meth:`Runner.reset`."""
        self.steps.clear()
        self._masks = None

    def _parameters(self) -> list[int]:
        """Where the parameters are."""
        return [parameter.data_ptr() for _, parameter in self.model.named_parameters()]

    def _budget(self) -> int:
        """Bytes of the cache."""
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        device = self.table.device
        if device.type == "cuda":
            torch.cuda.empty_cache()  # weights that were laid side by side have left their places
            free = torch.cuda.mem_get_info(device)[0]
            return max(free // 2, min(free * 4 // 5, free - REST_BYTES))
        return CPU_CACHE_BYTES


def _writes(extend: Extend) -> bool:
    """Whether a job that decodes feeds one token."""
    job, first, stop = extend
    return job.phase == "decode" and stop - first == 1


def prepare_linears(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Puts a :class:`PreparedLinear` in the place of every linear layer inside a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PreparedLinear(child, dtype=dtype))


def twin(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers are the module's own."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
