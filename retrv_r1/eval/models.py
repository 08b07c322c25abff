"""The two stages of a checkpoint, loaded when they are first used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from retrv_engine import EngineConfig
from retrv_r1.eval.outcomes import file_hash
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.model.first_stage import FOLDER, MAX_TEXT, FirstStage, local_checkpoint
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import CheckpointError

_INPUT_FILES = ("config.json", "preprocessor_config.json", "tokenizer*", "vocab.json", "merges.txt")
_MODEL_FILES = (*_INPUT_FILES, "*.safetensors", "*.safetensors.index.json")


class Models:
    """The two stages of a checkpoint, each loaded when first used.

    Args:
        name: ``"tiny"``, a directory, or a hub id.
    Raises:
        CheckpointError: there is no such checkpoint, or it has no first stage and the settings
            name no candidates.
    """

    def __init__(self, name: str | Path, settings: EvalSettings) -> None:
        self.name, self.settings = str(name), settings
        own = settings.candidates is None
        self.folder = local_checkpoint(name)
        if own and not (self.folder / FOLDER / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} has no first stage, which evaluation needs: train one with "
                f"`retrv-r1 train embed` and copy its result to {FOLDER}/ in that folder, or give "
                "the lists of another with --candidates"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, configuration, tokenizer and picture preprocessing."""
        return self._hash(_MODEL_FILES)

    @cached_property
    def first_stage_fingerprint(self) -> str:
        """Hash of what decides the first stage's vectors; the reranker's weights are not in it."""
        return self._hash(_INPUT_FILES)

    @cached_property
    def reads_instructions(self) -> bool:
        """Whether the first stage was trained to embed queries behind their instruction."""
        return bool(self._first_stage_config.get("reads_instructions", False))

    @cached_property
    def max_text(self) -> int:
        """Tokens to which the first stage cuts a text."""
        return int(self._first_stage_config.get("max_text", MAX_TEXT))

    @cached_property
    def _first_stage_config(self) -> Mapping[str, Any]:
        path = self.folder / FOLDER / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _hash(self, names: Sequence[str]) -> str:
        """Hash of the first stage's files, and of those of the reranker with such names."""
        paths = {path for name in names for path in self.folder.glob(name)}
        paths |= {path for name in _MODEL_FILES for path in (self.folder / FOLDER).glob(name)}
        return file_hash(self.folder, sorted(paths))

    @cached_property
    def reranker(self) -> Reranker:
        settings = self.settings
        config = EngineConfig(max_sequences=settings.batch_size, weights=settings.weights)
        reranker = Reranker.from_pretrained(
            self.folder,
            device=settings.device,
            dtype=settings.dtype,
            window=settings.window,
            earlier_windows=settings.earlier_windows,
            config=config,
        )
        if settings.int8_keys:
            reranker.model.icm.int8_keys = True
        return reranker

    @cached_property
    def first_stage(self) -> FirstStage:
        return FirstStage.from_pretrained(self.folder / FOLDER, device=self.settings.device)
