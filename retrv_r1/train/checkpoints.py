"""Which checkpoint a run resumes from."""

from __future__ import annotations

import json
from pathlib import Path

STATE = "trainer_state.json"
"""What the Trainer writes last."""


def newest_checkpoint(out: Path) -> tuple[Path | None, int]:
    """The newest complete checkpoint in a folder, and its step; None and 0 if there is none.

    A run that is killed, or finds the disk full, while it writes a checkpoint leaves a part of one.
    """
    found = [(int(path.name.rsplit("-", 1)[1]), path) for path in out.glob("checkpoint-*[0-9]")]
    for step, path in sorted(found, reverse=True):
        if _complete(path / STATE):
            return path, step
    return None, 0


def _complete(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
