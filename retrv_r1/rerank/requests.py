"""Engine requests from encoded items: prompts in pieces, with the keys of prefix caches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retrv_engine import FeatureRows, Piece, Request, Sampling
from retrv_r1.model.calibration import ModeCalibration
from retrv_r1.model.icm import Contents
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.prior import resemblance
from retrv_r1.model.processing import RetrvR1Processor
from retrv_r1.model.prompts import Prompt, PromptBuilder, Slot
from retrv_r1.rerank.feature_encoder import FeatureEncoder, Features, pack_features
from retrv_r1.types import Item


@dataclass(frozen=True)
class ItemFeatures:
    """An item and its features."""

    item: Item
    features: Features


@dataclass(frozen=True)
class Prepared:
    """A request, and how many rows its prompt and what is in it take.

    Args:
        prompt_rows, candidate_rows, picture_rows: rows of the prompt; of them, those of candidates
            and those of pictures.
        pictures: rows of each candidate's picture, which an inspection reads.
        resemblance: what content tokens say of the candidates, ``[k, 2]``
            (``retrv_r1.model.prior``); None for a prompt without them.
    """

    request: Request
    prompt_rows: int
    candidate_rows: int
    picture_rows: int
    pictures: Sequence[int] = ()
    resemblance: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls,
        request: Request,
        prompt: Prompt,
        pictures: Sequence[int] = (),
        resemblance: Tensor | None = None,
    ) -> Prepared:
        """A request with the row counts of its prompt."""
        shown = sum(slot.length for slot in prompt.slots if slot.kind == "picture")
        candidates = sum(map(len, prompt.candidates))
        return cls(request, len(prompt), candidates, shown, pictures, resemblance)

    def weighed(self, calibration: ModeCalibration) -> Prepared:
        """The same with the biases that a calibration gives to its labels.

        Raises:
            FloatingPointError: content tokens are NaN or infinite.
        """
        bias: list[float] = []
        if self.resemblance is not None and (calibration.likeness or calibration.recall):
            bias = calibration.bias(self.resemblance).tolist()
            if not all(map(math.isfinite, bias)):
                raise FloatingPointError(
                    "the model's content tokens are NaN or infinite: load the model in bfloat16 or "
                    "float32, or other weights"
                )
        if not bias and not self.request.label_bias:
            return self
        return replace(self, request=replace(self.request, label_bias=bias))

    def pictures_of(self, inspected: Sequence[int]) -> int:
        """Rows of the pictures of inspected candidates."""
        return sum(self.pictures[number] for number in inspected)


@dataclass(frozen=True)
class _InspectionName:
    """Name under which an engine asks for a candidate's full rows; equal content, equal name."""

    key: str
    item: Item = field(compare=False)


class RequestBuilder:
    """Builds a model's requests, and loads the candidates that are inspected.

    As the engine's feature source it takes inspected candidates from the encoder's cache, or
    encodes them again, all those of a step together.
    """

    def __init__(
        self,
        model: RetrvR1ForConditionalGeneration,
        processor: RetrvR1Processor,
        encoder: FeatureEncoder,
    ) -> None:
        self.model, self.processor, self.encoder = model, processor, encoder
        self.prompts = PromptBuilder(processor.tokenizer, model.config.prompts)
        tokens = processor.tokens
        added = processor.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special}
        own = {*tokens.labels, tokens.inspect_start, tokens.inspect_end, tokens.think_end}
        # Tokens that structure a prompt must not occur in a chain of thought.
        self._structure = sorted(special - own)

    def load(self, names: Sequence[Any]) -> list[list[Piece]]:
        """Full rows of candidates for inspections (the engines' protocol)."""
        found = self.encoder.encode([name.item for name in names])
        return [
            self.prompts.full_item(Prompt(), [one.item], 0).pieces(partial(_picture, one))
            for one in found
        ]

    def listwise(
        self,
        query: ItemFeatures,
        candidates: Sequence[ItemFeatures],
        *,
        reason: bool,
        full_tokens: bool,
        instruction: str | None,
        sampling: Sampling,
    ) -> Prepared:
        """One prompt over all candidates, each as two tokens or at full length."""
        features, count = [one.features for one in (query, *candidates)], len(candidates)
        prompt = self.prompts.listwise(
            [one.item for one in features],
            0,
            range(1, count + 1),
            instruction=instruction,
            full_tokens=full_tokens,
        )
        compressed, contents = self._compressed(features, relations=not full_tokens)
        labels = self.processor.tokens.labels
        names = [_InspectionName(one.features.key, one.item) for one in candidates]
        request = Request(
            prompt=prompt.pieces(self._rows(features, compressed)),
            labels=labels[:count],
            inspections=names if reason else (),
            source=self if reason else None,
            reason=reason,
            sampling=sampling,
            banned=(*self._structure, *labels[count:]),
            none_label=self.processor.tokens.none,
        )
        return Prepared.of(
            request,
            prompt,
            pictures=[one.features.item.picture_rows for one in candidates],
            resemblance=None if full_tokens else resemblance(contents),
        )

    def pointwise(
        self, query: ItemFeatures, candidates: Sequence[ItemFeatures], *, instruction: str | None
    ) -> list[Prepared]:
        """A prompt for each candidate, at full length; its labels are "yes" and "no"."""
        features = [one.features for one in (query, *candidates)]
        items, made = [one.item for one in features], []
        compressed, _ = self._compressed(features, relations=False)
        rows_of = self._rows(features, compressed)
        for number in range(1, len(items)):
            prompt = self.prompts.pointwise(items, 0, number, instruction=instruction)
            request = Request(prompt.pieces(rows_of), self.prompts.verdicts, reason=False)
            made.append(Prepared.of(request, prompt))
        return made

    def resemblance(self, features: Sequence[Features]) -> Tensor:
        """What the content tokens of a query and its candidates say of these, ``[k, 2]``."""
        return resemblance(self.model.icm.contents(*pack_features(features)))

    def _compressed(
        self, features: Sequence[Features], *, relations: bool
    ) -> tuple[Tensor, Contents]:
        """Content tokens of a query and its candidates, then the candidates' relation tokens.

        Without ``relations`` only the query's content token; such prompts read candidates in full.

        Returns:
            The tokens as rows, and what is known of the content tokens among them.
        """
        icm = self.model.icm
        rows, offsets = pack_features(features if relations else features[:1])
        contents = icm.contents(rows, offsets)
        if not relations:
            return icm.with_memory(contents), contents
        candidates = torch.arange(1, len(features))
        tokens = icm.tokens(rows, offsets, candidates, torch.zeros_like(candidates), contents)
        return torch.cat(tokens).to(rows.dtype), contents

    def _rows(
        self, features: Sequence[Features], compressed: Tensor
    ) -> Callable[[Slot], FeatureRows]:
        """A function that gives the rows of slots, from what :meth:`_compressed` gives."""
        icm = self.model.icm

        def rows_of(slot: Slot) -> FeatureRows:
            if slot.kind == "picture":
                return _picture(features[slot.number], slot)
            if slot.kind == "content":
                key = _key("content", *_identity(features[slot.number]))
                return FeatureRows(compressed, slot.number, 1, key)
            pair = (features[slot.number + 1], features[0])
            key = _key("relation", icm.int8_keys, *map(_identity, pair))
            return FeatureRows(compressed, len(features) + slot.number, 1, key)

        return rows_of


def _picture(features: Features, slot: Slot) -> FeatureRows:
    """Rows of an item's picture, the first of its features."""
    key = _key("full", *_identity(features))
    return FeatureRows(features.rows, 0, slot.length, key, slot.width)


def _identity(features: Features) -> tuple[int, str]:
    """Version of the weights and hash of the content; equal rows have equal identities."""
    return features.version, features.key


def _key(*parts: object) -> int:
    """Hash of 63 bits."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
