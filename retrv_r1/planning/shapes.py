"""Shapes of Qwen2.5-VL models and of the compressor, with their parameters and operations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextShape:
    """A language model of the Qwen2.5 family; fields as in its config."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    head_width: int = 128

    @property
    def multiplied(self) -> int:
        """Weights that a row is multiplied with, without embeddings and head."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters: those above, biases of queries, keys and values, norms, embeddings."""
        biases = self.head_width * (self.heads + 2 * self.kv_heads)
        rest = self.layers * (biases + 2 * self.hidden) + self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.multiplied + rest + tables

    @property
    def head_weights(self) -> int:
        """Weights of the head that makes logits."""
        return self.vocabulary * self.hidden

    def cache_bytes(self, rows: int, size: int = 2) -> int:
        """Keys and values of rows, in numbers of ``size`` bytes."""
        return 2 * self.layers * self.kv_heads * self.head_width * size * rows

    def flops(self, rows: int, before: int = 0, logits: int = 1) -> float:
        """Operations of a forward pass.

        Args:
            rows: rows that are computed.
            before: rows in the cache, to which they attend as well.
            logits: rows whose logits are computed.
        """
        pairs = rows * before + rows * (rows + 1) / 2
        attention = 4 * self.layers * self.heads * self.head_width * pairs
        return 2 * self.multiplied * rows + attention + 2 * self.head_weights * logits


@dataclass(frozen=True)
class TowerShape:
    """The vision tower of Qwen2.5-VL; a *row* is what remains of a merge of 2 by 2 patches."""

    out: int
    depth: int = 32
    hidden: int = 1280
    intermediate: int = 3420
    patch: int = 3 * 2 * 14 * 14
    merged: int = 4
    full_layers: int = 4
    window: int = 64

    @property
    def multiplied(self) -> int:
        """Weights that a patch is multiplied with in the layers."""
        return self.depth * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def merger(self) -> int:
        """Weights that a merge of patches is multiplied with."""
        wide = self.merged * self.hidden
        return wide * wide + wide * self.out

    @property
    def parameters(self) -> int:
        """All parameters."""
        biases = 4 * self.hidden + 2 * self.intermediate + self.hidden
        layers = self.multiplied + self.depth * (biases + 2 * self.hidden)
        ends = self.hidden * self.patch + self.hidden + self.merged * self.hidden + self.out
        return layers + self.merger + ends

    def flops(self, rows: int) -> float:
        """Operations for a picture of merged rows."""
        patches = self.merged * rows
        seen = self.full_layers * patches
        seen += (self.depth - self.full_layers) * min(self.window, patches)
        attention = 4 * self.hidden * patches * seen
        layers = 2 * patches * (self.multiplied + self.patch * self.hidden)
        return layers + attention + 2 * rows * self.merger


@dataclass(frozen=True)
class CompressorShape:
    """The compressor in its folded form (``retrv_r1/model/icm.py``), with default options."""

    hidden: int
    heads: int = 4

    @property
    def relate(self) -> int:
        """Width of relation keys."""
        return self.hidden // 4

    @property
    def parameters(self) -> int:
        """All parameters: two attentions, the query embedding, four norms."""
        return 6 * self.hidden**2 + 2 * self.hidden * self.relate + 5 * self.hidden

    def flops(self, rows: int, query: int, candidates: int, stored: bool = False) -> float:
        """Operations for candidates of ``rows`` rows each and a query of ``query`` rows.

        Args:
            stored: content tokens and relation keys are there already.
        """
        relation = 2 * rows * query * (self.relate + 2 * self.heads) + 4 * self.hidden**2
        values = 2 * query * (self.hidden * self.relate + 2 * self.hidden**2)
        if stored:
            return candidates * relation + values
        pooled = 4 * rows * self.hidden * self.heads + 4 * self.hidden**2
        keys = 2 * rows * self.hidden * self.relate
        return candidates * (pooled + keys + relation) + values


@dataclass(frozen=True)
class ModelShape:
    """A backbone with a compressor."""

    name: str
    text: TextShape
    tower: TowerShape

    @property
    def compressor(self) -> CompressorShape:
        """The compressor, as wide as the language model."""
        return CompressorShape(self.text.hidden)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.text.parameters + self.tower.parameters + self.compressor.parameters


MODELS = {
    "3b": ModelShape(
        "Qwen2.5-VL-3B", TextShape(2048, 36, 16, 2, 11008, 151936, True), TowerShape(2048)
    ),
    "7b": ModelShape(
        "Qwen2.5-VL-7B", TextShape(3584, 28, 28, 4, 18944, 152064, False), TowerShape(3584)
    ),
}
