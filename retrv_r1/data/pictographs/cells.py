"""The queries and the pool of each cell of a scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from retrv_r1.data.pictographs.catalog import Catalog
from retrv_r1.data.pictographs.cells_image import (
    both_to_both,
    both_to_image,
    both_to_text,
    image_to_image,
    image_to_text,
)
from retrv_r1.data.pictographs.cells_text import text_to_both, text_to_image, text_to_text
from retrv_r1.data.pictographs.changes import Change
from retrv_r1.data.pictographs.draft import Draft, Picker
from retrv_r1.data.pictographs.scenes import Scene

# Queries of each cell in training; an evaluation has the same number in every cell.
TRAIN_QUERIES: Mapping[str, int] = {
    "t2i": 4500,
    "t2t": 5000,
    "t2it": 4000,
    "i2t": 5000,
    "i2i": 4000,
    "it2t": 4000,
    "it2i": 5000,
    "it2it": 4000,
}
EVALUATION_QUERIES: Mapping[str, int] = {"val": 100, "test": 250, "composition": 100, "unseen": 100}


@dataclass(frozen=True)
class CellData:
    """Queries of one cell in one scene, and the dids of its local pool."""

    key: str
    scene: Scene
    drafts: Sequence[Draft]
    pool: Sequence[str]


def build_cell(catalog: Catalog, scene: Scene, key: str, changes: Sequence[Change]) -> CellData:
    """Queries and pool of one cell; they depend on the catalog's seed only."""
    picker = Picker(catalog, scene, catalog.rng("cell", scene.name, key))
    count = TRAIN_QUERIES[key] if scene.training else EVALUATION_QUERIES[scene.name]
    makers: Mapping[str, Callable[[Picker, int], list[Draft]]] = {
        "t2i": text_to_image,
        "t2t": text_to_text,
        "t2it": text_to_both,
        "i2t": image_to_text,
        "i2i": image_to_image,
        "it2t": both_to_text,
        "it2i": lambda d, n: both_to_image(d, n, changes),
        "it2it": lambda d, n: both_to_both(d, n, changes),
    }
    drafts = makers[key](picker, count)
    used = dict.fromkeys(did for d in drafts for did in (*d.positives, *d.negatives))
    whole = () if scene.training else whole_pool(picker, key)
    return CellData(key, scene, drafts, list(dict.fromkeys([*whole, *used])))


def whole_pool(picker: Picker, key: str) -> list[str]:
    """All candidates of an evaluation cell, whether a query asks for them or not."""
    catalog, scene = picker.catalog, picker.scene
    if key in ("t2i", "i2i", "it2i"):
        return picker.pictures(scene.pool)
    if key in ("t2it", "it2it"):
        kind = "picture+name" if key == "t2it" else "picture+role"
        return [did for code in scene.pool for did in picker.captioned(code, kind)]
    names = scene.pool
    if key == "i2t":
        return [picker.name_of(code) for code in names]
    if key == "t2t":
        plain = [c for c in names if scene.name == "composition" or not catalog.concepts[c].is_flag]
        if scene.name in ("val", "test"):  # every known toneless name, drawn or not
            plain = [
                c.code
                for c in catalog.concepts.values()
                if not c.tones and not c.is_flag and catalog.side(c.code) == "known"
            ]
        glosses = [c for c in plain if c in catalog.glosses]
        return [picker.name_of(c) for c in plain] + [
            catalog.candidates.text(catalog.glosses[c], c, "gloss") for c in glosses
        ]
    held = catalog.splits.translations
    return [
        catalog.candidates.text(catalog.name_in(code, lang), code, "foreign", lang)
        for code in names
        for lang in catalog.languages(code)
        if (code, lang) not in held
        and (scene.name == "composition" or not catalog.concepts[code].tones)
    ]
