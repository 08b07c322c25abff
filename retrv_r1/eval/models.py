"""The two stages of a checkpoint, loaded when they are first used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from retrv_engine import EngineConfig
from retrv_r1.eval.outcomes import file_hash
from retrv_r1.eval.settings import EvalSettings
from retrv_r1.model.first_stage import FOLDER, FirstStage, local_checkpoint
from retrv_r1.rerank.reranker import Reranker
from retrv_r1.types import CheckpointError

_MODEL_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "preprocessor_config.json"),
    *("tokenizer*", "vocab.json", "merges.txt"),
)


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
        self.folder = local_checkpoint(name, first_stage=own)
        if own and not (self.folder / FOLDER / "config.json").is_file():
            raise CheckpointError(
                f"{self.folder} has no first stage, which evaluation needs: train one with "
                f"`retrv-r1 train embed` and copy its result to {FOLDER}/ in that folder, or give "
                "the lists of another with --candidates"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, configuration, tokenizer and picture preprocessing."""
        folders = (self.folder, self.folder / FOLDER)
        paths = {p for folder in folders for name in _MODEL_FILES for p in folder.glob(name)}
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
