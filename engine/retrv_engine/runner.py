"""Runs the model: a packed batch of rows through a Hugging Face decoder, over the paged cache.

The decoder is a twin of the model's own: other modules with the same parameters. So the engine can
replace its attention and its linear layers without changing the model for other users.
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
"""Memory of a GPU that the cache leaves to features, the tower and logits, if there is as much."""
MOST_PAGES = 2**20
STORES = 16  # tables that splice_features accepts in one call
PICKED_ROWS = 256
"""Rows whose logits are held at once: for a vocabulary of 152,000 tokens, 156 MB."""
ROUNDED = {"model": None, "float16": torch.float16, "int8": torch.int8}


class Runner(Protocol):
    """What computes a step, in pages with numbers below ``pages``.

    Attributes:
        fixed: whether decode steps have fixed shapes, one row a job.
        sizes: numbers of jobs in such a step.
    """

    pages: int
    fixed: bool
    sizes: Sequence[int]

    def run(self, extends: Sequence[Extend]) -> list[list[Picked]]:
        """Computes rows, caches their keys and values, and takes the tokens that are due.

        Returns:
            Tokens of each of ``extends``.
        """
        ...

    def copy(self, source: int, target: int, rows: int) -> None:
        """Copies the first rows of a page to another."""
        ...

    def check(self, pieces: Sequence[Piece]) -> None:
        """Raises ValueError unless the pieces can be run."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copies values into the model's parameters; ValueError if they do not fit (no change)."""
        ...

    def reset(self) -> None:
        """Drops what is kept between steps, after an error in one."""
        ...

    def warm(self) -> None:
        """Compiles kernels that made-up requests do not launch."""
        ...


class ModelRunner:
    """Runs steps through a language model.

    Args:
        model: model whose parameters are shared; only ``load_weights`` changes them.
    """

    def __init__(self, model: LanguageModel, config: EngineConfig) -> None:
        register()
        self.model, self.config = model, config
        self.table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.decoder = twin(model.language_model)
        self.decoder.config._attn_implementation = NAME  # type: ignore[union-attr]
        stored = ROUNDED[config.weights]
        if stored is not None and self.table.device.type != "cpu":
            raise ValueError(
                f"weights are rounded on CPUs only, not on {self.table.device}: use weights='model'"
            )
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
        space = self._cache_bytes()
        if space < row * size:
            raise ValueError(
                f"a cache of {space} bytes holds no page of {size} rows, which takes {row * size}: "
                "raise the engine's cache_bytes"
            )
        self.pages = min(MOST_PAGES, space // (row * size))
        # One more page, which padding rows of a decode step write to.
        shape = text.num_hidden_layers, 2, self.pages + 1, heads, size, width
        self.cache = PagedCache(self.table.new_empty(shape))
        self.fixed = bool(config.graphs)
        self.steps = DecodeSteps(self.cache, self.pages, self.fixed, config.max_sequences)
        self.sizes: Sequence[int] = self.steps.buckets
        self._masks: Masks | None = None
        self._places = self._addresses()

    def check(self, pieces: Sequence[Piece]) -> None:
        """See :meth:`Runner.check`."""
        check_pieces(pieces, self.table)

    def copy(self, source: int, target: int, rows: int) -> None:
        """See :meth:`Runner.copy`."""
        self.cache.copy(source, target, rows)

    def run(self, extends: Sequence[Extend]) -> list[list[Picked]]:
        """See :meth:`Runner.run`."""
        choices = [extend.choices() for extend in extends]
        if self._masks is None:
            rows = 2 * self.config.max_sequences + 2
            self._masks = Masks(rows, self.words, self.table.device)
        if all(job.phase == "decode" and stop - first == 1 for job, first, stop in extends):
            single = [one[0] if one else Choice() for one in choices]
            found = self.steps.run(self._logits, extends, single, self._masks)
            return [[pick] if one else [] for one, pick in zip(choices, found, strict=True)]
        picks = iter(self._run(extends, [choice for one in choices for choice in one]))
        return [list(itertools.islice(picks, len(one))) for one in choices]

    def _run(self, extends: Sequence[Extend], choices: Sequence[Choice]) -> list[Picked]:
        """A step with rows of any number and kind."""
        plan = Plan.of(extends, self.config.page_size, self.table.device)
        pieces = self._pieces([extends[i] for i in plan.order])
        spliced = splice_features(
            *pieces, plan.page_table, self.config.page_size, dtype=self.table.dtype
        )
        batch = plan.place(self.cache, spliced.slots)
        hidden = self._hidden(spliced.embeds, spliced.positions, batch)[plan.due]
        parts = [slice(first, first + PICKED_ROWS) for first in range(0, len(choices), PICKED_ROWS)]
        return [
            one
            for part in parts
            for one in pick(logits_of(self.head, hidden[part]), choices[part], self._masks)
        ]

    def _logits(self, tokens: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """Float32 logits ``[b, vocabulary]`` of tokens ``[b]``."""
        embeds = nn.functional.embedding(tokens, self.table)
        return logits_of(self.head, self._hidden(embeds, positions.expand(3, -1), batch))

    def _hidden(self, embeds: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """Hidden states ``[n, d]`` of ``embeds [n, d]`` at ``positions [3, n]``, after the norm."""
        return self.decoder(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            use_cache=False,
            retrv_batch=batch,
        ).last_hidden_state[0]

    def _pieces(self, extends: Sequence[Extend]) -> tuple[list[Tensor], list[Span]]:
        """Tables and spans of the rows to compute; the first table is that of embeddings."""
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
        # More tables than the op accepts: the last are concatenated.
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
        if (places := self._addresses()) != self._places:  # captured graphs read the old places
            self._places = places
            self.steps.clear()

    def warm(self) -> None:
        """See :meth:`Runner.warm`: compiles splice_features for each number of tables."""
        table = self.table.new_zeros(1, self.table.shape[1])
        pages = torch.full((1, 1), self.pages, device=table.device)
        for count in (1, 2, 4, 8, STORES):
            spans = [Span(store, 0, 1, 0, 0, 0, 0, 0) for store in range(count)]
            splice_features([table] * count, spans, pages, self.config.page_size, dtype=table.dtype)

    def reset(self) -> None:
        """See :meth:`Runner.reset`."""
        self.steps.clear()
        self._masks = None

    def _addresses(self) -> list[int]:
        return [parameter.data_ptr() for _, parameter in self.model.named_parameters()]

    def _cache_bytes(self) -> int:
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        device = self.table.device
        if device.type == "cuda":
            torch.cuda.empty_cache()  # memory that weights left when they were laid side by side
            free = torch.cuda.mem_get_info(device)[0]
            return max(free // 2, min(free * 4 // 5, free - REST_BYTES))
        return CPU_CACHE_BYTES


def prepare_linears(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Replaces every linear layer inside a module by a :class:`PreparedLinear`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PreparedLinear(child, dtype=dtype))


def twin(module: nn.Module) -> nn.Module:
    """A copy of a module that shares its parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
