"""Instructions of the eight cells and the wordings of questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One task shape of M-BEIR.

    Args:
        key: short name, the end of the dataset name.
        task: M-BEIR task id.
        number: added to the first dataset id of an evaluation family.
        prompts: four instructions.
    """

    key: str
    task: int
    number: int
    query_modality: str
    cand_modality: str
    prompts: tuple[str, str, str, str]


CELLS: tuple[Cell, ...] = (
    Cell(
        "t2i",
        0,
        0,
        "text",
        "image",
        (
            "Find the pictograph that shows this.",
            "Which picture does this text name?",
            "Retrieve the picture that fits these words.",
            "Show a drawing of this.",
        ),
    ),
    Cell(
        "t2t",
        1,
        1,
        "text",
        "text",
        (
            "Find the English text that means the same.",
            "What is this called or explained in English?",
            "Retrieve the English words for this.",
            "Which text says the same in English?",
        ),
    ),
    Cell(
        "t2it",
        2,
        2,
        "text",
        "image,text",
        (
            "Find the picture with its English name for this.",
            "Which picture and name fit these words?",
            "Retrieve the named picture that this describes.",
            "Show a drawing of this together with its name.",
        ),
    ),
    Cell(
        "i2t",
        3,
        3,
        "image",
        "text",
        (
            "Find the English name of this picture.",
            "What does this picture show, in English?",
            "Retrieve the English name of this drawing.",
            "What is this pictograph called in English?",
        ),
    ),
    Cell(
        "i2i",
        4,
        4,
        "image",
        "image",
        (
            "Find the same thing drawn in another style.",
            "Which picture shows the same thing?",
            "Retrieve another drawing of this.",
            "Show this in a different style.",
        ),
    ),
    Cell(
        "it2t",
        6,
        5,
        "image,text",
        "text",
        (
            "Answer the question about the picture.",
            "Find the text that answers this question.",
            "Retrieve the word that is asked for.",
            "Which text is the answer?",
        ),
    ),
    Cell(
        "it2i",
        7,
        6,
        "image,text",
        "image",
        (
            "Find the picture after this change.",
            "Which picture shows this with the change?",
            "Retrieve the drawing changed as the text says.",
            "Show the picture with this change made.",
        ),
    ),
    Cell(
        "it2it",
        8,
        7,
        "image,text",
        "image,text",
        (
            "Find the named picture after this change.",
            "Which picture and name fit the changed picture?",
            "Retrieve the changed drawing with its name.",
            "Show the change together with a name.",
        ),
    ),
)
BY_KEY: Mapping[str, Cell] = {cell.key: cell for cell in CELLS}
# First dataset id of each family of evaluations, and what its dataset names start with.
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
    """Family of a scene: train, val and test are the style evaluation."""
    return scene if scene in FAMILIES else "style"


def dataset(cell: Cell, scene: str) -> tuple[int, str]:
    """Dataset id and name of a cell in a scene."""
    first, prefix = FAMILIES[family(scene)]
    return first + cell.number, f"{prefix}_{cell.key}"
