"""Sizes in which pool_tokens and relate_tokens are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.suites.kernels.entries import QWEN_3B, QWEN_7B, TINY, Model

# Bytes of float32 rows above which a combination is left out.
LARGEST = 1.2e9
SWEPT = tuple(Model(f"d={d}", d, d // 4, (1, 1)) for d in (192, 768))


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call.

    Args:
        candidates: number of candidates.
        rows: rows of each candidate.
        asked: rows of the query that they relate to; None to pool only.
        norm: whether the relation rows are normed.
        plots: plots in which the trial appears.
    """

    model: Model
    candidates: int = 50
    rows: int = 256
    asked: int | None = None
    norm: bool = True
    plots: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the trial."""
        asked = "" if self.asked is None else f", {self.asked} asked"
        norm = "" if self.norm else ", no norm"
        return f"{self.model.name} {self.candidates} × {self.rows}{asked}{norm}"

    @property
    def row_width(self) -> int:
        """Columns of a candidate row: features, or relation keys."""
        return self.model.d if self.asked is None else self.model.w

    @property
    def too_large(self) -> bool:
        """Whether the rows need too much memory."""
        return 4 * self.candidates * self.rows * self.row_width > LARGEST


def all_sizes(quick: bool) -> list[Sizes]:
    """Sizes of both operations."""
    make = _quick if quick else _full
    return [*make(None), *make(64)]


def left_out(sizes: Sequence[Sizes]) -> list[str]:
    """A note for each combination that is too large."""
    return [
        f"left out: {one.name}, whose float32 rows are "
        f"{4 * one.candidates * one.rows * one.row_width / 1e9:.1f} GB"
        for one in sizes
        if one.too_large
    ]


def _quick(asked: int | None) -> Iterator[Sizes]:
    yield Sizes(TINY, rows=12, asked=asked and 12, plots=("ratios",))
    yield Sizes(QWEN_3B, asked=asked, plots=("ratios",))


def _full(asked: int | None) -> Iterator[Sizes]:
    tiny = Sizes(TINY, rows=12, asked=asked and 12)
    yield from (replace(tiny, candidates=k) for k in (10, 100))
    yield replace(tiny, plots=("ratios",))
    for k in (10, 50, 100):
        for rows in (81, 256, 1280):
            middle = k == 50 and rows == 256
            sweeps = {"K": rows == 256, "rows": k == 50, "d": middle, "ratios": middle}
            plots = tuple(name for name, there in sweeps.items() if there)
            yield Sizes(QWEN_3B, k, rows, asked, plots=plots)
    yield from (Sizes(model, asked=asked, plots=("d",)) for model in SWEPT)
    yield Sizes(QWEN_7B, asked=asked, plots=("d", "ratios"))
    yield Sizes(QWEN_7B, rows=81, asked=asked)
    yield Sizes(QWEN_7B, 100, 1280, asked)
    if asked is not None:
        yield replace(tiny, asked=8)
        for model in (QWEN_3B, QWEN_7B):
            yield Sizes(model, asked=8)
            yield Sizes(model, asked=8, norm=False)
            yield Sizes(model, asked=64, norm=False, plots=("ratios",))
        yield from (Sizes(m, asked=q) for m in (QWEN_3B, QWEN_7B) for q in (256, 1280))
