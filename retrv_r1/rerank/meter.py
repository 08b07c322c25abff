"""Counts what a ranking costs while it runs."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from retrv_engine import Output
from retrv_engine.request import Spent
from retrv_r1.images import source_of
from retrv_r1.rerank.feature_encoder import Features, Origin
from retrv_r1.rerank.requests import Prepared
from retrv_r1.types import Bill, Item, TokenCounts


class Meter:
    """The bill of one ranking, open until its end; one thread at a time writes to it.

    Args:
        items: the query, then the candidates.
    Attributes:
        started: time of the start, of ``perf_counter``.
        seconds: seconds by phase so far.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.started = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._rows: Counter[str] = Counter()
        self._prompts = self._inspections = 0
        self._found: dict[str, Origin] = {}
        sizes = [_picture_bytes(item) for item in items if item.image is not None]
        self._pictures, self._picture_bytes = len(sizes), sum(sizes)

    def add(self, phase: str, seconds: float) -> None:
        """Adds seconds to a phase."""
        self.seconds[phase] += seconds

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the time that the context takes to a phase."""
        began = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - began)

    def features(self, features: Sequence[Features]) -> None:
        """Counts where features were found; what the model made first counts as made."""
        for one in features:
            self._found.setdefault(one.key, one.origin)

    def window(self, tokens: TokenCounts, outputs: Sequence[Output]) -> None:
        """Counts prompts that ran together; of their times, the longest in each phase counts."""
        self._rows.update(vars(tokens))
        self._prompts += len(outputs)
        self._inspections += sum(len(output.inspected) for output in outputs)
        for phase in {phase for output in outputs for phase in output.timings}:
            self.add(phase, max(output.timings.get(phase, 0.0) for output in outputs))

    def cut(self, prepared: Prepared, spent: Spent) -> None:
        """Counts a prompt whose reasoning was cut."""
        tokens = TokenCounts(
            prompt=prepared.prompt_rows,
            candidates=prepared.candidate_rows,
            inspected=spent.inspected_rows,
            generated=spent.tokens,
            cached=spent.cached_rows,
            pictures=prepared.picture_rows + prepared.pictures_of(spent.inspected),
        )
        self._rows.update(vars(tokens))
        self._prompts += 1
        self._inspections += len(spent.inspected)
        for phase, seconds in spent.timings.items():
            self.add(phase, seconds)

    def bill(self) -> Bill:
        """The bill so far."""
        origins = Counter(self._found.values())
        total = time.perf_counter() - self.started
        return Bill(
            seconds={**self.seconds, "total": total},
            tokens=TokenCounts(**self._rows),
            prompts=self._prompts,
            inspections=self._inspections,
            remembered=origins["memory"],
            stored=origins["disk"],
            encoded=origins["model"],
            pictures=self._pictures,
            picture_bytes=self._picture_bytes,
        )


def _picture_bytes(item: Item) -> int:
    """Bytes of a picture as a file, or of its pixels where it came decoded."""
    picture = item.image
    if isinstance(picture, bytes):
        return len(picture)
    if (file := source_of(picture)) is not None:
        return file.size
    if isinstance(picture, Image.Image):
        return picture.width * picture.height * len(picture.getbands())
    assert isinstance(picture, str | Path)
    try:
        return os.path.getsize(picture)
    except OSError:  # reading it will raise, and say so
        return 0
