"""A built icon corpus, as its readers see it: rows of pictures, and what is known of concepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from retrv_r1.types import RetrvError

Split = Literal["train", "val", "test"]
PICTURES = "pictures.jsonl"
CONCEPTS = "concepts.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class IconRow:
    """A picture of the corpus, and a line of `pictures.jsonl`.

    Args:
        row: number of the picture: below `n_colour` a row of `pictures.npy`, from there on a row
            of `glyphs.npy`.
        img_path: path of the picture in the data set, `icons/SET/ICON.png`.
        code: concept key: words in lower case, without style words, in the singular where safe.
        name: readable name with the words of the attributes that its set names.
        icon: name in the set.
        set: prefix of the set.
        family: family of sets that one hand drew.
        styles: style words of the icon, from a closed list: `filled`, `outline`, `duotone` …
        colour: whether the picture has colours of its own.
        split: the hardest of `hand`, `concept` and copies: test, then val, then train.
        why: what keeps the picture from training: `hands`, `concepts`, `copies`; empty for train.
        hand_split: split of the family.
        concept_split: split of the concept, whoever drew it.
        group: category of the icon in its set, or empty.
        skin, gender: attributes of people, as words; empty where the name has none.
        size: pixel size that the name gives (`16`, `24` …); 0 where it gives none.
    """

    row: int
    img_path: str
    code: str
    name: str
    icon: str
    set: str
    family: str
    styles: tuple[str, ...]
    colour: bool
    split: Split
    why: tuple[str, ...]
    hand_split: Split
    concept_split: Split
    group: str = ""
    skin: str = ""
    gender: str = ""
    size: int = 0

    def line(self) -> dict[str, Any]:
        """This row as an object of `pictures.jsonl`."""
        return asdict(self)

    @classmethod
    def read(cls, line: str) -> IconRow:
        """The row that a line holds."""
        values = json.loads(line)
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        known["styles"], known["why"] = tuple(known["styles"]), tuple(known["why"])
        return cls(**known)


@dataclass(frozen=True)
class IconCorpus:
    """All pictures of a corpus and its concepts.

    Args:
        rows: pictures in the order of the store; `rows[i].row == i`.
        aliases: other names that sets give to a concept, by concept key, as concept keys; a
            name whose concept is held out is only with concepts of the same split.
        categories: categories of a concept in the sets that have them, most frequent first.
        splits: split of each concept that is held out; others are `train`.
        families: split of each family that is held out; others are `train`.
        manifest: contents of `manifest.json`.
    """

    rows: tuple[IconRow, ...]
    aliases: Mapping[str, tuple[str, ...]]
    categories: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, Split]
    families: Mapping[str, Split]
    manifest: Mapping[str, Any]


def load_corpus(out: Path, manifest_name: str = MANIFEST) -> IconCorpus:
    """Reads a built corpus.

    Args:
        manifest_name: name of the manifest; another while the corpus is being built.

    Raises:
        RetrvError: `out` holds no icon corpus, or an unfinished one.
    """
    try:
        manifest = json.loads((out / manifest_name).read_text(encoding="utf-8"))
        concepts = json.loads((out / CONCEPTS).read_text(encoding="utf-8"))
        with (out / PICTURES).open(encoding="utf-8") as lines:
            rows = tuple(IconRow.read(line) for line in lines)
    except FileNotFoundError as error:
        message = f"{out} lacks {Path(error.filename).name}: `retrv-r1 data icons {out}` builds it"
        raise RetrvError(message) from error
    return IconCorpus(
        rows=rows,
        aliases={code: tuple(names) for code, names in concepts["aliases"].items()},
        categories={code: tuple(names) for code, names in concepts["categories"].items()},
        splits=concepts["splits"],
        families=concepts["families"],
        manifest=manifest,
    )
