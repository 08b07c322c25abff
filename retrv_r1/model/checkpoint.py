"""Loads checkpoints by name, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from retrv_engine.config import check_whole
from retrv_r1.model.config import RetrvR1Config
from retrv_r1.model.modeling import RetrvR1ForConditionalGeneration
from retrv_r1.model.processing import MAX_TEXT_TOKENS, RetrvR1Processor
from retrv_r1.types import CheckpointError

SHIPPED = Path(__file__).parents[1] / "checkpoints"


def resolve(name: str | Path) -> Path | str:
    """The directory of a shipped or local checkpoint; otherwise ``name`` as a hub id."""
    if not isinstance(name, str | Path):
        raise CheckpointError(f"a checkpoint is a str or a Path, not {name!r}: give its name")
    if (SHIPPED / str(name) / "config.json").is_file():
        return SHIPPED / str(name)
    path = Path(name)
    if path.exists():
        return path
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        return str(name)
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))
    raise CheckpointError(
        f"no checkpoint {str(name)!r}: give a directory, a hub id like owner/name, or one of the "
        f"shipped ones ({', '.join(shipped) or 'none in this installation'})"
    )


def _check(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: it has no config.json")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config} is damaged: {error}") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != "retrv_r1":
        raise CheckpointError(
            f"{path} holds a {model_type!r} model, not 'retrv_r1'; to start from a Qwen2.5-VL "
            "checkpoint use retrv_r1.model.from_backbone, then train it"
        )
    # Without one transformers would create a backbone of several billion random weights.
    if not isinstance(values.get("backbone_config"), dict):
        raise CheckpointError(f"{config} is damaged: it describes no backbone")


def saved_dtype(folder: Path) -> torch.dtype:
    """The dtype in the config of a checkpoint, float32 if the config names none.

    Raises:
        CheckpointError: the folder is not a checkpoint.
    """
    _check(folder)
    return RetrvR1Config.from_pretrained(folder).dtype or torch.float32


def load_checkpoint(
    name: str | Path,
    dtype: torch.dtype | None = None,
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> tuple[RetrvR1ForConditionalGeneration, RetrvR1Processor]:
    """Model and processor of a checkpoint.

    Args:
        name: name of a shipped checkpoint, directory, or hub id (which transformers downloads).
        dtype: dtype of the weights; None takes the one in the config.
        max_text_tokens: see :class:`RetrvR1Processor`.
    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of another format.
    """
    check_whole("max_text_tokens", max_text_tokens, 1)
    source = resolve(name)
    if isinstance(source, Path):
        _check(source)
    try:
        model, info = RetrvR1ForConditionalGeneration.from_pretrained(
            source, dtype=dtype or "auto", output_loading_info=True
        )
        processor = RetrvR1Processor.from_pretrained(source, model.config, max_text_tokens)
    except Exception as error:  # transformers raises almost any error for damaged files
        if isinstance(source, str) and isinstance(error, OSError):  # it could not be downloaded
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"cannot load the checkpoint {name}: no network, or no such model ({reason})"
            ) from error
        raise CheckpointError(
            f"cannot load the checkpoint {name} ({type(error).__name__}: {error}); "
            "copy or download it again"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{name} lacks {len(missing)} weights, {missing[0]} among them")
    known, embedded = len(processor.tokenizer), model.get_input_embeddings().num_embeddings
    if known > embedded:
        raise CheckpointError(
            f"the tokenizer of {name} has {known} entries and its model {embedded}: "
            "they belong to different checkpoints"
        )
    return model, processor
