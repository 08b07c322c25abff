"""Cells whose query is text: to a picture, to a text, to a picture with its name."""

from __future__ import annotations

from retrv_r1.data.pictographs.draft import Desk, Draft
from retrv_r1.data.pictographs.world import spread

KEYWORD_SHARE = 0.35
GLOSS_SHARE = 0.2


def text_to_image(desk: Desk, count: int) -> list[Draft]:
    """Name or keywords → picture."""
    world, concepts = desk.world, desk.world.concepts
    drafts = []
    asked = spread(desk.keyword_queries(), lambda q: q[1][0], int(count * KEYWORD_SHARE), desk.rng)
    for words, codes in asked:
        positives = desk.pictures(codes)
        target = codes[0]
        negatives = desk.negatives(target, desk.picture_of(), positives, codes)
        details = {"keywords": list(words), "targets": codes}
        text = ", ".join(words)
        drafts.append(Draft(text, None, target, "keywords", positives, negatives, details))
    for code in spread(desk.scene.targets, world.base, count - len(drafts), desk.rng):
        positives = desk.pictures([code])
        negatives = desk.negatives(code, desk.picture_of(), positives)
        drafts.append(Draft(concepts[code].name, None, code, "name", positives, negatives))
    return drafts


def _translations(desk: Desk) -> list[tuple[str, str]]:
    """(code, language) that this scene may ask for."""
    world, held = desk.world, desk.world.splits.translations
    pairs = [(code, lang) for code in desk.scene.targets for lang in world.languages(code)]
    name = desk.scene.name
    if name in ("val", "test"):  # every known concept, whether or not this style draws it
        return sorted(pair for pair, side in held.items() if side == name and world.name_in(*pair))
    return [pair for pair in pairs if pair not in held]


def text_to_text(desk: Desk, count: int) -> list[Draft]:
    """Foreign name → English name; name or keywords → gloss where WordNet is there."""
    world = desk.world
    drafts = _glosses(desk, int(count * GLOSS_SHARE))
    pairs = spread(_translations(desk), lambda p: world.base(p[0]), count - len(drafts), desk.rng)
    for code, language in pairs:
        text = world.name_in(code, language)
        sides = {world.side(code), "known"}
        alike = [c for c in world.called(text, language) if world.side(c) in sides]
        positives = [desk.name_of(c) for c in dict.fromkeys([code, *alike])]
        negatives = desk.negatives(code, desk.name_of, positives)
        asked_in = {"language": language}
        drafts.append(Draft(text, None, code, "foreign", positives, negatives, asked_in))
    return drafts


def _glosses(desk: Desk, count: int) -> list[Draft]:
    """Training asks by name, the style evaluations by keywords; unseen concepts by name."""
    world, scene = desk.world, desk.scene
    codes = [c for c in scene.targets if c in world.glosses]
    drafts = []
    by_keywords = {c[0]: words for words, c in desk.keyword_queries() if len(c) == 1}
    for code in spread(codes, world.base, count, desk.rng):
        asks: list[tuple[str, str]] = []
        if scene.name not in ("val", "test"):
            asks.append(("name", world.concepts[code].name))
        elif code in by_keywords:
            asks.append(("keywords", ", ".join(by_keywords[code])))
        positives = [world.candidates.text(world.glosses[code], code, "gloss")]

        def gloss(other: str) -> str | None:
            text = world.glosses.get(other)
            return world.candidates.text(text, other, "gloss") if text else None

        negatives = desk.negatives(code, gloss, positives)
        for kind, text in asks:
            details = {"answer": "gloss"}
            drafts.append(Draft(text, None, code, kind, positives, negatives, details))
    return drafts


def text_to_both(desk: Desk, count: int) -> list[Draft]:
    """Foreign name or keywords → picture with its English name."""
    world, kind = desk.world, "picture+name"
    drafts = []
    asked = [q for q in desk.keyword_queries() if len(q[1]) <= 3]
    for words, codes in spread(asked, lambda q: q[1][0], int(count * KEYWORD_SHARE), desk.rng):
        positives = [did for c in codes for did in desk.named(c, kind)]
        negatives = desk.negatives(codes[0], desk.both_of(kind), positives, codes)
        details = {"keywords": list(words), "targets": codes}
        text = ", ".join(words)
        drafts.append(Draft(text, None, codes[0], "keywords", positives, negatives, details))
    held = world.splits.translations
    pairs = [
        (code, lang)
        for code in desk.scene.targets
        for lang in world.languages(code)
        if (code, lang) not in held
    ]
    for code, language in spread(pairs, lambda p: world.base(p[0]), count - len(drafts), desk.rng):
        text = world.name_in(code, language)
        alike = [c for c in world.called(text, language) if c in desk.pool and c != code]
        positives = [did for c in (code, *alike) for did in desk.named(c, kind)]
        negatives = desk.negatives(code, desk.both_of(kind), positives, alike)
        asked_in = {"language": language}
        drafts.append(Draft(text, None, code, "foreign", positives, negatives, asked_in))
    return drafts
