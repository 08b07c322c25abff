"""Cells whose query is text: find a picture, a text, or a picture with its name."""

from __future__ import annotations

from retrv_r1.data.pictographs.catalog import spread
from retrv_r1.data.pictographs.draft import Draft, Picker

KEYWORD_SHARE = 0.35
GLOSS_SHARE = 0.2


def text_to_image(picker: Picker, count: int) -> list[Draft]:
    """Name or keywords → picture."""
    catalog, concepts = picker.catalog, picker.catalog.concepts
    drafts = []
    asked = spread(
        picker.keyword_queries, lambda q: q[1][0], int(count * KEYWORD_SHARE), picker.rng
    )
    for words, codes in asked:
        positives = picker.pictures(codes)
        target = codes[0]
        negatives = picker.negatives(target, picker.picture_of(), positives, codes)
        details = {"keywords": list(words), "targets": codes}
        text = ", ".join(words)
        drafts.append(Draft(text, None, target, "keywords", positives, negatives, details))
    for code in spread(picker.scene.targets, catalog.base, count - len(drafts), picker.rng):
        positives = picker.pictures([code])
        negatives = picker.negatives(code, picker.picture_of(), positives)
        drafts.append(Draft(concepts[code].name, None, code, "name", positives, negatives))
    return drafts


def _translations(picker: Picker) -> list[tuple[str, str]]:
    """(code, language) pairs that this scene may ask for."""
    catalog, held = picker.catalog, picker.catalog.splits.translations
    pairs = [(code, lang) for code in picker.scene.targets for lang in catalog.languages(code)]
    name = picker.scene.name
    if name in ("val", "test"):  # every known concept, drawn in this style or not
        return sorted(
            pair for pair, side in held.items() if side == name and catalog.name_in(*pair)
        )
    return [pair for pair in pairs if pair not in held]


def text_to_text(picker: Picker, count: int) -> list[Draft]:
    """Foreign name → English name; name or keywords → gloss if WordNet is installed."""
    catalog = picker.catalog
    drafts = _glosses(picker, int(count * GLOSS_SHARE))
    pairs = spread(
        _translations(picker), lambda p: catalog.base(p[0]), count - len(drafts), picker.rng
    )
    for code, language in pairs:
        text = catalog.name_in(code, language)
        sides = {catalog.side(code), "known"}
        alike = [c for c in catalog.codes_named(text, language) if catalog.side(c) in sides]
        positives = [picker.name_of(c) for c in dict.fromkeys([code, *alike])]
        negatives = picker.negatives(code, picker.name_of, positives)
        asked_in = {"language": language}
        drafts.append(Draft(text, None, code, "foreign", positives, negatives, asked_in))
    return drafts


def _glosses(picker: Picker, count: int) -> list[Draft]:
    """Queries for glosses: by keywords in the style evaluations, by name elsewhere."""
    catalog, scene = picker.catalog, picker.scene
    codes = [c for c in scene.targets if c in catalog.glosses]
    drafts = []
    by_keywords = {c[0]: words for words, c in picker.keyword_queries if len(c) == 1}
    for code in spread(codes, catalog.base, count, picker.rng):
        asks: list[tuple[str, str]] = []
        if scene.name not in ("val", "test"):
            asks.append(("name", catalog.concepts[code].name))
        elif code in by_keywords:
            asks.append(("keywords", ", ".join(by_keywords[code])))
        positives = [catalog.candidates.text(catalog.glosses[code], code, "gloss")]

        def gloss(other: str) -> str | None:
            text = catalog.glosses.get(other)
            return catalog.candidates.text(text, other, "gloss") if text else None

        negatives = picker.negatives(code, gloss, positives)
        for kind, text in asks:
            details = {"answer": "gloss"}
            drafts.append(Draft(text, None, code, kind, positives, negatives, details))
    return drafts


def text_to_both(picker: Picker, count: int) -> list[Draft]:
    """Foreign name or keywords → picture with its English name."""
    catalog, kind = picker.catalog, "picture+name"
    drafts = []
    asked = [q for q in picker.keyword_queries if len(q[1]) <= 3]
    for words, codes in spread(asked, lambda q: q[1][0], int(count * KEYWORD_SHARE), picker.rng):
        positives = [did for c in codes for did in picker.captioned(c, kind)]
        negatives = picker.negatives(codes[0], picker.captioned_of(kind), positives, codes)
        details = {"keywords": list(words), "targets": codes}
        text = ", ".join(words)
        drafts.append(Draft(text, None, codes[0], "keywords", positives, negatives, details))
    held = catalog.splits.translations
    pairs = [
        (code, lang)
        for code in picker.scene.targets
        for lang in catalog.languages(code)
        if (code, lang) not in held
    ]
    for code, language in spread(
        pairs, lambda p: catalog.base(p[0]), count - len(drafts), picker.rng
    ):
        text = catalog.name_in(code, language)
        alike = [c for c in catalog.codes_named(text, language) if c in picker.pool and c != code]
        positives = [did for c in (code, *alike) for did in picker.captioned(c, kind)]
        negatives = picker.negatives(code, picker.captioned_of(kind), positives, alike)
        asked_in = {"language": language}
        drafts.append(Draft(text, None, code, "foreign", positives, negatives, asked_in))
    return drafts
