"""Instructions of the eight cells, and wordings of questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrv_r1.data.mbeir_lines import TASKS


@dataclass(frozen=True)
class Shape:
    """One task shape of M-BEIR.

    Args:
        key: short name, the end of the dataset name.
        task: M-BEIR task id.
        number: offset from the first dataset id of an evaluation family.
        prompts: four wordings of the instruction.
    """

    key: str
    task: int
    number: int
    query_modality: str
    cand_modality: str
    prompts: tuple[str, str, str, str]


# Wordings of the instruction of each cell, by its key and task.
_PROMPTS: Mapping[tuple[str, int], tuple[str, str, str, str]] = {
    ("t2i", 0): (
        "Find the pictograph that shows this.",
        "Which picture does this text name?",
        "Retrieve the picture that fits these words.",
        "Show a drawing of this.",
    ),
    ("t2t", 1): (
        "Find the English text that means the same.",
        "What is this called or explained in English?",
        "Retrieve the English words for this.",
        "Which text says the same in English?",
    ),
    ("t2it", 2): (
        "Find the picture with its English name for this.",
        "Which picture and name fit these words?",
        "Retrieve the named picture that this describes.",
        "Show a drawing of this together with its name.",
    ),
    ("i2t", 3): (
        "Find the English name of this picture.",
        "What does this picture show, in English?",
        "Retrieve the English name of this drawing.",
        "What is this pictograph called in English?",
    ),
    ("i2i", 4): (
        "Find the same thing drawn in another style.",
        "Which picture shows the same thing?",
        "Retrieve another drawing of this.",
        "Show this in a different style.",
    ),
    ("it2t", 6): (
        "Answer the question about the picture.",
        "Find the text that answers this question.",
        "Retrieve the word that is asked for.",
        "Which text is the answer?",
    ),
    ("it2i", 7): (
        "Find the picture after this change.",
        "Which picture shows this with the change?",
        "Retrieve the drawing changed as the text says.",
        "Show the picture with this change made.",
    ),
    ("it2it", 8): (
        "Find the named picture after this change.",
        "Which picture and name fit the changed picture?",
        "Retrieve the changed drawing with its name.",
        "Show the change together with a name.",
    ),
}
SHAPES = tuple(
    Shape(key, task, number, *TASKS[task], prompts)
    for number, ((key, task), prompts) in enumerate(_PROMPTS.items())
)
BY_KEY: Mapping[str, Shape] = {shape.key: shape for shape in SHAPES}
# First dataset id and prefix of dataset names of each family of evaluations.
FAMILIES: Mapping[str, tuple[int, str]] = {
    "style": (100, "pictographs"),
    "composition": (110, "pictographs_composition"),
    "unseen": (120, "pictographs_unseen"),
}
QUESTIONS: tuple[str, ...] = (
    "what is it called in {}?",
    "its {} name?",
    "how do you say this in {}?",
    "the {} word for this",
)


def family(scene: str) -> str:
    """Family of a scene: `style` for train, val and test."""
    return scene if scene in FAMILIES else "style"


def dataset(shape: Shape, scene: str) -> tuple[int, str]:
    """Dataset id and name of a task shape in a scene."""
    first, prefix = FAMILIES[family(scene)]
    return first + shape.number, f"{prefix}_{shape.key}"
