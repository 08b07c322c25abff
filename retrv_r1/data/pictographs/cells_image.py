"""Cells whose query has a picture: name it, find it in another style, answer, change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrv_r1.data.pictographs.catalog import spread
from retrv_r1.data.pictographs.changes import Change
from retrv_r1.data.pictographs.concepts import LANGUAGES
from retrv_r1.data.pictographs.draft import NEGATIVES, Draft, Picker
from retrv_r1.data.pictographs.phrases import QUESTIONS


def image_to_text(picker: Picker, count: int) -> list[Draft]:
    """Picture → name."""
    catalog = picker.catalog
    drafts: list[Draft] = []
    for style, code in spread(
        picker.queries(picker.scene.query_styles), lambda p: catalog.base(p[1]), count, picker.rng
    ):
        positives = [picker.name_of(code)]
        negatives = picker.negatives(code, picker.name_of, positives)
        drafts.append(Draft(None, (style, code), code, "picture", positives, negatives))
    return drafts


def image_to_image(picker: Picker, count: int) -> list[Draft]:
    """Picture → the same thing in another style."""
    catalog = picker.catalog
    pictures = picker.queries(picker.scene.source_styles)
    drafts: list[Draft] = []
    wanted = spread(pictures, lambda p: catalog.base(p[1]), len(pictures), picker.rng)
    for style, code in wanted:
        if len(drafts) == count:
            break
        own = None
        if style in picker.scene.pool_styles:
            own = catalog.candidates.picture(style, code)
        positives = [did for did in picker.pictures([code]) if did != own]
        if not positives:
            continue
        avoid = [own] if own else []
        negatives = picker.negatives(code, picker.picture_of(style), [*positives, *avoid])
        drafts.append(Draft(None, (style, code), code, "picture", positives, negatives))
    return drafts


def both_to_text(picker: Picker, count: int) -> list[Draft]:
    """Picture and "what is it called in French?" → that name."""
    catalog, held = picker.catalog, picker.catalog.splits.translations
    asked = [
        (style, code, lang)
        for style, code in picker.queries(picker.scene.query_styles)
        for lang in catalog.languages(code)
        if (code, lang) not in held
    ]
    drafts: list[Draft] = []
    for style, code, lang in spread(asked, lambda p: catalog.base(p[1]), count, picker.rng):

        def foreign(other: str, lang: str = lang) -> str | None:
            name = catalog.name_in(other, lang) if (other, lang) not in held else ""
            return catalog.candidates.text(name, other, "foreign", lang) if name else None

        positive = foreign(code)
        assert positive is not None
        wrong = [
            catalog.candidates.text(catalog.name_in(code, x), code, "foreign", x)
            for x in catalog.languages(code)
            if x != lang and (code, x) not in held
        ]
        first = [*wrong, picker.name_of(code)]
        negatives = picker.negatives(code, foreign, [positive], first=first)
        question = picker.rng.choice(QUESTIONS).format(LANGUAGES[lang])
        details = {"language": lang, "question": question}
        draft = Draft(question, (style, code), code, "question", [positive], negatives, details)
        drafts.append(draft)
    return drafts


def _askable_changes(picker: Picker, changes: Sequence[Change]) -> list[tuple[str, Change]]:
    """(style of the query, change) for all changes that a scene may ask for."""
    catalog, scene, targets = picker.catalog, picker.scene, set(picker.scene.targets)
    usable = [c for c in changes if c.target in targets and c.target in picker.pool]
    if scene.name == "composition":
        usable = [c for c in usable if catalog.side(c.source) == "known"]
    else:
        usable = [c for c in usable if c.source in targets]
    return [(style, c) for c in usable for style in picker.styles(c.source, scene.query_styles)]


def _change_queries(
    picker: Picker,
    count: int,
    changes: Sequence[Change],
    answer: Callable[[str, str], list[str]],
    wrong: Callable[[str], Callable[[str], str | None]],
) -> list[Draft]:
    """Queries of a picture with a change.

    Args:
        answer: function of (code, style of the query) that gives the positives.
        wrong: function of the query's style that gives a maker of negatives.
    """
    catalog, asked = picker.catalog, _askable_changes(picker, changes)
    # Kinds take turns; otherwise skin tones would crowd out colours and clocks.
    drafts: list[Draft] = []
    kinds = sorted({change.kind for _, change in asked})
    rows = {
        kind: spread(
            [p for p in asked if p[1].kind == kind], lambda p: catalog.base(p[1].target), count,
            picker.rng,
        )
        for kind in kinds
    }  # fmt: skip
    turn = 0
    while len(drafts) < count and any(rows.values()):
        kind = kinds[turn % len(kinds)]
        turn += 1
        if not rows[kind]:
            continue
        style, change = rows[kind].pop(0)
        positives = answer(change.target, style)
        if not positives:
            continue
        unchanged = wrong(style)(change.source) if change.source in picker.pool else None
        negatives = picker.negatives(
            change.target, wrong(style), positives, first=[unchanged] if unchanged else []
        )
        phrase = picker.rng.choice(change.phrases)
        details = {"change": {"kind": change.kind, "text": phrase}, "source": change.source}
        image = (style, change.source)
        drafts.append(
            Draft(phrase, image, change.target, change.kind, positives, negatives[:NEGATIVES],
                  details)
        )  # fmt: skip
    return drafts


def both_to_image(picker: Picker, count: int, changes: Sequence[Change]) -> list[Draft]:
    """Picture and change → picture; the positive in the query's style comes first."""
    return _change_queries(
        picker,
        count,
        changes,
        lambda code, style: picker.pictures([code], style),
        picker.picture_of,
    )


def both_to_both(picker: Picker, count: int, changes: Sequence[Change]) -> list[Draft]:
    """Picture and change → picture with the name of its role, which does not tell the change."""
    kind = "picture+role"
    return _change_queries(
        picker,
        count,
        changes,
        lambda code, style: picker.captioned(code, kind, style),
        lambda style: picker.captioned_of(kind, style),
    )
