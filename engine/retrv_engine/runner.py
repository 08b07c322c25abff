"""Runs the model: a packed batch of rows through a Hugging Face decoder, over the paged cache.

The decoder is a twin of the model's own: the same parameters in modules of their own, so that its
attention and its linear layers can be ours while the model stays as it is for everybody else.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retrv_engine.attention import NAME, Batch, PagedCache, register
from retrv_engine.config import EngineConfig
from retrv_engine.lean import lighten
from retrv_engine.request import Piece, check_pieces
from retrv_engine.scheduler import Extend
from retrv_engine.weights import load_weights
from retrv_kernels.linear import PreparedLinear
from retrv_kernels.ops import Span, splice_features

CPU_CACHE_BYTES = 2**30
STORES = 16  # of splice_features
ROUNDED = {"model": None, "float16": torch.float16, "int8": torch.int8}


class Decoder(Protocol):
    """What the runner needs of a model: a Hugging Face decoder between two tables."""

    @property
    def language_model(self) -> nn.Module:
        """Takes ``inputs_embeds`` and M-RoPE ``position_ids``; its attention is pluggable."""
        ...

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module: ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


class Runner(Protocol):
    """What computes a step; pages are numbers below ``pages``."""

    pages: int

    def run(self, extends: Sequence[Extend]) -> Tensor:
        """Computes rows and keeps what later ones need of them.

        Returns:
            Logits of the rows that want them, in the order of ``extends``, ``[m, vocabulary]``.
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


class ModelRunner:
    """Computes logits of planned rows.

    Args:
        model: shared with its other users; only ``load_weights`` changes it.
    """

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        register()
        self.model, self.config = model, config
        self.table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.decoder = twin(model.language_model)
        self.decoder.config._attn_implementation = NAME  # type: ignore[union-attr]
        stored = ROUNDED[config.weights]
        if stored is not None and self.table.device.type != "cpu":
            raise ValueError(f"weights are rounded on CPUs only, not on {self.table.device}")
        if not lighten(self.decoder, stored):
            prepare_linears(self.decoder, stored)
        self.head = model.get_output_embeddings()
        if type(self.head) is nn.Linear:
            self.head = PreparedLinear(self.head, dtype=stored)
        text: Any = self.decoder.config
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            raise ValueError("models with sliding-window attention are not supported")
        heads = text.num_key_value_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        row = 2 * text.num_hidden_layers * heads * width * self.table.element_size()
        size = config.page_size
        self.pages = max(1, self._budget() // (row * size))
        self.cache = PagedCache(
            self.table.new_empty(text.num_hidden_layers, 2, self.pages, heads, size, width)
        )

    def check(self, pieces: Sequence[Piece]) -> None:
        """See :meth:`Runner.check`."""
        check_pieces(pieces, self.table)

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies the first rows of a page to another."""
        self.cache.copy(source, target, rows)

    def run(self, extends: Sequence[Extend]) -> Tensor:
        """See :meth:`Runner.run`."""
        batch = Batch.of(extends, self.config.page_size, self.table.device)
        order = [extends[i] for i in batch.order]
        spliced = splice_features(
            *self._pieces(order), batch.page_table, self.config.page_size, dtype=self.table.dtype
        )
        hidden = self.decoder(
            inputs_embeds=spliced.embeds[None],
            position_ids=spliced.positions[:, None],
            use_cache=False,
            retrv_batch=batch.place(self.cache, spliced.slots),
        ).last_hidden_state[0]
        return self.head(hidden[batch.logits])

    def _pieces(self, extends: Sequence[Extend]) -> tuple[list[Tensor], list[Span]]:
        """Stores and spans of the rows to feed; the first store is the table of embeddings."""
        stores: dict[int, tuple[int, Tensor]] = {id(self.table): (0, self.table)}
        spans = []
        for sequence, (job, first, stop) in enumerate(extends):
            slot = first
            for piece in job.context.stretches(first, stop):
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

    def _budget(self) -> int:
        """Bytes of the cache."""
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        device = self.table.device
        if device.type == "cuda":
            return torch.cuda.mem_get_info(device)[0] * 4 // 5
        return CPU_CACHE_BYTES


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
