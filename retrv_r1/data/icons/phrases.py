"""Data sets of the icon cells, their numbers, and the instructions of their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrv_r1.data.mbeir_lines import TASKS

PICTURES_ID, TEXTS_ID = 200, 201
"""First part of the dids of pictures and of texts."""
PARTS: tuple[str, ...] = ("hands", "concepts", "terms", "detail")
"""Parts of the test split."""
HANDS: tuple[str, ...] = ("lucide", "carbon", "emojione", "flat-color-icons")
"""Sets of hands that training never sees; each is a pool of its own."""
DETAIL_CELLS: Mapping[str, tuple[str, ...]] = {
    "skin": ("skin",),
    "fill": ("fill",),
    "direction": ("direction", "count"),
    "badge": ("badge",),
    "frame": ("frame",),
    "number": ("clock", "dice", "card", "level", "character"),
}
"""Kinds of details that each cell of the detail split asks for."""


@dataclass(frozen=True)
class Dataset:
    """A data set: the queries of one task in one part.

    Args:
        name: name in file names.
        number: first part of its qids.
        task: M-BEIR task id.
        prompts: wordings of the instruction.
    """

    name: str
    number: int
    task: int
    prompts: tuple[str, ...]

    @property
    def query_modality(self) -> str:
        return TASKS[self.task][0]

    @property
    def cand_modality(self) -> str:
        return TASKS[self.task][1]


_NAMED = (
    "Find the icon that shows this.",
    "Which icon means this?",
    "Retrieve the picture that fits these words.",
    "Show an icon of this.",
)
_SEARCHED = (
    "Find the icon for these search words.",
    "Which icon fits these search terms?",
    "Retrieve the icon that a person who types this wants.",
    "Show the icon for this search.",
)
_DETAILED = (
    "Find the icon that fits exactly.",
    "Which of these icons is exactly this one?",
    "Retrieve the icon with this detail.",
    "Show the icon that fits every word.",
)
_SAME = (
    "Find the same thing drawn by another hand.",
    "Which icon shows the same thing?",
    "Retrieve another drawing of this.",
    "Show this in a different style.",
)
_NAMING = (
    "Find the name of this icon.",
    "What does this icon show?",
    "Retrieve the name of this drawing.",
    "What is this icon called?",
)
_CHANGED = (
    "Find the icon after this change.",
    "Which icon shows this with the change?",
    "Retrieve the drawing changed as the text says.",
    "Show the icon with this change made.",
)


def _datasets() -> dict[str, Dataset]:
    listed = [
        ("names_t2i", 200, 0, _NAMED),
        ("terms_t2i", 201, 0, _SEARCHED),
        ("detail_t2i", 202, 0, _DETAILED),
        ("i2i", 203, 4, _SAME),
        ("i2t", 204, 3, _NAMING),
        ("it2i", 205, 7, _CHANGED),
        *((f"hands_t2i_{s.replace('-', '_')}", 210 + n, 0, _NAMED) for n, s in enumerate(HANDS)),
        ("hands_i2i", 216, 4, _SAME),
        ("hands_i2t", 217, 3, _NAMING),
        ("hands_it2i", 218, 7, _CHANGED),
        ("concepts_t2i", 220, 0, _NAMED),
        ("concepts_i2i", 221, 4, _SAME),
        ("concepts_i2t", 222, 3, _NAMING),
        ("terms_t2i_lucide", 230, 0, _SEARCHED),
        ("terms_t2i_mixed", 231, 0, _SEARCHED),
        *((f"detail_{kind}", 240 + n, 0, _DETAILED) for n, kind in enumerate(DETAIL_CELLS)),
    ]
    return {name: Dataset(f"icons_{name}", *rest) for name, *rest in listed}  # type: ignore[arg-type]


DATASETS: Mapping[str, Dataset] = _datasets()
"""Data sets by their names without `icons_`."""
